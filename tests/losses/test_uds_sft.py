"""A step's rows are chosen one by one, by how much they teach and how unlike they are to those chosen before."""

import itertools

import pytest
import torch
from loss_cases import rollouts, weights_of

from raygeo.losses import UDSSFT


def vectors(targets, logprobs, mask, size):
    """What is sketched, written out token by token: [B, size]."""
    found = torch.zeros(len(targets), size, dtype=torch.float64)
    for row, place in itertools.product(range(len(targets)), range(targets.shape[1])):
        if mask[row, place]:
            share = (1 - logprobs[row, place].exp()) / mask[row].sum()
            found[row, targets[row, place]] += share
    return found


def rows(seed, count=12, width=40, size=500):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(size, (count, width), generator=generator)
    logprobs = -3 * torch.rand(count, width, generator=generator, dtype=torch.float64)
    mask = torch.rand(count, width, generator=generator) < 0.7
    return targets, logprobs.masked_fill(~mask, float("nan")), mask


def test_sketches_keep_lengths_and_inner_products():
    targets, logprobs, mask = rows(seed=0)
    exact, found = vectors(targets, logprobs, mask, 500), UDSSFT().sketches(targets, logprobs, mask)
    lengths = exact.norm(dim=1)
    error = (found @ found.T - exact @ exact.T) / lengths[:, None] / lengths
    assert error.abs().max() < 0.35
    assert error.square().mean().sqrt() < 2 / 16


def test_a_row_has_the_same_sketch_beside_any_other():
    targets, logprobs, mask = rows(seed=1)
    whole = UDSSFT().sketches(targets, logprobs, mask)
    alone = torch.cat([UDSSFT().sketches(targets[i : i + 1], logprobs[i : i + 1], mask[i : i + 1]) for i in range(12)])
    assert torch.equal(whole, alone)


def test_choice_is_greedy_in_utility_times_unlikeness():
    generator = torch.Generator().manual_seed(2)
    given = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    expected: list[int] = []
    for _ in range(4):
        scores = {}
        for i in set(range(9)) - set(expected):
            cosines = [float(torch.cosine_similarity(given[i], given[j], dim=0)) for j in expected]
            scores[i] = float(given[i].norm()) * (1 - max([0.0, *cosines]))
        expected.append(max(scores, key=scores.__getitem__))
    assert UDSSFT().choose(given, 4) == sorted(expected)


def test_a_copy_is_chosen_last_and_the_first_of_equals_first():
    unit = torch.eye(3, dtype=torch.float64)
    given = torch.stack([3 * unit[0], 3 * unit[0], 0.5 * unit[1], 0.0 * unit[2]])
    assert [UDSSFT().choose(given, count) for count in (1, 2, 4)] == [[0], [0, 2], [0, 1, 2, 3]]


def test_learns_from_the_rows_asked_for():
    assert weights_of(UDSSFT(rows="correct").select(rollouts(a="cw", b="w"))) == {0: 1.0}
    assert (UDSSFT().kept_share, UDSSFT(keep=0.25).kept_share) == (0.5, 0.25)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_refuses_to_keep_nothing_or_all(keep):
    with pytest.raises(ValueError):
        UDSSFT(keep=keep)
