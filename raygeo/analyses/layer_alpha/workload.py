"""The power law of each layer's spectrum before and after, beside what a random delta as long does to it."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any, ClassVar

import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from raygeo.analyses.matrices import MatrixWorkload, Opened
from raygeo.analyses.modules import ModuleSettings, added, place
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.power_law import PowerLaw, fit_power_law
from raygeo.geometry.weights.random_delta import random_like
from raygeo.models.delta import Dense
from raygeo.tables import BASE, schema
from raygeo.workload import Rows


class LayerAlphaSettings(ModuleSettings):
    """Which eigenvalues are fitted."""

    smallest: float = Field(1e-5, ge=0)
    """Eigenvalues up to this are left out, as WeightWatcher does."""
    seed: int = Field(0, ge=0)
    """Seed of the random delta."""


class LayerAlpha(MatrixWorkload):
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
    decompositions = 2
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

    def compute(self, state: Opened, payload: str) -> dict[str, Rows]:
        """Rows of one matrix: the base's and those of all runs."""
        weight = state[0].tensor(payload).double()
        here = place(payload) | {"eigenvalues": min(weight.shape)}
        before = self._fit(weight)
        rows = [{"run": BASE, **here, **_columns(before)}]
        for run, entry in self.held(state, payload):
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
