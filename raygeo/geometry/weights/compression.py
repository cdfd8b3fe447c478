"""Pruning by magnitude and rounding to few bits, one tensor at a time; nothing is trained or calibrated."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

_HIGH, _LOW = 1 << 15, 1 << 16
"""How many values the upper and the lower half of the bits of a non-negative fp32 number can have."""


def magnitude_thresholds(tensors: Callable[[], Iterable[Tensor]], shares: Sequence[float]) -> list[float]:
    """For each of ``shares`` s the entry of absolute rank floor(s n), counted from 0, among all n entries: exact.

    At most the share s of the entries lies strictly below it, and less only where entries are equal. The bits of
    non-negative fp32 numbers are ordered as the numbers are, so that two histograms, of their upper and of their lower
    halves, find an entry without sorting: ``tensors`` is called twice and gives them, fp32, one at a time.

    Raises:
        ValueError: a share is not in [0, 1), or there is no entry.
    """
    if not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares of pruned entries must lie in [0, 1), got {list(shares)}")
    high = sum((_counts(_bits(value) >> 16, _HIGH) for value in tensors()), torch.zeros(_HIGH, dtype=torch.int64))
    entries = int(high.sum())
    if entries == 0:
        raise ValueError("there are no entries to prune")
    ranks = torch.tensor([min(entries - 1, math.floor(share * entries)) for share in shares])
    below = high.cumsum(0)
    buckets = torch.searchsorted(below, ranks, right=True)
    low = {int(bucket): torch.zeros(_LOW, dtype=torch.int64) for bucket in buckets}
    for value in tensors():
        bits = _bits(value)
        for bucket, counts in low.items():
            counts += _counts(bits[bits >> 16 == bucket] & (_LOW - 1), _LOW)
    found = []
    for rank, bucket in zip(ranks.tolist(), buckets.tolist(), strict=True):
        rest = rank - int(below[bucket] - high[bucket])
        place = int(torch.searchsorted(low[bucket].cumsum(0), torch.tensor(rest), right=True))
        found.append(torch.tensor((bucket << 16) + place, dtype=torch.int32).view(torch.float32).item())
    return found


def _bits(value: Tensor) -> Tensor:
    return value.detach().float().abs().contiguous().flatten().view(torch.int32)


def _counts(values: Tensor, length: int) -> Tensor:
    return torch.bincount(values, minlength=length).cpu()


def prune(weight: Tensor, threshold: float) -> Tensor:
    """``weight`` with 0 in place of every entry whose absolute value is below ``threshold``."""
    return torch.where(weight.abs() < threshold, 0.0, weight)


def round_to_nearest(weight: Tensor, bits: int, group_size: int = 0) -> Tensor:
    """``weight`` [..., in] rounded to integers of so many bits, symmetric, and back, in its own dtype and shape.

    Each row, an output channel, is divided into groups of ``group_size`` entries (0: none; the last may be shorter). A
    group's scale is its largest absolute value over 2^(bits - 1) - 1, and entries are rounded to the nearest multiple,
    ties to even (Jacob et al. 2018, arXiv:1712.05877, section 2.1, with zero point 0). A group of zeros stays one.

    Raises:
        ValueError: ``bits`` is not between 2 and 8, or the group size is negative.
    """
    if not 2 <= bits <= 8 or group_size < 0:
        raise ValueError(f"rounding takes 2 to 8 bits and groups of 0 or more entries, got {bits} and {group_size}")
    width = weight.shape[-1]
    size = min(group_size or width, width)
    padded = torch.nn.functional.pad(weight, (0, -width % size)).unflatten(-1, (-1, size))
    most = 2 ** (bits - 1) - 1
    scale = padded.abs().amax(-1, keepdim=True) / most
    steps = (padded / torch.where(scale > 0, scale, 1.0)).round().clamp(-most, most)
    return (steps * scale).flatten(-2)[..., :width]
