"""Where two deltas pull entries in opposite directions, beside what chance gives.

After "Decouple before Integration" (arXiv 2605.00610), which reports the share; what is counted and both nulls are
defined here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Entry


@dataclass(frozen=True)
class Signs:
    """Signs of N deltas over some entries, two by two, each [N, N] fp64; those of disjoint entries add up.

    ``both`` counts the entries that both deltas change, ``opposite`` those of them whose signs differ. ``expected_*``
    are the means of these counts if the entries of either were in random places within their parameter, which has the
    closed form (p_i n_j + n_i p_j) / n of the numbers of positive and negative entries. ``shuffled_*`` are those of
    delta i and of delta j with its columns in one random order: rows keep their signs and sizes, low rank stays low.
    ``products`` sums |x_i x_j|, and ``inner`` x_i x_j.
    """

    both: np.ndarray
    opposite: np.ndarray
    expected_both: np.ndarray
    expected_opposite: np.ndarray
    shuffled_both: np.ndarray
    shuffled_opposite: np.ndarray
    products: np.ndarray
    inner: np.ndarray


def signs(entries: Sequence[Entry], seed: int) -> Signs:
    """Compare the signs of N entries of one parameter, at most 4 M values of them at once (a few copies of these).

    Products of LoRA factors are made block by block in fp64. ``seed`` is that of the random order of the columns (the
    last dimension; of a vector, its entries).

    Raises:
        DeltaError: the shapes differ, or an entry is not finite.
    """
    n, shape = len(entries), entries[0].shape
    sums = [torch.zeros(n, n, dtype=torch.float64) for _ in range(6)]
    ups, downs = torch.zeros(2, n, dtype=torch.float64)
    count = 0
    for block in linalg.side_by_side(entries):
        sign, size = block.sign().float(), block.abs()
        moved = sign.abs()
        columns = shape[-1] if len(shape) > 1 else block.shape[1]
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))
        elsewhere = sign.view(n, -1, columns)[:, :, order].flatten(1)
        shifted = elsewhere.abs()
        parts = (moved @ moved.T, sign @ sign.T, moved @ shifted.T, sign @ elsewhere.T, size @ size.T, block @ block.T)
        for total, part in zip(sums, parts, strict=True):
            total += part.double()
        ups += (sign > 0).sum(1)
        downs += (sign < 0).sum(1)
        count += block.shape[1]
    both, agreement, shuffled_both, shuffled_agreement, products, inner = sums
    if not torch.isfinite(products).all():
        raise DeltaError("a delta holds NaN or infinity, its run diverged; lower its learning rate or leave it out.")
    changed = ups + downs
    return Signs(
        both.numpy(),
        ((both - agreement) / 2).numpy(),
        _outer(changed, changed, count),
        _outer(ups, downs, count) + _outer(downs, ups, count),
        shuffled_both.numpy(),
        ((shuffled_both - shuffled_agreement) / 2).numpy(),
        products.numpy(),
        inner.numpy(),
    )


def _outer(a: Tensor, b: Tensor, count: int) -> np.ndarray:
    return (torch.outer(a, b) / max(1, count)).numpy()
