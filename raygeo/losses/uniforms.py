"""Uniform numbers that are a function of a key alone: the same in any split of a batch, after any resume."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def splitmix64(seeds: Tensor, count: int) -> Tensor:
    """Return the first ``count`` outputs of SplitMix64 from each of ``seeds`` [N]: [N, count], int64 bit patterns.

    The generator is counter-based: output j is a mixing of ``seed + (j + 1) 0x9E3779B97F4A7C15`` modulo 2^64, which is
    how int64 tensors add and multiply. Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
    """
    steps = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    state = seeds[:, None] + steps
    state = (state ^ _shift_right(state, 30)) * _MIX[0]
    state = (state ^ _shift_right(state, 27)) * _MIX[1]
    return state ^ _shift_right(state, 31)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Return ``count`` numbers for each of ``keys`` [N] int64: [N, count] fp64, multiples of 2^-53 in [0, 1).

    A key is mixed once before it seeds a stream, so that keys which differ by little, or by a multiple of the
    generator's increment, have unrelated streams.
    """
    bits = splitmix64(splitmix64(keys, 1)[:, 0], count)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _shift_right(values: Tensor, by: int) -> Tensor:
    """Shift int64 as if it were unsigned."""
    return (values >> by) & (2 ** (64 - by) - 1)
