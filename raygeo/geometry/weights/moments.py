"""Second moments of deltas: their inner products, and what cosines and orthogonal fractions follow from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raygeo.geometry.weights import linalg
from raygeo.models.delta import Entry, LowRank


@dataclass(frozen=True)
class Moments:
    """Second moments of N deltas over some parameters, each [N, N] fp64; moments of disjoint parameters add up.

    ``inner[i, j]`` is the inner product; ``residual[i, j]`` the energy of delta j left when the direction of delta i is
    taken out of it, parameter by parameter; ``variance[i, j]`` the variance that ``inner[i, j]`` would have if both
    directions were random within each parameter, their norms there kept.
    """

    inner: np.ndarray
    residual: np.ndarray
    variance: np.ndarray

    @classmethod
    def zero(cls, n: int) -> "Moments":
        """The moments of ``n`` deltas over no parameters."""
        return cls(*np.zeros((3, n, n)))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.inner + other.inner, self.residual + other.residual, self.variance + other.variance)

    @property
    def cosine(self) -> np.ndarray:
        """Cosine of i and j, NaN where either is zero."""
        return np.clip(self.inner / self._scale, -1.0, 1.0)

    @property
    def orthogonal_fraction(self) -> np.ndarray:
        """Norm of j orthogonal to i over the norm of j, NaN where either is zero.

        Within one parameter it is sqrt(1 - cos^2). Over several, i's direction is projected out of each parameter on
        its own: sqrt(sum_m |j_m|^2 (1 - cos_m^2) / sum_m |j_m|^2), never more than sqrt(1 - cos^2) of the whole.
        """
        energy = np.where(np.isnan(self._scale), np.nan, np.diag(self.inner)[None, :])
        return np.sqrt(np.clip(self.residual / energy, 0.0, 1.0))

    @property
    def null_sd(self) -> np.ndarray:
        """Standard deviation of the cosine of random directions (see ``null_variance``), NaN where either is zero."""
        return np.sqrt(self.variance) / self._scale

    @property
    def _scale(self) -> np.ndarray:
        norms = np.sqrt(np.diag(self.inner))
        norms[norms == 0] = np.nan
        return np.outer(norms, norms)


def moments(entries: Sequence[Entry | None]) -> Moments:
    """Moments of the entries of N deltas for one parameter; None stands for a delta that lacks it and counts as zero.

    Raises:
        DeltaError: the entries' shapes differ, or one is not finite.
    """
    here = [i for i, entry in enumerate(entries) if entry is not None]
    present = [entry for entry in entries if entry is not None]
    inner, variance = np.zeros((2, len(entries), len(entries)))
    inner[np.ix_(here, here)] = linalg.gram(present).numpy()
    variance[np.ix_(here, here)] = null_variance(present)
    energy = np.diag(inner).clip(min=0.0)
    np.fill_diagonal(inner, energy)
    removed = np.divide(inner**2, energy[:, None], out=np.zeros_like(inner), where=energy[:, None] > 0)
    return Moments(inner, (energy - removed).clip(min=0.0), variance * np.outer(energy, energy))


def null_variance(entries: Sequence[Entry]) -> np.ndarray:
    """Variance of the cosine of two random deltas shaped like each pair of N ``entries``: [N, N].

    If either is ``Dense``, its random direction is uniform on the sphere of R^n and the variance is exactly 1/n. Two
    ``LowRank`` deltas keep their A and draw B from i.i.d. normal entries: their inner product then has variance
    out |A1 A2'|_F^2 and their squared norms the means out |A|_F^2, hence to first order in 1/out

        |A1 A2'|_F^2 / (out |A1|_F^2 |A2|_F^2),

    which is 1/(out r_eff) for a shared A, r_eff its participation rank, and about 1/(out in) for independent ones.
    """
    out = np.full((len(entries), len(entries)), 1.0 / math.prod(entries[0].shape))
    factors = {i: entry.a.double() for i, entry in enumerate(entries) if isinstance(entry, LowRank)}
    if factors:
        a = torch.cat(list(factors.values()))
        cross = linalg.block_sums((a @ a.T) ** 2, [len(factor) for factor in factors.values()]).numpy()
        energy = np.array([factor.square().sum().item() for factor in factors.values()])
        scale = entries[0].shape[0] * np.outer(energy, energy)
        low = list(factors)
        out[np.ix_(low, low)] = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    return out


def whole_moments(deltas: Sequence[Mapping[str, Entry]]) -> Moments:
    """Moments of N deltas over all parameters that any of them holds, added in the order of their sorted names.

    A delta maps names of parameters to entries, as ``raygeo.models.delta.open_delta`` gives it; of dense entries a
    block of rows of one parameter is in memory at a time.

    Raises:
        DeltaError: two deltas have a parameter in different shapes, or one is not finite.
    """
    total = Moments.zero(len(deltas))
    for name in sorted({name for delta in deltas for name in delta}):
        total += moments([delta.get(name) for delta in deltas])
    return total


def cosine(delta_a: Mapping[str, Entry], delta_b: Mapping[str, Entry]) -> float:
    """Cosine of two deltas over all parameters, in fp64; NaN if either is zero.

    A delta maps names of parameters to entries; a parameter that one of them lacks counts as zero there.

    Raises:
        DeltaError: they have a parameter in different shapes, or one is not finite.
    """
    return float(whole_moments([delta_a, delta_b]).cosine[0, 1])
