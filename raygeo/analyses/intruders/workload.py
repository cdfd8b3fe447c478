"""Intruder dimensions of the tuned weights, beside those that a random delta as long makes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import torch
from pydantic import Field

from raygeo.analyses.matrices import MatrixWorkload, Opened
from raygeo.analyses.modules import ModuleSettings, added, place, ratio
from raygeo.geometry.weights.intruders import Leading, leading, left_vectors
from raygeo.geometry.weights.random_delta import random_like
from raygeo.tables import schema
from raygeo.workload import Rows


class IntruderSettings(ModuleSettings):
    """What counts as an intruder."""

    k: int = Field(10, ge=1)
    """Leading left singular vectors of the tuned weights that are looked at."""
    epsilon: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field((0.5,), min_length=1)
    """Cosines below which a vector is an intruder; the first is the one in MLflow."""
    seed: int = Field(0, ge=0)
    """Seed of the random delta."""


class Intruders(MatrixWorkload):
    """Intruder dimensions of every run; one task a matrix, so that the base's is decomposed once for all runs.

    Of a matrix W and a run's change D (LoRA products are multiplied out, one matrix at a time), the ``k`` leading left
    singular vectors of W + D whose largest absolute cosine to all left singular vectors of W is below epsilon
    (``weights.intruders``, arXiv 2410.21228): how many, and the share of |D|_F^2 along them, ``energy_share``. Beside
    both, ``null_*``, stands what the random delta of ``weights.random_delta`` gives, which has the shape, rank and
    singular values of D. A threshold alone says little: where the base's singular values lie close together, any small
    change mixes their vectors, and any direction that D makes leading is near-orthogonal to all others.

    Everything is exact, in fp64: a matrix [m, n], m <= n, takes 1 + 2 runs eigenproblems of size m and as many products
    [m, n] [n, m], of full deltas 1 + 3 runs, as the random one has their singular values; memory holds about six such
    matrices. Rows above scope "module" add counts and energies.
    """

    name = "intruders"
    decompositions = 2
    tables: ClassVar = {
        "intruders": schema(
            """Intruder dimensions among the leading left singular vectors (`directions` of them) of the tuned weights.
            `scope` is "module", "layer", "module type" or "global". `delta_energy` is the squared norm of the change,
            `intruder_energy` that along the intruders; `null_*` are those of a random delta with the same singular
            values.""",
            "run, scope, module: text; layer: int; epsilon: float; directions, intruders, null_intruders: int; "
            "delta_energy, intruder_energy, null_intruder_energy, intruder_share, null_intruder_share, energy_share, "
            "null_energy_share: float",
        )
    }

    def compute(self, state: Opened, payload: str) -> dict[str, Rows]:
        """Rows of one matrix, all runs and thresholds."""
        weight = state[0].tensor(payload)
        before = left_vectors(weight)
        k = min(self.settings.k, *weight.shape)
        rows: Rows = []
        for run, entry in self.held(state, payload):
            move = entry.dense(torch.float64)
            found = leading(before, weight, move, k)
            chance = leading(before, weight, random_like(entry, self.settings.seed, payload).dense(torch.float64), k)
            energy = move.square().sum().item()
            rows += [
                {"run": run.name, **place(payload), "epsilon": epsilon, "directions": k, "delta_energy": energy}
                | _counted(found, epsilon, "")
                | _counted(chance, epsilon, "null_")
                for epsilon in self.settings.epsilon
            ]
        return {"intruders": [_finish(row) for row in rows]}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of layers, module types and the whole."""
        rows = tables["intruders"].to_pylist()
        return {"intruders": [_finish(row) for row in added(rows, ("run", "epsilon"), _sum)]}


_ADDED = ("directions", "intruders", "null_intruders", "delta_energy", "intruder_energy", "null_intruder_energy")


def _counted(found: Leading, epsilon: float, prefix: str) -> dict[str, Any]:
    mask = found.intruders(epsilon)
    return {f"{prefix}intruders": int(mask.sum()), f"{prefix}intruder_energy": found.energy[mask].sum().item()}


def _sum(rows: Rows) -> dict[str, Any]:
    return {name: sum(row[name] for row in rows) for name in _ADDED}


def _finish(row: dict[str, Any]) -> dict[str, Any]:
    for prefix in ("", "null_"):
        row |= {
            f"{prefix}intruder_share": ratio(row[f"{prefix}intruders"], row["directions"]),
            f"{prefix}energy_share": ratio(row[f"{prefix}intruder_energy"], row["delta_energy"]),
        }
    return row
