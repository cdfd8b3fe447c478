import numpy as np
import pytest
import torch
from delta_cases import gaussian
from scipy.stats import hypergeom

from raygeo.geometry.weights.masks import chance_overlap, changed, largest, smallest

ULP = 2.0**-7
"""Distance of bf16 numbers in [1, 2)."""


@pytest.mark.parametrize(
    ("before", "delta", "moves"),
    [
        (1.0, 0.0, False),
        (1.0, ULP, True),
        (1.0, ULP / 2, False),  # halfway, to the even 1.0
        (1.0, ULP / 2 * (1 + 2**-14), True),
        (1.0, ULP / 2 * (1 + 2**-16), False),  # the fp32 sum is halfway again
        (1.0, -ULP / 4, False),  # halfway below 1, where the distance is halved; 1.0 is even
        (1.0, -ULP / 4 * (1 + 2**-15), True),
        (1.0 + ULP, ULP / 2, True),  # halfway from an odd number, to the even one above
        (1.0 + ULP, -ULP / 2, True),
        (2.0 - ULP, ULP, True),  # the least relative step, 2^-8
        (-1.0, -ULP, True),
        (0.0, 1e-30, True),
        (0.0, 0.0, False),
        (0.0, 2.0**-135, False),  # below half the least subnormal, 2^-133
        (1e-30, -1e-30, True),
        (1.0, 2.0**-25, False),  # lost in the fp32 sum already
        (1.0 + ULP / 2, 0.0, False),  # no bf16 number; both are rounded to 1.0
        (1.0 + ULP / 2, 2.0**-20, True),  # and now to 1 + ULP
    ],
)
def test_an_entry_changes_where_its_bf16_number_does(before, delta, moves):
    assert changed(torch.tensor([before]), torch.tensor([delta]), 1e-3).tolist() == [moves]


def test_every_neighbour_of_a_normal_number_counts_as_changed_below_two_to_the_minus_eight():
    codes = torch.arange(0x3F80, 0x4000, dtype=torch.int16)  # 1.0 to 2.0
    values, above = codes.view(torch.bfloat16).float(), (codes + 1).view(torch.bfloat16).float()
    for eta in (0.0, 1e-3, 2**-8 - 2**-30):
        assert changed(values, above - values, eta).all()
    at_the_edge = changed(values, above - values, 2**-8)
    assert at_the_edge.sum() == len(values) - 1
    assert not at_the_edge[-1]


def test_bf16_weights_are_compared_as_they_are():
    weight, delta = gaussian(40, 30, seed=0).bfloat16(), 1e-3 * gaussian(40, 30, seed=1)
    expected = (weight.float() + delta).bfloat16() != weight
    assert 0.05 < expected.float().mean() < 0.95
    assert torch.equal(changed(weight, delta, 1e-3), expected)


def test_masks_hold_the_extremes():
    values = gaussian(25, 8, seed=0)
    order = values.abs().flatten().argsort()
    for share, count in ((0.3, 60), (0.001, 1), (1.0, 200)):
        assert set(smallest(values, share).flatten().nonzero().flatten().tolist()) == set(order[:count].tolist())
        assert set(largest(values, share).flatten().nonzero().flatten().tolist()) == set(order[-count:].tolist())


def test_equal_entries_are_all_in():
    values = torch.tensor([1.0, -1.0, 2.0, -2.0, 2.0, 3.0])
    assert smallest(values, 1 / 6).tolist() == [True, True, False, False, False, False]
    assert largest(values, 1 / 3).tolist() == [False, False, True, True, True, True]


def test_chance_overlap_is_hypergeometric():
    for entries, first, second in ((50, 15, 7), (10, 10, 3), (10, 4, 10), (10, 4, 0)):
        mean, variance = chance_overlap(entries, first, second)
        law = hypergeom(entries, first, second)
        assert mean == pytest.approx(law.mean(), abs=1e-12)
        assert variance == pytest.approx(law.var(), abs=1e-12)
    rng = np.random.default_rng(0)
    drawn = [np.isin(rng.choice(50, 7, replace=False), range(15)).sum() for _ in range(4000)]
    mean, variance = chance_overlap(50, 15, 7)
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * (variance / 4000) ** 0.5)
    assert np.var(drawn) == pytest.approx(variance, rel=0.1)
