"""SplitMix64 on tensors against its published outputs and the same generator on Python's integers."""

import numpy as np
import pytest
import torch
from scipy import stats

from raygeo.losses.uniforms import splitmix64, uniforms

WORD = 2**64 - 1


def by_hand(seed: int, count: int) -> list[int]:
    """The generator as its authors give it, one 64-bit state stepped through."""
    outputs, state = [], seed & WORD
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        outputs.append(z ^ (z >> 31))
    return outputs


def unsigned(values):
    return [[int(value) & WORD for value in row] for row in values.tolist()]


def test_published_outputs():
    expected = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert by_hand(1234567, 5) == expected
    assert unsigned(splitmix64(torch.tensor([1234567]), 5)) == [expected]


def test_every_seed_is_the_same_generator_on_integers():
    seeds = [0, 1, -1, 42, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -987654321]
    assert unsigned(splitmix64(torch.tensor(seeds), 33)) == [by_hand(seed, 33) for seed in seeds]


def test_uniforms_are_the_upper_53_bits_of_the_stream_of_the_mixed_key():
    keys = [0, 7, -3, 2**62 + 11]
    expected = [[z >> 11 for z in by_hand(by_hand(key, 1)[0], 9)] for key in keys]
    found = uniforms(torch.tensor(keys), 9)
    assert found.dtype == torch.float64
    assert torch.equal(found * 2**53, torch.tensor(expected, dtype=torch.float64))


def test_a_key_has_its_numbers_in_any_company():
    keys = torch.arange(-20, 20) * 10**12
    whole = uniforms(keys, 8)
    assert torch.equal(uniforms(keys.flip(0), 8).flip(0), whole)
    assert torch.equal(torch.cat([uniforms(part, 8) for part in keys.split(7)]), whole)
    assert torch.equal(uniforms(keys, 3), whole[:, :3])


@pytest.mark.parametrize("stride", [1, 2**40, 0x9E3779B97F4A7C15 - 2**64], ids=["1", "2^40", "increment"])
def test_numbers_of_related_keys_are_uniform_and_uncorrelated(stride):
    numbers = uniforms(torch.arange(2000) * stride, 50).numpy()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for neighbours in (
        (numbers[:-1], numbers[1:]),
        (numbers[:-1, :-1], numbers[1:, 1:]),
        (numbers[1:, :-1], numbers[:-1, 1:]),
    ):
        assert stats.pearsonr(*(side.ravel() for side in neighbours)).pvalue > 1e-3
