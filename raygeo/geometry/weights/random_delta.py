"""The null of what a delta does to the spectrum of weights: a delta as long and of as many directions, but random."""

import torch
from torch import Tensor

from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Entry, LowRank


def random_like(entry: Entry, *name: str | int) -> LowRank:
    """A delta with the singular values of a matrix entry [out, in] and random singular vectors, fp64.

    It has the shape, the norms and the rank of ``entry``. Its singular vectors are uniform (Haar: the Q of a normal
    matrix, signs of R's diagonal taken out); they depend on ``name``, the shape and the rank alone: name a seed and the
    parameter, so that matrices of one shape are not changed along the same directions.

    Raises:
        DeltaError: the entry is not a matrix, or is not finite.
    """
    s = linalg.singular_values(entry)
    generator = named_generator("random delta", *name)
    left, right = (_frame(side, len(s), generator) for side in entry.shape)
    return LowRank(left * s, right.T.contiguous(), 1.0)


def _frame(d: int, k: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))
    return torch.where(r.diagonal() < 0, -q, q)
