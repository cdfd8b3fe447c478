"""Do two runs pull the same entries in opposite directions? Beside what chance gives."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from raygeo.analyses.matrices import Opened, ParameterWorkload
from raygeo.analyses.modules import added, place, ratio
from raygeo.analyses.pairs import Pairs, PairSettings, paired, pairs_key
from raygeo.geometry.weights.signs import signs
from raygeo.models.delta import module_name
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task


class ShuffleSettings(Settings):
    """What signs are compared with."""

    seed: int = Field(0, ge=0)
    """Seed of the order in which the columns of one of two deltas are shuffled."""


class SignInterferenceSettings(PairSettings, ShuffleSettings):
    """Options of the comparison of signs."""


class SignInterference(ParameterWorkload):
    """Opposite signs of unordered pairs of runs, over all parameters that both changed; one task a parameter.

    ``share`` is that of entries of opposite sign among those that both runs change (arXiv 2605.00610 reports about
    45 % between SFT and RLVR). ``weighted_share`` is that of sum |a b| instead, in which tiny entries do not count; the
    cosine is (1 - 2 ``weighted_share``) sum |a b| / (|a| |b|). ``null_share`` is the mean were the entries of one in
    random places, in closed form; ``shuffled_share`` that with the columns of run b in one random order, which leaves
    a low-rank delta one of that rank. ``norm_ratio`` is |a| / |b|.

    Entries are exact: of dense deltas a block of rows is read at a time, LoRA products are made block by block in fp64.
    """

    name = "sign-interference"
    tables: ClassVar = {
        "sign_interference": schema(
            """Entries of opposite sign among those that both of two runs changed. `scope` is "module", "layer", "module
            type" or "global"; `expected_*` are means with the entries of one in random places, `shuffled_*` counts with
            the columns of run b in random order; `products` is sum |a b|, `opposite_products` what entries of opposite
            sign have of it.""",
            "run_a, run_b, scope, module: text; layer, both, opposite, shuffled_both, shuffled_opposite: int; "
            "expected_both, expected_opposite, products, opposite_products, energy_a, energy_b, share, null_share, "
            "shuffled_share, weighted_share, norm_ratio: float",
        )
    }

    def __init__(
        self, settings: SignInterferenceSettings, runs: Sequence[Run], base: AnyPath, chosen: Pairs | None = None
    ):
        super().__init__(settings, runs, base)
        self.chosen = None if settings.pairs == "all" else chosen

    def tasks(self) -> list[Task]:
        """One task for each parameter that at least two runs hold; the cost is how many entries are compared."""
        base, deltas = self.setup()
        holders: defaultdict[str, list[Run]] = defaultdict(list)
        for run, delta in zip(self.runs, deltas, strict=True):
            for name in delta:
                holders[name].append(run)
        tasks = []
        for name, held in sorted(holders.items()):
            if len(held) > 1:
                pairs = pairs_key(self.chosen, (run.name for run in held))
                runs = [[run.name, run.key] for run in held]
                key = self.key(ShuffleSettings.of(self.settings), name, runs, *pairs)
                cost = float(math.prod(base.shape(name)) * len(held))
                tasks.append(Task(key, cost, name, f"signs of {module_name(name)}"))
        return tasks

    def compute(self, state: Opened, payload: str) -> dict[str, Rows]:
        """Rows of one parameter, all chosen pairs."""
        entries = {run.name: entry for run, entry in self.held(state, payload)}
        found, names = signs(list(entries.values()), self.settings.seed), list(entries)
        energy = found.inner.diagonal()
        rows = []
        for i, j in paired(range(len(names)), self.chosen, names.__getitem__):
            row = {"run_a": names[i], "run_b": names[j], **place(payload)}
            row |= {column: int(getattr(found, column)[i, j]) for column in _COUNTS}
            row |= {column: float(getattr(found, column)[i, j]) for column in ("expected_both", "expected_opposite")}
            row |= {"products": float(found.products[i, j]), "energy_a": float(energy[i]), "energy_b": float(energy[j])}
            row["opposite_products"] = max(0.0, float(found.products[i, j] - found.inner[i, j]) / 2)
            rows.append(_finish(row))
        return {"sign_interference": rows}

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of layers, module types and the whole: counts and energies are added before they are divided."""
        rows = tables["sign_interference"].to_pylist()
        return {"sign_interference": [_finish(row) for row in added(rows, ("run_a", "run_b"), _sum)]}


_COUNTS = ("both", "opposite", "shuffled_both", "shuffled_opposite")
_ADDED = (*_COUNTS, "expected_both", "expected_opposite", "products", "opposite_products", "energy_a", "energy_b")


def _sum(rows: Rows) -> dict[str, Any]:
    return {name: sum(row[name] for row in rows) for name in _ADDED}


def _finish(row: dict[str, Any]) -> dict[str, Any]:
    norms = ratio(row["energy_a"], row["energy_b"])
    return row | {
        "share": ratio(row["opposite"], row["both"]),
        "null_share": ratio(row["expected_opposite"], row["expected_both"]),
        "shuffled_share": ratio(row["shuffled_opposite"], row["shuffled_both"]),
        "weighted_share": ratio(row["opposite_products"], row["products"]),
        "norm_ratio": None if norms is None else math.sqrt(norms),
    }
