"""Is a cosine large? Beside every pair of runs: chance, other seeds of the same loss, and what all runs have in common.

Everything follows from the inner products of the deltas, [N, N], and from how the runs were trained.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygeo.analyses.similarity.workload import added_moments
from raygeo.errors import DataError
from raygeo.geometry.weights.embedding import Map, embed
from raygeo.geometry.weights.inner_products import (
    balanced,
    beyond_span,
    centred,
    distances,
    matched_distances,
    unit,
)
from raygeo.geometry.weights.moments import Moments
from raygeo.geometry.weights.noise_floors import Floor, disattenuate, noise_floors
from raygeo.geometry.weights.separation import separation
from raygeo.models.run import Run
from raygeo.records import Condition, configurations
from raygeo.settings import Settings
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task, Workload

_MOST_LABELINGS = 2**63 - 1
"""What a column of whole numbers holds."""


class CosineBaselineSettings(Settings):
    """Options of what cosines are compared with."""

    permutations: int = Field(9999, ge=99)
    """Labelings drawn for the permutation test; if there are no more than this, all of them are gone through."""
    seed: int = Field(0, ge=0)
    """Seed of the labelings drawn."""


class CosineBaselines(Workload):
    """What cosines over all parameters are to be judged by; one task over all runs.

    * ``cosine_baselines``, a row a pair: cosine, its s.d. between random directions and their ratio z; the cosine
      disattenuated by the reliabilities of both configurations (``weights.noise_floors``); the cosine once the mean
      delta is taken out, which is the mean over losses of the means of their runs, as the deltas are and with each at
      unit length, beside what it would be were all runs orthogonal; the distance, as it is and at equal norms.
    * ``noise_floors``: cosines by configuration and by what seeds differ.
    * ``span_residuals``, a row a configuration and run: what the run has outside the span of that configuration's other
      runs, and what it would have there if its direction were random, sqrt(1 - dimension * mean squared s.d. of its
      cosines).
    * ``permutation_tests``: the permutation test over losses, of all settings and of each that can be tested alone.
    * ``mds`` and ``mds_axes``: the runs and the base in a plane, as the deltas are ("raw") and at unit length
      ("matched"), where the base is as far from all.

    Runs are compared over the parameters that any of them holds, by the table ``moments`` that the analysis
    ``similarity`` made of these runs: its rows are added up, and no delta is read. A configuration goes by its first
    run.

    Raises:
        DataError: ``moments`` lacks a run.
    """

    name = "cosine baselines"
    revision = 2
    tables: ClassVar = {
        "cosine_baselines": schema(
            """What each cosine is judged by, a row an unordered pair. `seeds`: those that differ, "order", "init",
            "both", or "same" if none does. `*_null` is the value were all runs orthogonal; `matched_*` that of deltas
            of equal length.""",
            "run_a, run_b: text; same_loss, same_settings: flag; seeds: text; cosine, null_sd, z, disattenuated, "
            "centred_cosine, centred_null, matched_centred_cosine, matched_centred_null, distance, "
            "matched_distance: float",
        ),
        "noise_floors": schema(
            """Cosines between runs of two configurations (loss and settings, named by a first run), by the seeds that
            differ; within one configuration they are the noise floor. `disattenuated` may exceed 1.""",
            "configuration_a, configuration_b, seeds: text; n: int; low, mean, high, disattenuated: float",
        ),
        "span_residuals": schema(
            """A run against the span of the other runs (`n`) of a configuration; `among`: it is of that configuration
            itself.""",
            "configuration, run: text; among: flag; n, dimension: int; orthogonal_fraction, null_fraction: float",
        ),
        "permutation_tests": schema(
            """Cosines of runs of other seeds within losses and between them, for the settings of run `like` (all if
            empty). `labelings` that the permutation test can tell apart, null above 2^63 - 1; `draws` is null if all
            were gone through.""",
            "like: text; runs, losses, within_n: int; within_mean: float; between_n: int; between_mean, d_prime: "
            "float; labelings, draws: int; p: float; reason: text",
        ),
        "mds": schema(
            """Runs and base in a plane (classical multidimensional scaling); `scaling`: "raw", or "matched" with all
            deltas at unit length.""",
            "scaling, run: text; x, y: float",
        ),
        "mds_axes": schema(
            "The principal axes of these maps; `stress` is that of the axes so far.",
            "scaling: text; axis: int; eigenvalue, share, stress: float",
        ),
    }

    def __init__(
        self,
        settings: CosineBaselineSettings,
        runs: Sequence[Run],
        moments: pa.Table,
        conditions: Mapping[str, Condition],
        reference: str,
    ):
        self.settings = settings
        self.runs = [run.name for run in runs if run.delta is not None]
        table = moments.to_pandas()
        known = set(table.run_a.unique())
        missing = [run for run in self.runs if run not in known]
        if missing and len(self.runs) > 1:
            raise DataError(
                f"the table moments has nothing of {', '.join(missing)}, so their cosines have no baselines; "
                "geometry.similarity makes it: ask for it too, and fix the cause if it failed."
            )
        self.whole = added_moments(self.runs, table)
        self.conditions = [conditions[run] for run in self.runs]
        self.reference = reference

    def tasks(self) -> list[Task]:
        """One task over all runs, none if fewer than two have a delta."""
        if len(self.runs) < 2:
            return []
        key = self.key(
            self.settings,
            [[run, asdict(condition)] for run, condition in zip(self.runs, self.conditions, strict=True)],
            [self.whole.inner.tolist(), self.whole.variance.tolist()],
            self.reference,
        )
        return [Task(key, 1.0, None, f"baselines of the cosines of {len(self.runs)} runs")]

    def setup(self) -> None:
        """Build nothing: the moments are here."""

    def compute(self, state: None, payload: None) -> dict[str, Rows]:
        """Rows of all tables."""
        cosines = self.whole.cosine
        floors = noise_floors(cosines, self.conditions)
        maps, axes = self._maps(self.whole.inner)
        return {
            "cosine_baselines": _pair_rows(self.runs, self.conditions, self.whole, floors),
            "noise_floors": [
                asdict(floor)
                | {side: self.runs[getattr(floor, side)] for side in ("configuration_a", "configuration_b")}
                for floor in floors
            ],
            "span_residuals": _span_rows(self.runs, self.conditions, cosines, self.whole.null_sd),
            "permutation_tests": self._permutation_tests(cosines),
            "mds": maps,
            "mds_axes": axes,
        }

    def _permutation_tests(self, cosines: np.ndarray) -> Rows:
        """The test of all settings together, then of each on its own where several have an outcome."""
        by_settings: defaultdict[str, list[int]] = defaultdict(list)
        for i, condition in enumerate(self.conditions):
            by_settings[condition.settings].append(i)
        parts = {"": list(range(len(self.runs)))} | {self.runs[part[0]]: part for part in by_settings.values()}
        rows = []
        for like, part in parts.items():
            conditions = [self.conditions[i] for i in part]
            found = separation(cosines[np.ix_(part, part)], conditions, self.settings.permutations, self.settings.seed)
            countable = found.labelings <= _MOST_LABELINGS
            rows.append({"like": like, **asdict(found), "labelings": found.labelings if countable else None})
        usable = [row for row in rows if row["runs"]]
        return usable if len(usable) > 2 else rows[:1]

    def _maps(self, inner: np.ndarray) -> tuple[Rows, Rows]:
        maps, axes = [], []
        moved = np.flatnonzero(np.diag(inner) > 0)
        cases = {"raw": (np.arange(len(inner)), inner), "matched": (moved, unit(inner)[np.ix_(moved, moved)])}
        for kind, (members, products) in cases.items():
            if not len(members):
                continue
            names = [BASE, *(self.runs[i] for i in members)]
            around = np.pad(products, ((1, 0), (1, 0)))
            drawn = embed(around, 0, names.index(self.reference) if self.reference in names else 1)
            maps += [
                {"scaling": kind, "run": name, "x": float(x), "y": float(y)}
                for name, (x, y) in zip(names, drawn.points, strict=True)
            ]
            axes += _axis_rows(kind, drawn)
        return maps, axes


def _pair_rows(names: Sequence[str], conditions: Sequence[Condition], whole: Moments, floors: Sequence[Floor]) -> Rows:
    weights = balanced([condition.loss for condition in conditions])
    owner = {i: group[0] for group in configurations(conditions) for i in group}
    reliability = {
        (floor.configuration_a, floor.seeds): floor.mean
        for floor in floors
        if floor.configuration_a == floor.configuration_b
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
        if len({conditions[i] for i in group}) < 2:
            continue
        for run in range(len(names)):
            span = [i for i in group if conditions[i] != conditions[run] and np.isfinite(cosines[i, run])]
            if not span:
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
