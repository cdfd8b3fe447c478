"""How far each run moved each weight matrix, and in how many directions: one row a module, a layer and a run."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import group_label, open_all, parameter_groups
from raygeo.models.delta import Entry, layer_index, module_name
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

_RANKS = {
    "stable_rank": linalg.stable_rank,
    "effective_rank": linalg.effective_rank,
    "participation_rank": linalg.participation_rank,
}


class NormSettings(Settings):
    """Norms and ranks have no options."""


class Norms(Workload):
    """Norms and ranks of every delta, rows for table ``deltas``.

    * Scope "module", one row a parameter: Frobenius ``norm``, ``base_norm``, their ratio, ``spectral_norm`` (largest
      singular value) and the ranks of ``weights.linalg``. The spectral norm is null for what is not a matrix, the ranks
      also for a matrix that did not move.
    * Scopes "layer" and "global": the parameters as blocks of one block-diagonal matrix, so that norms are root sums of
      squares and the spectral norm is the largest. Base norms are over the parameters the delta holds. Ranks are null
      at scope "layer"; at scope "global" they are the unweighted mean over the matrices that moved.

    A relative norm is null where the base is zero.

    A task is a group of a run's parameters; rows of layers and runs are aggregated from those of modules. A full delta
    is read twice, for its norm and its singular values, and the base twice or three times.
    """

    name = "norms"
    tables: ClassVar = {
        "deltas": schema(
            """`participation_rank` is (sum s^2)^2 / sum s^4; ranks are null where the delta is not a matrix.""",
            "run, module: text; layer: int; scope: text; norm, base_norm, relative_norm, spectral_norm, "
            "stable_rank, effective_rank, participation_rank: float",
        )
    }

    def __init__(self, settings: NormSettings, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task a run and group of its parameters; the cost is how many numbers are read."""
        return [
            Task(
                self.key(self.settings, [run.name, run.key], names),
                float(cost),
                (run, names),
                f"norms of {run.name}, {group_label(names)}",
            )
            for run, delta in zip(self.runs, open_all(self.runs), strict=True)
            for names, cost in parameter_groups([delta])
        ]

    def setup(self) -> BaseWeights:
        """Open the base checkpoint; it remembers norms from task to task."""
        return BaseWeights(self.base)

    def compute(self, state: BaseWeights, payload: tuple[Run, list[str]]) -> dict[str, Rows]:
        """Module rows of a group of one run's parameters."""
        run, names = payload
        [delta] = open_all([run])
        rows = []
        for name in names:
            entry = delta[name]
            state.check(name, entry)
            rows.append({"run": run.name, **_module_row(name, entry, state.norm(name))})
        return {"deltas": rows}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of every layer of every run and of the whole run."""
        runs: defaultdict[str, Rows] = defaultdict(list)
        for row in tables["deltas"].to_pylist():
            runs[row["run"]].append(row)
        rows: Rows = []
        for run, modules in runs.items():
            layers = sorted({row["layer"] for row in modules} - {None})
            totals = [_total([row for row in modules if row["layer"] == i], "layer", i) for i in layers]
            totals.append(_total(modules, "global", None) | _mean_ranks(modules))
            rows += [{"run": run, **row} for row in totals]
        return {"deltas": rows}


def _module_row(name: str, entry: Entry, base_norm: float) -> dict[str, Any]:
    row = _norms("module", module_name(name), layer_index(name), linalg.norm(entry), base_norm)
    if len(entry.shape) == 2:
        s = linalg.singular_values(entry)
        row["spectral_norm"] = s[0].item()
        if s[0] > 0:
            row |= {column: rank(s) for column, rank in _RANKS.items()}
    return row


def _total(modules: Rows, scope: str, layer: int | None) -> dict[str, Any]:
    size = math.hypot(*(row["norm"] for row in modules))
    row = _norms(scope, "", layer, size, math.hypot(*(row["base_norm"] for row in modules)))
    row["spectral_norm"] = max((s for module in modules if (s := module["spectral_norm"]) is not None), default=None)
    return row


def _norms(scope: str, module: str, layer: int | None, size: float, base: float) -> dict[str, Any]:
    ratio = size / base if base > 0 else None
    return {"scope": scope, "module": module, "layer": layer, "norm": size, "base_norm": base, "relative_norm": ratio}


def _mean_ranks(modules: Rows) -> dict[str, float]:
    moved = [row for row in modules if row["stable_rank"] is not None]
    return {column: math.fsum(row[column] for row in moved) / len(moved) for column in _RANKS if moved}
