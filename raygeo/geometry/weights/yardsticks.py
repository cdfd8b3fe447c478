"""Is a cosine large? Beside every pair of runs: chance, other seeds of the same loss, and what all runs have in common.

Everything follows from the inner products of the deltas, [N, N], and from how the runs were trained.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, combinations_with_replacement, product
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import Field

from raygeo.geometry.weights.conditions import Condition, configurations
from raygeo.geometry.weights.embedding import Map, embed
from raygeo.geometry.weights.norms import BaseWeights
from raygeo.geometry.weights.separation import separation
from raygeo.geometry.weights.similarity import Moments, moments, open_all
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.tables import BASE
from raygeo.workload import Rows, Task, Workload

SPAN_TOLERANCE = 1e-10
"""Directions of a span are dropped whose eigenvalue in the matrix of its cosines is below this share of the largest."""


def unit(inner: np.ndarray) -> np.ndarray:
    """Inner products [N, N] of the deltas scaled to unit length, their cosines; NaN where either is zero."""
    norms = np.sqrt(np.diag(inner))
    norms[norms == 0] = np.nan
    return np.clip(inner / np.outer(norms, norms), -1.0, 1.0)


def balanced(losses: Sequence[str]) -> np.ndarray:
    """Weights [N] of the mean of the losses' means: those of one loss are equal, and each loss has the same sum."""
    names, owner, counts = np.unique(losses, return_inverse=True, return_counts=True)
    return 1.0 / (len(names) * counts[owner])


