from raygeo.losses.base import Example
from raygeo.losses.counting import units


def test_single_rows():
    examples = [Example((0,), (1.0,)), Example((2,), (-0.4,))]
    assert units(examples, [5, 100, 7]) == {"token": 12, "sequence": 2, "pair": 0}


def test_pairs_count_shared_rows_twice():
    examples = [Example((0, 1), (1.0, 1.0)), Example((0, 2), (1.0, 1.0))]
    assert units(examples, [5, 100, 7]) == {"token": 117, "sequence": 4, "pair": 2}


def test_nothing():
    assert units([], []) == {"token": 0, "sequence": 0, "pair": 0}
