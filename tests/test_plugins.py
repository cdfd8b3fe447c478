"""What settings name as ``module:name``."""

import pytest

from raygeo.plugins import names_own


def held(depth, inner):
    for _ in range(depth):
        inner = [inner, inner]
    return inner


@pytest.mark.parametrize("named", [{"type": "mine:Loss"}, {"geometry": {"mine:ANALYSIS": None}}])
def test_a_name_is_found_wherever_it_stands(named):
    assert names_own({"runs": [{"loss": named}]})
    assert names_own(held(5_000, named)), "2^5000 paths lead to it, and no stack is so deep"


def test_nothing_else_is_one():
    ring = {"type": "sft", "store": "s3://bucket/x", "lr": [1e-3]}
    ring["itself"] = ring
    assert not names_own(ring)
    assert not names_own(held(5_000, ring))
