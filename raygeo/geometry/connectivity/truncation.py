"""A delta cut down to few of its directions, parameter by parameter: the leading singular ones, or random ones.

The leading ones are the best approximation of that rank (Eckart and Young 1936). Random ones are the null: what as many
directions of the same delta hold by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from raygeo.geometry.connectivity.mixtures import Entries
from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Dense, Entry, LowRank
from raygeo.models.mix import Mixture
from raygeo.models.tensors import Index

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Product:
    """The source of a dense entry ``b @ a``, [out, r] times [r, in]: multiplied where it is read."""

    b: Tensor
    a: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, [out, in]."""
        return (self.b.shape[0], self.a.shape[1])

    def __getitem__(self, index: Index) -> Tensor:
        rows, columns = (*index, slice(None), slice(None))[:2]
        return self.b[rows] @ self.a[:, columns]


@dataclass(frozen=True)
class Directions:
    """Some directions of a matrix entry: the entry projected onto the first k of them is ``b[:, :k] @ a[:k]``.

    ``b`` is [out, n], ``a`` [n, in], fp32, and columns of one or rows of the other are orthonormal. ``low_rank`` says
    that the entry is a ``LowRank`` one, and so are its projections; those of a dense entry are dense, so that a student
    in bf16 adds them as it adds the entry itself.
    """

    b: Tensor
    a: Tensor
    low_rank: bool

    @cached_property
    def energies(self) -> Tensor:
        """Squared Frobenius norm along each direction, [n] fp64."""
        return self.b.double().square().sum(0) * self.a.double().square().sum(1)

    def first(self, k: int) -> Entry:
        """The projection onto the first ``k`` directions."""
        b, a = self.b[:, :k], self.a[:k]
        return LowRank(b, a, 1.0) if self.low_rank else Dense(Product(b, a))


def full_rank(entry: Entry) -> int:
    """The largest rank that a matrix entry can have: its shorter side, or the rank of its factors."""
    return min(*entry.shape, entry.a.shape[0]) if isinstance(entry, LowRank) else min(entry.shape)


def leading_directions(entry: Entry, k: int, device: torch.device | None = None) -> Directions:
    """The ``k`` leading singular directions of a matrix entry, in fp64 (``linalg.svd``), a dense one on ``device``.

    Raises:
        DeltaError: the entry is not a matrix, or is not finite.
    """
    u, s, vh = linalg.svd(entry, k, device)
    return Directions((u * s).float(), vh.float(), isinstance(entry, LowRank))


def random_directions(entry: Entry, k: int, generator: torch.Generator) -> Directions:
    """The entry on ``k`` orthonormal directions, uniform in the space that its rows (its columns, if it is wide) span.

    For a ``LowRank`` entry that is row(A), for a dense one all of the shorter side. The first j of them hold on average
    j / ``full_rank`` of its energy, and all of them all of it.
    """
    n = full_rank(entry)
    frame = torch.linalg.qr(torch.randn(n, min(k, n), generator=generator, dtype=torch.float64)).Q
    if isinstance(entry, LowRank):
        u, s, vh = linalg.svd(entry)
        return Directions((u * s @ frame).float(), (frame.T @ vh).float(), True)
    wide = entry.shape[0] < entry.shape[1]
    blocks = (block.double().T if wide else block.double() for block in entry.blocks(_BLOCK, int(wide)))
    long, short = torch.cat([block @ frame for block in blocks]).float(), frame.float()
    return Directions(short, long.T, False) if wide else Directions(long, short.T, False)


class Truncation:
    """A delta of which each matrix keeps few directions; vectors (biases, norms) and stacks of matrices are kept whole.

    The directions of all matrices are held in memory, fp32: (out + in) ``rank`` numbers each.

    Args:
        delta: entries by parameter, read one at a time.
        rank: the most directions that will be asked for.
        take: makes directions of an entry, up to so many: (name, entry, rank).

    Attributes: ``full_rank``, the largest rank that any of the matrices can have; 0 if there is none.
    """

    def __init__(self, delta: Mapping[str, Entry], rank: int, take: Callable[[str, Entry, int], Directions]):
        self._delta = delta
        self._kept: dict[str, Directions] = {}
        self._totals: dict[str, float] = {}
        self.full_rank = 0
        for name, entry in delta.items():
            self._totals[name] = linalg.norm(entry) ** 2
            if len(entry.shape) == 2:
                self.full_rank = max(self.full_rank, full_rank(entry))
                self._kept[name] = take(name, entry, rank)

    @classmethod
    def leading(cls, delta: Mapping[str, Entry], rank: int, device: torch.device | None = None) -> Truncation:
        """Of the leading singular directions.

        Raises:
            DeltaError: the delta is not finite.
        """
        return cls(delta, rank, lambda _, entry, k: leading_directions(entry, k, device))

    @classmethod
    def random(cls, delta: Mapping[str, Entry], rank: int, seed: int) -> Truncation:
        """Of random directions, nested from one rank to the next, which depend on ``seed`` and the parameter alone."""
        return cls(
            delta, rank, lambda name, entry, k: random_directions(entry, k, named_generator("subspace", seed, name))
        )

    def at(self, rank: int) -> Mixture:
        """The delta of that rank."""
        whole = Entries(self._delta, set(self._delta) - set(self._kept))
        return [(1.0, {name: kept.first(rank) for name, kept in self._kept.items()}), (1.0, whole)]

    def energy(self, rank: int) -> float:
        """The share of the whole delta's squared norm that is kept; NaN of a delta that is zero."""
        total = sum(self._totals.values())
        return sum(self._energies(rank).values()) / total if total > 0 else math.nan

    def scaled(self, rank: int) -> Mixture:
        """The whole delta, each parameter scaled to the norm that it has at that rank: the energy without the choice of
        directions.
        """
        kept = self._energies(rank)
        return [
            ((kept[name] / total) ** 0.5, Entries(self._delta, [name]))
            for name, total in self._totals.items()
            if total > 0
        ]

    def _energies(self, rank: int) -> dict[str, float]:
        """Squared norm that each parameter keeps."""
        kept = {name: min(float(of.energies[:rank].sum()), self._totals[name]) for name, of in self._kept.items()}
        return {**self._totals, **kept}
