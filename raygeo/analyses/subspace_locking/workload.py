"""When does a run settle on the directions of its last delta? Subspaces of the deltas kept on the way."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from raygeo.analyses.kept import KeptWorkload
from raygeo.analyses.modules import ModuleSettings, added, place
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.locking import likeness
from raygeo.geometry.weights.subspaces import leading_subspaces
from raygeo.models.delta import Delta
from raygeo.models.run import Run
from raygeo.tables import schema
from raygeo.workload import Rows

SIDES = ("left", "right")


class SubspaceLockingSettings(ModuleSettings):
    """Which directions are followed."""

    k: int = Field(16, ge=1)
    """Singular directions on each side, fewer where a delta's numerical rank is less."""


class SubspaceLocking(KeptWorkload):
    """Sim_K(t) of every run that kept deltas; one task a run and group of its parameters.

    Of each chosen matrix, the K leading left and right singular vectors of the delta at each kept step are compared
    with those of the last one: |V_K(t)' V_K(end)|_F^2 / K (``weights.locking``, arXiv 2606.07082, there of the right).
    ``null`` is the mean of random subspaces; on the right of LoRA deltas these lie in the row spaces of A, so that with
    K near the rank similarity is high from the start whatever is learned. The last step itself has no row. Rows above
    scope "module" are means over matrices, each weighted by its K.
    """

    name = "subspace-locking"
    tables: ClassVar = {
        "subspace_locking": schema(
            """How much of the `k` leading directions of a kept delta lies in those of the last one, by `side`, "left"
            (outputs) or "right" (inputs), and `null`, what it would be of random subspaces. `scope` is "module",
            "layer", "module type" or "global"; above "module" `k` is the sum over matrices, the others are means.""",
            "run: text; step: int; scope, module: text; layer: int; side: text; k: int; similarity, null: float",
        )
    }

    def chosen(self, base: BaseWeights, delta: Delta) -> list[str]:
        """The matrices that ``modules`` choose.

        Raises:
            DeltaError: it chooses none of those that a run holds.
        """
        return self.settings.choose("subspace_locking", [name for name in delta if len(base.shape(name)) == 2])

    def compute(self, state: BaseWeights, payload: tuple[Run, list[str]]) -> dict[str, Rows]:
        """Rows of a group of one run's matrices."""
        run, names = payload
        kept = run.kept(self.steps[run.name])
        *early, last = kept
        rows: Rows = []
        for name in names:
            entry = kept[last][name]
            state.check(name, entry)
            final = leading_subspaces(entry, self.settings.k)
            for step in early:
                here = leading_subspaces(kept[step][name], self.settings.k)
                rows += [
                    {"run": run.name, "step": step, **place(name), "side": side, **vars(found)}
                    for side in SIDES
                    if (found := likeness(here[side], final[side])) is not None
                ]
        return {"subspace_locking": rows}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Means over layers, module types and the whole."""
        rows = tables["subspace_locking"].to_pylist()
        return {"subspace_locking": added(rows, ("run", "step", "side"), _mean)}


def _mean(rows: Rows) -> dict[str, Any]:
    k = sum(row["k"] for row in rows)
    return {"k": k} | {name: sum(row["k"] * row[name] for row in rows) / k for name in ("similarity", "null")}
