"""Does each run move along one direction at an even pace? The deltas kept on the way, and what the first foretell."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raygeo.analyses.kept import KeptWorkload
from raygeo.analyses.modules import added, place, ratio
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.rank_one import extrapolate, rank_one, walk
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Rows


class RankOneSettings(Settings):
    """What is extrapolated from."""

    early: float = Field(0.15, gt=0, lt=1)
    """Share of a run's steps whose kept deltas foretell the last one."""


class RankOneTrajectories(KeptWorkload):
    """Rank-1 trajectories of every run that kept deltas; one task a run and group of its parameters.

    All of a tensor follows from the inner products of its kept deltas (``weights.rank_one``, arXiv 2605.21468), which
    are made without holding more than blocks of dense deltas, or the factors of LoRA. ``share`` is that of the energy
    in the leading direction, R^2 that of its coefficient against the step and its logarithm; ``null_*`` the same of a
    way with moves as long and all orthogonal. ``error`` is the relative error of the last delta as the line through
    the early steps foretells it, ``held_error`` that of the last early delta, ``scaled_error`` that of the last early
    delta at the true final norm, the null that a line has to beat. They are null where fewer than two deltas were kept
    in the ``early`` share of the steps, or too few for a fit.

    Rows above scope "module" add energies before they are divided; R^2 are medians.
    """

    name = "rank-one"
    tables: ClassVar = {
        "rank_one": schema(
            """Rank-1 trajectories of tensors over `snapshots` kept deltas, the last included, of which `early` foretell
            the last. `scope` is "module", "layer", "module type" or "global"; energies are sums of squares, `*_squared`
            squared errors; `null_*` are those of a way of moves as long and orthogonal; above "module" R^2 are medians.
            """,
            "run, scope, module: text; layer, snapshots, early: int; energy, first_energy, null_first_energy, "
            "end_energy, line_squared, held_squared, scaled_squared, share, null_share, r2_linear, r2_log, "
            "null_r2_linear, null_r2_log, error, held_error, scaled_error: float",
        )
    }

    def compute(self, state: BaseWeights, payload: tuple[Run, list[str]]) -> dict[str, Rows]:
        """Rows of a group of one run's parameters; a parameter that never moved has none."""
        run, names = payload
        kept = run.kept(self.steps[run.name])
        steps, rows = np.array(list(kept)), []
        for name in names:
            entries = [delta[name] for delta in kept.values()]
            state.check(name, entries[-1])
            found = _tensor(linalg.gram(entries).numpy(), steps, self.settings.early)
            if found is not None:
                rows.append(_finish({"run": run.name, **place(name), "snapshots": len(steps), **found}))
        return {"rank_one": rows}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of layers, module types and the whole."""
        rows = tables["rank_one"].to_pylist()
        return {"rank_one": [_finish(row) for row in added(rows, ("run", "snapshots"), _sum)]}


_ENERGIES = ("energy", "first_energy", "null_first_energy")
_SQUARES = ("end_energy", "line_squared", "held_squared", "scaled_squared")
_R2 = ("r2_linear", "r2_log", "null_r2_linear", "null_r2_log")


def _tensor(gram: np.ndarray, steps: np.ndarray, early: float) -> dict[str, Any] | None:
    found, null = rank_one(gram, steps), rank_one(walk(gram), steps)
    if found is None or null is None:
        return None
    row: dict[str, Any] = {
        "energy": found.energy,
        "first_energy": found.first,
        "null_first_energy": null.share * found.energy,
    }
    row |= {"r2_linear": found.r2_linear, "r2_log": found.r2_log}
    row |= {"null_r2_linear": null.r2_linear, "null_r2_log": null.r2_log}
    ahead = extrapolate(gram, steps, early)
    if ahead is not None:
        squares = (ahead.end, ahead.line, ahead.held, ahead.scaled)
        row |= {"early": ahead.early, **dict(zip(_SQUARES, squares, strict=True))}
    return row


def _sum(rows: Rows) -> dict[str, Any]:
    out: dict[str, Any] = {name: sum(row[name] for row in rows) for name in _ENERGIES}
    for name in _R2:
        values = [row[name] for row in rows if row[name] is not None]
        out[name] = median(values) if values else None
    ahead = [row for row in rows if row["early"] is not None]
    if ahead:
        out |= {"early": max(row["early"] for row in ahead)}
        out |= {name: sum(row[name] for row in ahead) for name in _SQUARES}
    return out


def _finish(row: dict[str, Any]) -> dict[str, Any]:
    row |= {"share": ratio(row["first_energy"], row["energy"])}
    row |= {"null_share": ratio(row["null_first_energy"], row["energy"])}
    if "early" in row:
        for name, square in (("error", "line"), ("held_error", "held"), ("scaled_error", "scaled")):
            part = ratio(row[f"{square}_squared"], row["end_energy"])
            row[name] = None if part is None else math.sqrt(part)
    return row
