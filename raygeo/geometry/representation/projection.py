"""Random projections that keep inner products: long vectors, one at a time, become short ones that are compared.

A count sketch (Charikar, Chen and Farach-Colton 2002; Weinberger et al., arXiv:0902.2206) adds every entry, with a
random sign, to one of k places. The inner product of two sketches is that of the vectors on average, and off by
``sqrt((|x|^2 |y|^2 + <x, y>^2) / k)`` at most (standard deviation over signs and places).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

GROUPS = 16
"""Parts of a projection, each left out in turn to see what the projection adds to an error."""

_CHUNK = 1 << 22
WORKING_BYTES = 8 * 8 * _CHUNK
"""What a sketch takes while it is made: a piece of the vector in fp64, and some numbers of 64 bits for each entry."""
_STEP = 0x9E3779B97F4A7C15
_MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def count_sketch(vector: Tensor, size: int, seed: int) -> Tensor:
    """The sketch [``size``] fp64 of a vector [n]; signs and places follow from ``seed`` and an entry's number alone.

    They are the bits of SplitMix64 (Steele, Lea and Flood 2014): the same on every device, and never held.
    """
    sketch = vector.new_zeros(size, dtype=torch.float64)
    for start in range(0, len(vector), _CHUNK):
        part = vector[start : start + _CHUNK].double()
        bits = _random_bits(torch.arange(start, start + len(part), device=vector.device), seed)
        sketch.index_add_(0, (bits & (2**63 - 1)) % size, torch.where(bits < 0, -part, part))
    return sketch


def projected_grams(projections: Array, squares: Array) -> list[Array]:
    """Gram matrix [N, N] of vectors from their projections [N, k] and squared lengths [N], which are exact.

    Then, for ``standard_error``, the same from the projections without each of ``GROUPS`` equal parts of their entries.
    """
    size = projections.shape[1]
    parts = np.array_split(projections, GROUPS, axis=1)
    products = [part @ part.T for part in parts]
    whole = np.sum(products, axis=0)
    without = [
        (whole - product) * (size / (size - part.shape[1])) for part, product in zip(parts, products, strict=True)
    ]
    for gram in (found := [whole, *without]):
        np.fill_diagonal(gram, squares)
    return found


def standard_error(without: Sequence[float | None]) -> float | None:
    """Standard error that projections add to a statistic, from its values ``without`` each part: a jackknife.

    None where one of them is not defined, or there are none, as of an exact matrix.
    """
    known = np.array([value for value in without if value is not None])
    if len(known) < max(1, len(without)):
        return None
    return float(np.sqrt((len(known) - 1) * np.var(known)))


def _random_bits(numbers: Tensor, seed: int) -> Tensor:
    """64 random bits for each of some numbers, int64; products wrap around."""
    bits = numbers * _signed(_STEP) + _signed(_STEP * (1 + seed) ^ seed)
    for shift, factor in _MIXES:
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return (bits >> by) & (2 ** (64 - by) - 1)


def _signed(value: int) -> int:
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value
