"""Centred kernel alignment (CKA): how alike two models represent the same texts, whatever the rotation and scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from raygeo.geometry.representation.kernels import gram


@dataclass(frozen=True)
class Alignment:
    """CKA of one pair at one layer; None where a model gives all texts the same features.

    ``cka`` is the unbiased minibatch estimate, in [-1, 1], and ``low`` to ``high`` its 95 % interval (None with one
    minibatch); ``biased`` is the plain estimate over all texts, in [0, 1].
    """

    cka: float | None
    biased: float | None
    low: float | None
    high: float | None


def cka(
    features_a: Tensor | NDArray[np.floating],
    features_b: Tensor | NDArray[np.floating],
    batches: Sequence[Tensor] | None = None,
) -> Alignment:
    """Linear CKA of two models' features [n, d_a] and [n, d_b] of the same n texts, in fp64.

    ``batches`` are the rows of each minibatch of the unbiased estimate, as ``minibatches`` makes them; by default all
    rows make one, and there is no interval. See ``align`` for the estimates and their sources.

    Raises:
        ValueError: the features are not of equally many texts, or a minibatch has fewer than 4.
    """
    a, b = (torch.as_tensor(features).cpu() for features in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(
            f"CKA compares features [n, d] of the same n texts, but these have shapes {list(a.shape)} and "
            f"{list(b.shape)}; give one row a text, in one order."
        )
    [found] = align(gram(a)[None], gram(b)[None], [torch.arange(len(a))] if batches is None else batches)
    return found


def hsic1(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two kernels [..., n, n] over the same n >= 4 examples (Song et al., JMLR 2012; HSIC_1): [...].

    With zeroed diagonals, ``[tr(KM) + 1'K1 1'M1 / ((n-1)(n-2)) - 2 1'KM1 / (n-2)] / (n(n-3))``. Unchanged by centring.

    Raises:
        ValueError: n < 4.
    """
    n = k.shape[-1]
    if n < 4:
        raise ValueError(f"unbiased HSIC needs at least 4 examples, not {n}")
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, m = k * off, m * off
    sums_k, sums_m = k.sum(-1), m.sum(-1)
    means = sums_k.sum(-1) * sums_m.sum(-1) / ((n - 1) * (n - 2))
    return ((k * m).sum((-2, -1)) + means - 2 * (sums_k * sums_m).sum(-1) / (n - 2)) / (n * (n - 3))


def align(k: Tensor, m: Tensor, batches: Sequence[Tensor]) -> list[Alignment]:
    """Align centred kernels ``k`` with ``m`` [L, n, n] of the same examples, layer by layer (either L may be 1).

    The estimate is minibatch CKA (Nguyen et al., arXiv:2010.15327, eq. 3): ``hsic1`` of (k, m), (k, k) and (m, m) is
    averaged over ``batches`` first, then the ratio is taken. Its 95 % interval is the delete-one-minibatch jackknife
    with Student's t, cut to [-1, 1]. The biased value is ``<K, M> / (|K| |M|)`` over all examples (Kornblith et al.,
    arXiv:1905.00414), near 1 for any two features when n is not much larger than their dimension.

    Raises:
        ValueError: a minibatch has fewer than 4 examples.
    """
    norms = k.norm(dim=(-2, -1)) * m.norm(dim=(-2, -1))
    biased = torch.stack([(x * y).sum() for x, y in zip(*torch.broadcast_tensors(k, m), strict=True)]) / norms
    parts = [(k[:, rows][..., rows], m[:, rows][..., rows]) for rows in batches]
    terms = [torch.broadcast_tensors(hsic1(x, y), hsic1(x, x), hsic1(y, y)) for x, y in parts]
    layers = torch.stack([torch.stack(part, -1) for part in terms], 1).numpy()  # [L, batches, 3]
    return [
        Alignment(None, None, None, None) if norm == 0 else _alignment(layer, whole)
        for layer, whole, norm in zip(layers, biased.tolist(), norms.tolist(), strict=True)
    ]


def minibatches(counts: Sequence[int], batch_size: int = 32, seed: int = 0) -> list[Tensor]:
    """Shuffle texts into disjoint minibatches of equal size (to within one), none below ``batch_size`` texts.

    ``counts`` are the rows of each text; a minibatch holds the rows of its texts. Fewer texts than ``batch_size`` make
    one minibatch.
    """
    rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    order = np.random.default_rng(seed).permutation(len(counts))
    parts = np.array_split(order, max(1, len(counts) // batch_size))
    return [torch.from_numpy(np.concatenate([rows[text] for text in part])) for part in parts]


def _alignment(terms: np.ndarray, biased: float) -> Alignment:
    """The estimate and its interval from the three terms of each minibatch [batches, 3]."""
    value = _ratio(terms.sum(0))
    without = [_ratio(terms.sum(0) - part) for part in terms]
    if value is None or len(terms) < 2 or None in without:
        return Alignment(value, biased, None, None)
    error = np.sqrt((len(terms) - 1) * np.var(np.array(without, dtype=np.float64)))
    half = float(stats.t.ppf(0.975, len(terms) - 1) * error)
    return Alignment(value, biased, max(value - half, -1.0), min(value + half, 1.0))


def _ratio(terms: np.ndarray) -> float | None:
    cross, first, second = terms.tolist()
    return None if min(first, second) <= 0 else min(1.0, max(-1.0, cross / (first * second) ** 0.5))
