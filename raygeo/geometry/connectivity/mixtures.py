"""What mixtures are made of besides whole deltas, and distances between deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from raygeo.errors import DeltaError
from raygeo.geometry.bootstrap import Array
from raygeo.geometry.weights import linalg
from raygeo.models.delta import Entry
from raygeo.models.mix import Mixture


class Entries(Mapping[str, Entry]):
    """A delta made of given entries: some of another delta's, still read one at a time, or ones held in memory.

    Args:
        entries: entries by parameter; another delta is not read before an entry is asked for.
        names: the parameters of ``entries`` to keep, all by default.
    """

    def __init__(self, entries: Mapping[str, Entry], names: Iterable[str] | None = None):
        self._whole = entries
        self._names = dict.fromkeys(sorted(entries if names is None else set(names) & set(entries)))

    def __getitem__(self, name: str) -> Entry:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __reduce__(self):
        return (Entries, (self._whole, tuple(self._names)))


def mixture(*terms: tuple[float, Mapping[str, Entry] | None]) -> Mixture:
    """Keep the terms that count: None is the base's delta, and terms of coefficient 0 go, so that ends are exact."""
    return [(coefficient, delta) for coefficient, delta in terms if delta is not None and coefficient != 0]


def delta_gram(deltas: Sequence[Mapping[str, Entry] | None]) -> Array:
    """Inner products of all pairs of deltas over all parameters, [N, N] fp64; None, the base, is the zero delta.

    One parameter of all deltas is read at a time and LoRA factors are never multiplied out.

    Raises:
        DeltaError: two deltas have a parameter in different shapes, or one is not finite.
    """
    total = np.zeros((len(deltas), len(deltas)))
    for name in sorted({name for delta in deltas if delta is not None for name in delta}):
        here = [i for i, delta in enumerate(deltas) if delta is not None and name in delta]
        total[np.ix_(here, here)] += linalg.gram([deltas[i][name] for i in here]).numpy()  # type: ignore[index]
    return total


def distance(gram: Array, i: int, j: int) -> float:
    """Euclidean distance between two deltas, from their inner products.

    Raises:
        DeltaError: they are equal as far as fp64 inner products tell.
    """
    square = gram[i, i] + gram[j, j] - 2 * gram[i, j]
    if square <= 1e-14 * max(gram[i, i], gram[j, j]):
        raise DeltaError("two of the runs have the same weights, so nothing lies between them; leave one out.")
    return float(np.sqrt(square))
