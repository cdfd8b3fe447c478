"""Principal angles between the leading singular subspaces of two runs' deltas, beside those of random subspaces."""

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from raygeo.analyses.pairs import Pairs, PairSettings, paired, pairs_key
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import open_all
from raygeo.geometry.weights.subspaces import Subspace, compare_subspaces, leading_subspaces
from raygeo.models.delta import Delta, layer_index, module_name
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload


class DirectionSettings(Settings):
    """Which directions are compared."""

    k: int = Field(8, ge=1)
    """Singular directions compared on each side, fewer where a delta's numerical rank is less."""


class SubspaceSettings(PairSettings, DirectionSettings):
    """Options of the subspace comparison."""


class Subspaces(Workload):
    """Principal angles of unordered pairs of runs; one task a module, rows for table ``subspaces``.

    Of each matrix that both runs changed, the top-k left and right singular subspaces are compared, with k of the
    settings or the lesser numerical rank if that is less. ``index`` counts the angles from the smallest, 0;
    ``dimension`` is that of the singular vectors; ``null_degrees`` is the mean of that angle by chance (``null_angles``
    of ``weights.subspaces``). A right-hand null below that of R^dimension says that the two deltas' row spaces overlap,
    as those of LoRA runs started from one A do.
    """

    name = "subspaces"
    tables: ClassVar = {
        "subspaces": schema(
            """Principal angles of pairs of runs by module and `side`, "left" (outputs) or "right" (inputs), counted by
            `index` from the smallest of `k`. `null_degrees` is the mean of the same angle between two random
            k-dimensional subspaces of that space (on the right of two LoRA deltas: of their row spaces).""",
            "run_a, run_b, module: text; layer: int; side: text; k, dimension, index: int; angle_degrees, "
            "null_degrees: float",
        )
    }

    def __init__(self, settings: SubspaceSettings, runs: Sequence[Run], base: AnyPath, chosen: Pairs | None = None):
        self.settings = settings
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base
        self.chosen = None if settings.pairs == "all" else chosen

    def tasks(self) -> list[Task]:
        """One task for each matrix that at least two runs hold; the cost is how many numbers are read."""
        base, deltas = self.setup()
        holders: defaultdict[str, list[tuple[Run, Delta]]] = defaultdict(list)
        for run, delta in zip(self.runs, deltas, strict=True):
            for name in delta:
                holders[name].append((run, delta))
        tasks = []
        for name, held in sorted(holders.items()):
            if len(base.shape(name)) == 2 and len(held) > 1:
                runs = [[run.name, run.key] for run, _ in held]
                pairs = pairs_key(self.chosen, (run.name for run, _ in held))
                key = self.key(DirectionSettings.of(self.settings), name, runs, *pairs)
                cost = sum(delta.sizes[name] for _, delta in held)
                tasks.append(Task(key, float(cost), name, f"subspaces of {module_name(name)}"))
        return tasks

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: str) -> dict[str, Rows]:
        """Rows of one parameter, all chosen pairs; each delta is decomposed once."""
        base, deltas = state
        spaces = {}
        for run, delta in zip(self.runs, deltas, strict=True):
            entry = delta.get(payload)
            if entry is not None:
                base.check(payload, entry)
                spaces[run.name] = leading_subspaces(entry, self.settings.k)
        place = {"module": module_name(payload), "layer": layer_index(payload)}
        return {
            "subspaces": [
                {"run_a": run_a, "run_b": run_b, **place, "side": side, **row}
                for (run_a, a), (run_b, b) in paired(list(spaces.items()), self.chosen, lambda item: item[0])
                for side in ("left", "right")
                for row in _angle_rows(a[side], b[side])
            ]
        }


def _angle_rows(a: Subspace, b: Subspace) -> Rows:
    found = compare_subspaces(a, b)
    k, dimension = len(found.degrees), len(a.basis)
    return [
        {"k": k, "dimension": dimension, "index": i, "angle_degrees": float(angle), "null_degrees": float(null)}
        for i, (angle, null) in enumerate(zip(found.degrees, found.null_degrees, strict=True))
    ]
