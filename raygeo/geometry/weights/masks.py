"""Which entries of a weight matrix does an update change, once both are stored in bf16, and where do they lie?

After "The Path Not Taken" (arXiv 2511.08567), as defined again in arXiv 2606.07082, section 3.1.
"""

import torch
from torch import Tensor

from raygeo.geometry.weights.principal import Principal

MASKS = ("principal", "low-magnitude", "principal only", "neither")
"""Where changed entries may lie: among the entries that the leading directions make large, among the small ones, among
the former without the latter, or outside both."""


def masks(weight: Tensor, principal: Principal, share: float) -> dict[str, Tensor]:
    """The masks ``MASKS`` of the entries of ``weight`` [out, in].

    The principal mask holds the top ``share`` of the entries of |the best approximation of rank k| (``principal``), the
    low-magnitude mask the bottom ``share`` of |weight|.
    """
    top, low = largest(principal.reconstruction, share), smallest(weight.float(), share)
    return dict(zip(MASKS, (top, low, top & ~low, ~(top | low)), strict=True))


def changed(before: Tensor, delta: Tensor, eta: float) -> Tensor:
    """Mask of the entries of ``before`` that differ once ``delta`` is added, in the same shape.

    The sum is taken in fp32; both matrices are then rounded to bf16 once, to w and w'. An entry is unchanged if
    |w' - w| <= eta max(|w|, |w'|), decided in fp64. Two different bf16 numbers are at least 2^-8 of the larger apart,
    so that any smaller ``eta`` makes this a test of equality.
    """
    old = before.float().bfloat16().double()
    new = (before.float() + delta.float()).bfloat16().double()
    return (new - old).abs() > eta * torch.maximum(new.abs(), old.abs())


def largest(values: Tensor, share: float) -> Tensor:
    """Mask of the ``share`` of entries of greatest absolute value, rounded to a number of entries of at least one.

    All that equal the least of them are in, lest the order of entries decide. Where values are few, as those of bf16
    weights are, the mask is therefore larger than asked.
    """
    sizes = values.abs()
    return sizes >= sizes.flatten().kthvalue(values.numel() + 1 - _count(values, share)).values


def smallest(values: Tensor, share: float) -> Tensor:
    """Mask of the ``share`` of entries of least absolute value, rounded and with ties as in ``largest``."""
    sizes = values.abs()
    return sizes <= sizes.flatten().kthvalue(_count(values, share)).values


def chance_overlap(entries: int, first: int, second: int) -> tuple[float, float]:
    """Mean and variance of the overlap of two masks of given sizes, one of them placed at random: hypergeometric."""
    share = first / entries
    spread = share * (1 - share) * (entries - second) / (entries - 1) if entries > 1 else 0.0
    return second * share, second * spread


def _count(values: Tensor, share: float) -> int:
    return min(values.numel(), max(1, round(share * values.numel())))
