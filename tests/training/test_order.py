from itertools import pairwise

import numpy as np
import pytest

from raygeo.losses.base import Example
from raygeo.training.order import micro_batches, step_batches, step_count, token_batches
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import TrainingSettings


def singles(rows):
    return [Example((row,), (1.0,)) for row in rows]


def test_losses_that_share_rows_see_them_in_the_same_order():
    everything, some = list(range(40)), [3, 4, 9, 15, 22, 30, 38, 39]
    full = step_batches(singles(everything), 40, 8, 5, seed=3).ravel()
    part = step_batches(singles(some), 40, 8, 1, seed=3).ravel()
    shared = [row for row in full if row in some]
    assert [some[i] for i in part] == shared
    assert sorted(full) == everything


def test_epochs_are_reshuffled_and_batches_run_over_their_end():
    batches = step_batches(singles(range(10)), 10, 4, 5, seed=0)
    stream = batches.ravel()
    assert batches.shape == (5, 4)
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert list(stream[:10]) != list(stream[10:])


def test_the_order_follows_its_seed_alone():
    one, two = (step_batches(singles(range(30)), 30, 5, 6, seed=s) for s in (0, 1))
    assert not np.array_equal(one, two)
    assert np.array_equal(one, step_batches(singles(range(30)), 30, 5, 6, seed=0))


@pytest.mark.parametrize(("size", "micro", "world"), [(8, 8, 1), (8, 3, 1), (7, 2, 2), (2, 2, 4), (9, 1, 2)])
def test_micro_batches_partition_the_batch_and_keep_ranks_in_step(size, micro, world):
    batch = np.arange(100, 100 + size)
    lengths = np.random.default_rng(0).integers(1, 50, size)
    ranks = [micro_batches(batch, lengths, micro, rank, world) for rank in range(world)]
    assert len({len(groups) for groups in ranks}) == 1
    assert all(len(group) <= micro for groups in ranks for group in groups)
    assert sorted(np.concatenate([g for groups in ranks for g in groups])) == list(batch)


@pytest.mark.parametrize(("size", "micro", "world"), [(8, 8, 1), (8, 3, 1), (7, 2, 2), (2, 2, 4), (40, 32, 3)])
def test_micro_batches_of_few_tokens_partition_the_batch_and_keep_ranks_in_step(size, micro, world):
    batch = np.arange(100, 100 + size)
    tokens = np.random.default_rng(0).integers(1, 50, size)
    tokens[1] = 70  # too many for any micro-batch
    ranks = [token_batches(batch, tokens, micro, 60, rank, world) for rank in range(world)]
    groups = [group for mine in ranks for group in mine]
    assert len({len(mine) for mine in ranks}) == 1
    assert sorted(np.concatenate(groups)) == list(batch)
    for group in groups:
        assert len(group) <= micro
        assert tokens[group - 100].sum() <= 60 or list(group) == [101]
    if micro >= size:  # first fit: no two could be one
        loads = [tokens[group - 100].sum() for group in groups if len(group)]
        assert all(a + b > 60 for i, a in enumerate(loads) for b in loads[:i])


def test_halving_a_micro_batch_halves_its_tokens():
    settings = TrainingSettings(micro_batch_size=32, micro_batch_tokens=1000, padding_free=True)
    assert settings.halved(16) == TrainingSettings(micro_batch_size=16, micro_batch_tokens=500, padding_free=True)
    assert settings.halved(32) == settings
    assert TrainingSettings().halved(8) == TrainingSettings(micro_batch_size=8)


def test_steps_or_epochs():
    assert step_count(100, 32, 7, None) == 7
    assert step_count(100, 32, None, 2.0) == 7
    assert step_count(100, 32, None, None) == 4
    assert step_count(3, 32, None, 0.1) == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_to_its_peak_and_ends_where_it_should(schedule):
    settings = TrainingSettings(warmup_ratio=0.1, lr_scheduler_type=schedule, final_lr=0.2)
    rates = [lr_factor(settings, 100, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_linear_and_cosine_agree_half_way():
    for schedule in ("linear", "cosine"):
        settings = TrainingSettings(warmup_ratio=0.0, lr_scheduler_type=schedule)
        assert lr_factor(settings, 101, 50) == pytest.approx(0.5)
