"""Runs of which nothing is known but their weights."""

import json

import pytest
import torch

from raygeo.report.limits import limits, seed_pairs
from raygeo.report.sections.results import results
from raygeo.report.view import View
from raygeo.tables import to_arrow


def view_of(**runs):
    rows = [
        {"run": name, "status": "finished", "relative_norm": relative, "params": json.dumps({"stored": stored})}
        for name, (relative, stored) in runs.items()
    ]
    similarity = [
        {"run_a": a, "run_b": b, "scope": "global", "name": "", "cosine": 0.9} for a in runs for b in runs if a != b
    ]
    return View({"runs": to_arrow("runs", rows), "similarity": to_arrow("similarity", similarity)}, next(iter(runs)))


def test_nothing_is_claimed_about_training():
    view = view_of(a=(0.02, None), b=(0.01, "F32"))
    assert limits(view) == []
    assert seed_pairs(view).empty
    assert view.losses == {}
    assert view.by_loss({"a", "b"}) == {"a": ["a"], "b": ["b"]}
    sheet = results(view)
    assert sheet.columns[:2] == ["run", "status"]
    assert [row[1] for row in sheet.rows] == ["untrained", "finished", "finished"]


def test_a_delta_longer_than_any_fine_tuning_is_called_so():
    (sentence,) = limits(view_of(a=(0.02, None), b=(1.4, None)))
    assert sentence.startswith("The delta of b is 140")


@pytest.mark.parametrize(
    ("stored", "relative", "doubtful"),
    [("BF16", 0.01, False), ("BF16", 0.003, True), ("F16", 0.001, False), ("F16", 0.0003, True)],
)
def test_rounding_is_held_against_the_length_of_a_delta(stored, relative, doubtful):
    """Uniform rounding errors of half a spacing have a root mean square of the spacing over root 12."""
    (sentence,) = limits(view_of(a=(relative, stored)))
    low, high = {"BF16": ("0.11", "0.23"), "F16": ("0.014", "0.028")}[stored]
    assert f"rounding alone is {low} to {high} % of the base norm" in sentence
    assert ("most of it may be rounding" in sentence) == doubtful
    weights = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    rounded = weights.to({"BF16": torch.bfloat16, "F16": torch.float16}[stored])
    assert float(low) < 100 * ((rounded - weights).norm() / weights.norm()).item() < float(high)