def centred(inner: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Inner products [N, N] once the weighted mean (``weights`` [N] sum to 1) is taken from every delta.

    A delta that is then shorter than 1e-6 of the longest before counts as zero: what is left of it is rounding.
    """
    mean = inner @ weights
    out = inner - mean[:, None] - mean[None, :] + weights @ mean
    gone = np.diag(out) <= 1e-12 * np.diag(inner).max()
    out[gone, :] = out[:, gone] = 0.0
    return out


def distances(inner: np.ndarray) -> np.ndarray:
    """Distances [N, N] between the deltas."""
    energy = np.diag(inner)
    return np.sqrt((energy[:, None] + energy[None, :] - 2 * inner).clip(min=0.0))


def matched_distances(inner: np.ndarray) -> np.ndarray:
    """Distances [N, N] once both deltas of a pair have the geometric mean of their norms; NaN where either is zero.

    d^2 = (|a| - |b|)^2 + d_matched^2 splits the squared distance into one of length and one of direction.
    """
    norms = np.sqrt(np.diag(inner))
    return np.sqrt(2 * np.outer(norms, norms) * (1 - unit(inner)))


def beyond_span(cosines: np.ndarray, span: Sequence[int], run: int) -> tuple[float, int]:
    """Share of the norm of ``run`` orthogonal to the deltas ``span``, and the dimension of their span.

    With C the cosines of ``span`` among themselves and c those with ``run``, it is sqrt(1 - c' C^+ c), C^+ the
    pseudo-inverse with ``SPAN_TOLERANCE``; below about 1e-6 it is rounding.
    """
    among, across = cosines[np.ix_(span, span)], cosines[list(span), run]
    values, vectors = np.linalg.eigh(among)
    kept = values > SPAN_TOLERANCE * values[-1]
    explained = np.square(vectors[:, kept].T @ across) / values[kept]
    return float(np.sqrt(np.clip(1 - explained.sum(), 0.0, 1.0))), int(kept.sum())


def floors(cosines: np.ndarray, conditions: Sequence[Condition]) -> Rows:
    """Cosines of the runs of any two configurations, a row a kind of difference in seeds; known cosines [N, N] alone.

    ``configuration_a`` and ``_b`` are indices of a first run. Where they are equal, the row is a noise floor and its
    mean the reliability of that configuration under that kind of other seeds. ``disattenuated`` is the mean over the
    root of the product of both reliabilities of that kind (Spearman 1904): what the cosine would be without what seeds
    bring in. It is null where a reliability is unknown or not positive, and within a configuration and for runs of the
    same seeds, whose noise is not independent. It may exceed 1, as both parts are estimates.
    """
    groups = configurations(conditions)
    found: dict[tuple[int, int], dict[str, list[float]]] = {}
    for a, b in combinations_with_replacement(groups, 2):
        kinds = found.setdefault((a[0], b[0]), defaultdict(list))
        for i, j in combinations(a, 2) if a is b else product(a, b):
            kind = conditions[i].seeds(conditions[j])
            if np.isfinite(cosines[i, j]) and not (a is b and kind == "same"):
                kinds[kind].append(float(cosines[i, j]))
    means = {(first, second, kind): fmean(v) for (first, second), k in found.items() for kind, v in k.items()}
    rows = []
    for (first, second, seeds), mean in means.items():
        values = found[first, second][seeds]
        reliabilities = (means.get((one, one, seeds)) for one in (first, second))
        row: dict[str, Any] = {"configuration_a": first, "configuration_b": second, "seeds": seeds, "n": len(values)}
        row |= {"low": min(values), "mean": mean, "high": max(values)}
        rows.append(row | {"disattenuated": None if first == second else disattenuate(mean, *reliabilities)})
    return rows


def disattenuate(cosine: float, reliability_a: float | None, reliability_b: float | None) -> float | None:
    """Cosine over the geometric mean of two reliabilities, not clipped; None where one is unknown or not positive."""
    if reliability_a is None or reliability_b is None or min(reliability_a, reliability_b) <= 0:
        return None
    return cosine / math.sqrt(reliability_a * reliability_b)


class YardstickSettings(Settings):
    """Options of the yardsticks."""

    permutations: int = Field(9999, ge=99)
    """Labelings drawn for the permutation test; if there are no more than this, all of them are gone through."""
    seed: int = Field(0, ge=0)
    """Seed of the labelings drawn."""


class Yardsticks(Workload):
    """What cosines over all parameters are to be judged by; one task over all runs, five tables.

    * ``yardsticks``, a row a pair: cosine, its s.d. between random directions and their ratio z; the cosine
      disattenuated by the reliabilities of both configurations (``floors``); the cosine once the mean delta is taken
      out, which is the mean over losses of the means of their runs, as the deltas are and with each at unit length,
      beside what it would be were all runs orthogonal; the distance, as it is and at equal norms.
    * ``floors``: cosines by configuration and by what seeds differ (``floors``).
    * ``spans``, a row a configuration and run: what the run has outside the span of that configuration's other runs,
      and what it would have there if its direction were random, sqrt(1 - dimension * mean squared s.d. of its cosines).
    * ``separations``: the permutation test over losses, of all settings and of each that can be tested alone.
    * ``maps`` and ``map_axes``: the runs and the base in a plane, as the deltas are ("raw") and at unit length
      ("matched"), where the base is as far from all.

    Runs are compared over the parameters that any of them holds. A configuration goes by its first run. All deltas are
    read once, one parameter at a time; what follows costs nothing beside it.
    """

    name = "yardsticks"
    tables = ("yardsticks", "floors", "spans", "separations", "maps", "map_axes")

    def __init__(
        self,
        settings: YardstickSettings,
        runs: Sequence[Run],
        base: AnyPath,
        conditions: Mapping[str, Condition],
        reference: str,
    ):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.conditions = [conditions[run.name] for run in self.runs]
        self.reference = reference

    def tasks(self) -> list[Task]:
        """One task over all runs, none if fewer than two have a delta."""
        if len(self.runs) < 2:
            return []
        runs = [
            [run.name, run.key, asdict(condition)] for run, condition in zip(self.runs, self.conditions, strict=True)
        ]
        key = content_key(self.name, self.settings, runs, self.reference)
        return [Task(key, 1.0, None, f"yardsticks of {len(self.runs)} runs")]

    def setup(self) -> BaseWeights:
        """Open the base checkpoint, which every delta must fit."""
        return BaseWeights(self.base)

    def compute(self, state: BaseWeights, payload: None) -> dict[str, Rows]:
        """Rows of all tables."""
        whole = self._moments(state)
        names = [run.name for run in self.runs]
        cosines = whole.cosine
        seen = floors(cosines, self.conditions)
        maps, axes = self._maps(whole.inner)
        return {
            "yardsticks": _pair_rows(names, self.conditions, whole, seen),
            "floors": [
                row | {side: names[row[side]] for side in ("configuration_a", "configuration_b")} for row in seen
            ],
            "spans": _span_rows(names, self.conditions, cosines, whole.null_sd),
            "separations": self._separations(cosines),
            "maps": maps,
            "map_axes": axes,
        }

    def _moments(self, base: BaseWeights) -> Moments:
        deltas = open_all(self.runs)
        whole = Moments(*np.zeros((3, len(deltas), len(deltas))))
        for name in sorted({name for delta in deltas for name in delta}):
            entries = [delta.get(name) for delta in deltas]
            for entry in entries:
                if entry is not None:
                    base.check(name, entry)
            whole += moments(entries)
        return whole

    def _separations(self, cosines: np.ndarray) -> Rows:
        """The test of all settings together, then of each on its own where several have an outcome."""
        by_settings: defaultdict[str, list[int]] = defaultdict(list)
        for i, condition in enumerate(self.conditions):
            by_settings[condition.settings].append(i)
        parts = {"": list(range(len(self.runs)))} | {self.runs[part[0]].name: part for part in by_settings.values()}
        rows = []
        for like, part in parts.items():
            conditions = [self.conditions[i] for i in part]
            found = separation(cosines[np.ix_(part, part)], conditions, self.settings.permutations, self.settings.seed)
            rows.append({"like": like, **asdict(found)})
        usable = [row for row in rows if row["runs"]]
        return usable if len(usable) > 2 else rows[:1]

    def _maps(self, inner: np.ndarray) -> tuple[Rows, Rows]:
        maps, axes = [], []
        moved = np.flatnonzero(np.diag(inner) > 0)
        cases = {"raw": (np.arange(len(inner)), inner), "matched": (moved, unit(inner)[np.ix_(moved, moved)])}
        for kind, (members, products) in cases.items():
            if not len(members):
                continue
            names = [BASE, *(self.runs[i].name for i in members)]
            around = np.pad(products, ((1, 0), (1, 0)))
            drawn = embed(around, 0, names.index(self.reference) if self.reference in names else 1)
            maps += [
                {"scaling": kind, "run": name, "x": float(x), "y": float(y)}
                for name, (x, y) in zip(names, drawn.points, strict=True)
            ]
            axes += _axis_rows(kind, drawn)
        return maps, axes


def _pair_rows(names: Sequence[str], conditions: Sequence[Condition], whole: Moments, seen: Rows) -> Rows:
    weights = balanced([condition.loss for condition in conditions])
    owner = {i: group[0] for group in configurations(conditions) for i in group}
    reliability = {
        (row["configuration_a"], row["seeds"]): row["mean"]
        for row in seen
        if row["configuration_a"] == row["configuration_b"]
    }
    cosines = whole.cosine
    matched = np.nan_to_num(cosines)
    columns = {
        "cosine": cosines,
        "null_sd": whole.null_sd,
        "z": _ratio(cosines, whole.null_sd),
        "centred_cosine": unit(centred(whole.inner, weights)),
        "centred_null": unit(centred(np.diag(np.diag(whole.inner)), weights)),
        "matched_centred_cosine": unit(centred(matched, weights)),
        "matched_centred_null": unit(centred(np.diag(np.diag(matched)), weights)),
        "distance": distances(whole.inner),
        "matched_distance": matched_distances(whole.inner),
    }
    rows = []
    for i, j in combinations(range(len(names)), 2):
        a, b = conditions[i], conditions[j]
        kind = a.seeds(b)
        corrected = None
        if owner[i] != owner[j] and np.isfinite(cosines[i, j]):
            corrected = disattenuate(float(cosines[i, j]), *(reliability.get((owner[k], kind)) for k in (i, j)))
        row: dict[str, Any] = {"run_a": names[i], "run_b": names[j], "seeds": kind, "disattenuated": corrected}
        row |= {"same_loss": a.loss == b.loss, "same_settings": a.settings == b.settings}
        rows.append(row | {column: _number(values[i, j]) for column, values in columns.items()})
    return rows


def _span_rows(names: Sequence[str], conditions: Sequence[Condition], cosines: np.ndarray, sds: np.ndarray) -> Rows:
    rows = []
    for group in configurations(conditions):
        for run in range(len(names)):
            span = [i for i in group if i != run and np.isfinite(cosines[i, run])]
            if not span or len(group) < 2:
                continue
            fraction, dimension = beyond_span(cosines, span, run)
            chance = float(np.sqrt(max(0.0, 1 - dimension * np.square(sds[span, run]).mean())))
            rows.append(
                {"configuration": names[group[0]], "run": names[run], "among": run in group, "n": len(span)}
                | {"dimension": dimension, "orthogonal_fraction": fraction, "null_fraction": chance}
            )
    return rows


def _axis_rows(kind: str, drawn: Map) -> Rows:
    columns = {"eigenvalue": drawn.eigenvalues, "share": drawn.share, "stress": drawn.stress}
    return [
        {"scaling": kind, "axis": i + 1, **{column: _number(values[i]) for column, values in columns.items()}}
        for i in range(len(drawn.eigenvalues))
    ]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
