"""Do two runs move the weights in the same direction? Cosines and orthogonal fractions of deltas, beside their null."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.grouping import group_label, open_all, parameter_groups
from raygeo.geometry.weights.norms import BaseWeights
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.delta import Delta, Entry, LowRank, layer_index, module_name
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


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


def null_variance(entries: Sequence[Entry]) -> np.ndarray:
    """Variance of the cosine of two random deltas shaped like each pair of ``entries``: [N, N].

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


def moments(entries: Sequence[Entry | None]) -> Moments:
    """Moments of one parameter; None stands for a delta that lacks it and counts as zero.

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


def pairwise_cosine(deltas: Mapping[str, Delta]) -> tuple[list[str], np.ndarray]:
    """Cosines over all parameters of all pairs: the names in order and [N, N] fp64, NaN where a delta is zero.

    Raises:
        DeltaError: two deltas have a parameter in different shapes, or one is not finite.
    """
    total = _nothing(len(deltas))
    for name in _parameters(deltas.values()):
        total += moments([delta.get(name) for delta in deltas.values()])
    return list(deltas), total.cosine


class SimilaritySettings(Settings):
    """Similarity has no options."""


class Similarity(Workload):
    """Cosine, orthogonal fraction and null of all ordered pairs of runs, for table ``similarity``.

    Scopes are "module" (one parameter), "layer" (the parameters of one transformer block) and "global" (all). The
    orthogonal fraction is run b's share orthogonal to run a, projected parameter by parameter (``Moments``); over
    several parameters it differs between (a, b) and (b, a), so both are given. A parameter that one of two runs lacks
    counts as zero there; two that share none have cosine 0 and null 0. Where either delta is zero in a scope, cosine,
    fraction and null are null.

    A task is a group of parameters of all runs: every delta is read once for all pairs, and memory holds a block of
    rows of one parameter of all runs at a time (of LoRA deltas, the factors of one parameter). Table ``moments`` has
    what the rows are made of, by parameter (``Moments``; ``run_a`` is i, ``run_b`` j, runs with themselves included);
    those of layers and of the whole are concluded from it by adding up.
    """

    name = "similarity"
    tables = ("similarity", "moments")

    def __init__(self, settings: SimilaritySettings, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task a group of parameters, none if fewer than two runs have a delta; the cost is the numbers to read."""
        if len(self.runs) < 2:
            return []
        runs = sorted([run.name, run.key] for run in self.runs)
        return [
            Task(
                content_key(self.name, self.settings, runs, names),
                float(cost),
                names,
                f"similarity of {len(runs)} runs, {group_label(names)}",
            )
            for names, cost in parameter_groups(open_all(self.runs))
        ]

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint, which every delta must fit, and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: list[str]) -> dict[str, Rows]:
        """Module rows of all pairs for a group of parameters."""
        base, deltas = state
        runs = [run.name for run in self.runs]
        rows: dict[str, Rows] = {"similarity": [], "moments": []}
        for name in payload:
            entries = [delta.get(name) for delta in deltas]
            for entry in entries:
                if entry is not None:
                    base.check(name, entry)
            part = moments(entries)
            module = module_name(name)
            rows["similarity"] += _rows(runs, "module", module, part)
            rows["moments"] += [
                {"run_a": a, "run_b": b, "module": module, "layer": layer_index(name)}
                | {column: float(getattr(part, column)[i, j]) for column in _MOMENTS}
                for i, a in enumerate(runs)
                for j, b in enumerate(runs)
            ]
        return rows

    def conclude(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of every layer and of all parameters."""
        frame = tables["moments"].to_pandas()
        if frame.empty:
            return {}
        runs = [run.name for run in self.runs]
        total = partial(_total, runs)
        rows: Rows = []
        for layer, part in frame.groupby("layer"):
            rows += _rows(runs, "layer", str(int(layer)), total(part))
        return {"similarity": rows + _rows(runs, "global", "", total(frame))}


_MOMENTS = ("inner", "residual", "variance")


def _total(runs: list[str], frame: pd.DataFrame) -> Moments:
    """Add up rows of table ``moments``, in their order."""
    i, j = (pd.Index(runs).get_indexer(frame[column]) for column in ("run_a", "run_b"))
    total = _nothing(len(runs))
    for column in _MOMENTS:
        np.add.at(getattr(total, column), (i, j), frame[column].to_numpy())
    return total


def _parameters(deltas: Iterable[Delta]) -> list[str]:
    return sorted({name for delta in deltas for name in delta})


def _nothing(n: int) -> Moments:
    return Moments(*np.zeros((3, n, n)))


def _rows(runs: list[str], scope: str, name: str, part: Moments) -> Rows:
    columns = {"cosine": part.cosine, "orthogonal_fraction": part.orthogonal_fraction, "null_sd": part.null_sd}
    return [
        {"run_a": a, "run_b": b, "scope": scope, "name": name}
        | {column: None if np.isnan(values[i, j]) else float(values[i, j]) for column, values in columns.items()}
        for i, a in enumerate(runs)
        for j, b in enumerate(runs)
        if i != j
    ]
