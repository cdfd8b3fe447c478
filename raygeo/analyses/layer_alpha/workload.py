"""The power law of each layer's spectrum before and after, beside what a random delta as long does to it."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.analyses.modules import ModuleSettings, added, held_matrices, place
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import open_all
from raygeo.geometry.weights.power_law import PowerLaw, fit_power_law
from raygeo.geometry.weights.random_delta import random_like
from raygeo.models.delta import Delta, Dense, module_name
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task, Workload


class LayerAlphaSettings(ModuleSettings):
    """Which eigenvalues are fitted."""

    smallest: float = Field(1e-5, ge=0)
    """Eigenvalues up to this are left out, as WeightWatcher does."""
    seed: int = Field(0, ge=0)
    """Seed of the random delta."""


class LayerAlpha(Workload):
    """The exponent of the eigenvalues of W'W, of the base and of every run; one task a matrix.

    ``weights.power_law`` is fitted to the squared singular values of W and of W + D (LoRA products are multiplied out,
    one matrix at a time). ``change`` is alpha less the base's; ``null_change`` that of the random delta of
    ``weights.random_delta``, which has the shape, rank and singular values of D. Where fewer than 20 eigenvalues are
    left there is no law, and the row is null. Above scope "module" are unweighted means over the ``matrices`` that have
    one, of errors too.

    Exact, in fp64: a matrix [m, n], m <= n, takes 1 + 2 runs products [m, n] [n, m] and as many sets of eigenvalues,
    of full deltas 1 + 3 runs, as the random one has their singular values.
    """

    name = "layer-alpha"
    tables: ClassVar = {
        "layer_alpha": schema(
            """The power law x^-alpha of the eigenvalues of W'W above `xmin`, of the base (`run` "base") and of every
            run. `scope` is "module", "layer", "module type" or "global", above "module" means over `matrices`;
            `distance` is Kolmogorov's and Smirnov's over the `tail`, `change` that of alpha from the base's,
            `null_change` that by a random delta with the same singular values.""",
            "run, scope, module: text; layer, matrices, eigenvalues, tail: int; alpha, error, xmin, distance, change, "
            "null_change: float",
        )
    }

    def __init__(self, settings: LayerAlphaSettings, runs: Sequence[Run], base: AnyPath):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task for each chosen matrix that a run holds; the cost counts the operations of its decompositions.

        Raises:
            DeltaError: none of the matrices that runs hold is chosen by ``modules``.
        """
        base, deltas = self.setup()
        holders = held_matrices(base, self.runs, deltas)
        tasks = []
        for name in self.settings.choose("layer_alpha", holders):
            held = holders[name]
            key = self.key(self.settings, name, [[run.name, run.key] for run in held])
            cost = math.prod(base.shape(name)) * min(base.shape(name)) * (1 + 2 * len(held))
            tasks.append(Task(key, float(cost), name, f"layer alpha of {module_name(name)}"))
        return tasks

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: str) -> dict[str, Rows]:
        """Rows of one matrix: the base's and those of all runs."""
        base, deltas = state
        weight = base.tensor(payload).double()
        here = place(payload) | {"eigenvalues": min(weight.shape)}
        before = self._fit(weight)
        rows = [{"run": BASE, **here, **_columns(before)}]
        for run, delta in zip(self.runs, deltas, strict=True):
            entry = delta.get(payload)
            if entry is None:
                continue
            base.check(payload, entry)
            after = self._fit(weight + entry.dense(torch.float64))
            chance = self._fit(weight + random_like(entry, self.settings.seed, payload).dense(torch.float64))
            changes = {"change": _change(before, after), "null_change": _change(before, chance)}
            rows.append({"run": run.name, **here, **_columns(after), **changes})
        return {"layer_alpha": rows}

    def _fit(self, weight: Tensor) -> PowerLaw | None:
        values = linalg.singular_values(Dense(weight)).square().numpy()
        return fit_power_law(values, self.settings.smallest)

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Means over layers, module types and the whole."""
        known = [row for row in tables["layer_alpha"].to_pylist() if row["alpha"] is not None]
        return {"layer_alpha": added(known, ("run",), _mean)}


_MEANS = ("alpha", "error", "distance", "change", "null_change")


def _columns(law: PowerLaw | None) -> dict[str, Any]:
    return {"matrices": 0} if law is None else {"matrices": 1} | vars(law)


def _change(before: PowerLaw | None, after: PowerLaw | None) -> float | None:
    return None if before is None or after is None else after.alpha - before.alpha


def _mean(rows: Rows) -> dict[str, Any]:
    out: dict[str, Any] = {"matrices": len(rows), "eigenvalues": sum(row["eigenvalues"] for row in rows)}
    for name in _MEANS:
        values = [row[name] for row in rows if row[name] is not None]
        out[name] = fmean(values) if values else None
    return out
