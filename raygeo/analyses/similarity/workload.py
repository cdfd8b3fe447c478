"""Do two runs move the weights in the same direction? Cosines and orthogonal fractions of deltas, beside their null."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from raygeo.analyses.pairs import Pairs, PairSettings, pairs_key
from raygeo.geometry.weights.base import BaseWeights
from raygeo.geometry.weights.grouping import group_label, open_all, parameter_groups
from raygeo.geometry.weights.moments import Moments, moments
from raygeo.models.delta import Delta, layer_index, module_name
from raygeo.models.run import Run
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

_MOMENTS = ("inner", "residual", "variance")


class SimilaritySettings(PairSettings):
    """Of which pairs similarities are kept by module and layer; those of whole deltas are kept of all."""


class Similarity(Workload):
    """Cosine, orthogonal fraction and null of ordered pairs of runs, for table ``similarity``.

    Scopes are "module" (one parameter), "layer" (the parameters of one transformer block) and "global" (all). The
    orthogonal fraction is run b's share orthogonal to run a, projected parameter by parameter (``Moments``); over
    several parameters it differs between (a, b) and (b, a), so both are given. A parameter that one of two runs lacks
    counts as zero there; two that share none have cosine 0 and null 0. Where either delta is zero in a scope, cosine,
    fraction and null are null.

    A task is a group of parameters of all runs: every delta is read once for all pairs, and memory holds a block of
    rows of one parameter of all runs at a time (of LoRA deltas, the factors of one parameter). Table ``moments`` has
    what the rows are made of, by parameter (``Moments``; ``run_a`` is i, ``run_b`` j, runs with themselves included);
    those of layers and of the whole are aggregated from it by adding up. Where not all pairs are compared, modules and
    layers have rows of the chosen pairs alone, and ``moments`` those of a task's modules of one layer added up.
    """

    name = "similarity"
    tables: ClassVar = {
        "similarity": schema(
            """Cosines of ordered pairs of runs. `scope` is "global", "layer" or "module"; `name` is "" for "global",
            else the number of the layer or the module; `orthogonal_fraction` is that of run b without the direction of
            run a; `null_sd` is the standard deviation of the cosine of random directions.""",
            "run_a, run_b, scope, name: text; cosine, orthogonal_fraction, null_sd: float",
        ),
        "moments": schema(
            """What `similarity` is made of, by module and ordered pair, each run with itself included; those of
            disjoint modules add up, and those of many runs stand added up, under a first module. `inner` is the inner
            product of the two deltas, `residual` the energy of b without the direction of a, `variance` that of the
            inner product if both directions were random and their norms kept.""",
            "run_a, run_b, module: text; layer: int; inner, residual, variance: float",
        ),
    }

    def __init__(self, settings: SimilaritySettings, runs: Sequence[Run], base: AnyPath, chosen: Pairs | None = None):
        self.settings = settings
        self.chosen = None if settings.pairs == "all" else chosen
        self.runs = [run for run in runs if run.delta is not None]
        self.base = base

    def tasks(self) -> list[Task]:
        """One task a group of parameters, none if fewer than two runs have a delta; the cost is the numbers to read."""
        if len(self.runs) < 2:
            return []
        runs = sorted([run.name, run.key] for run in self.runs)
        pairs = pairs_key(self.chosen, (run.name for run in self.runs))
        return [
            Task(
                self.key({}, runs, names, *pairs),
                float(cost),
                names,
                f"similarity of {len(runs)} runs, {group_label(names)}",
            )
            for names, cost in parameter_groups(open_all(self.runs))
        ]

    def setup(self) -> tuple[BaseWeights, list[Delta]]:
        """Open the base checkpoint, which every delta must fit, and every delta."""
        return BaseWeights(self.base), open_all(self.runs)

    def compute(self, state: tuple[BaseWeights, list[Delta]], payload: list[str]) -> dict[str, Rows | pa.Table]:
        """Module rows of the chosen pairs, and moments of all, for a group of parameters."""
        base, deltas = state
        runs = [run.name for run in self.runs]
        kept = self._kept(runs)
        found: list[tuple[str, int | None, Moments]] = []
        similar = []
        for name in payload:
            entries = [delta.get(name) for delta in deltas]
            for entry in entries:
                if entry is not None:
                    base.check(name, entry)
            part, module, layer = moments(entries), module_name(name), layer_index(name)
            similar.append(_similarities(runs, "module", module, part, kept))
            if self.chosen is not None and found and found[-1][1] == layer:
                found[-1] = (*found[-1][:2], found[-1][2] + part)
            else:
                found.append((module, layer, part))
        return {
            "similarity": pa.concat_tables(similar),
            "moments": pa.concat_tables(_moments(runs, *of) for of in found),
        }

    def aggregate(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """Rows of every layer and of all parameters."""
        frame = tables["moments"].to_pandas()
        if frame.empty:
            return {}
        runs = [run.name for run in self.runs]
        kept = self._kept(runs)
        parts = [
            _similarities(runs, "layer", str(int(layer)), added_moments(runs, part), kept)
            for layer, part in frame.groupby("layer")
        ]
        whole = _similarities(runs, "global", "", added_moments(runs, frame), ~np.eye(len(runs), dtype=bool))
        return {"similarity": pa.concat_tables([*parts, whole]).to_pylist()}

    def _kept(self, runs: list[str]) -> np.ndarray:
        """Which ordered pairs have rows by module and layer, [N, N]."""
        if self.chosen is None:
            return ~np.eye(len(runs), dtype=bool)
        return np.array([[frozenset((a, b)) in self.chosen for b in runs] for a in runs])


def added_moments(runs: Sequence[str], table: pd.DataFrame) -> Moments:
    """Moments of the deltas of ``runs`` over all modules in rows of table ``moments``, added in the order of rows."""
    table = table[table.run_a.isin(runs) & table.run_b.isin(runs)]
    total = Moments.zero(len(runs))
    i, j = (pd.Index(runs).get_indexer(table[column]) for column in ("run_a", "run_b"))
    for column in _MOMENTS:
        np.add.at(getattr(total, column), (i, j), table[column].to_numpy())
    return total


def _similarities(runs: list[str], scope: str, name: str, part: Moments, kept: np.ndarray) -> pa.Table:
    columns = {"cosine": part.cosine, "orthogonal_fraction": part.orthogonal_fraction, "null_sd": part.null_sd}
    return _table("similarity", runs, kept, {"scope": scope, "name": name}, columns)


def _moments(runs: list[str], module: str, layer: int | None, part: Moments) -> pa.Table:
    every = np.ones((len(runs), len(runs)), dtype=bool)
    columns = {column: getattr(part, column) for column in _MOMENTS}
    return _table("moments", runs, every, {"module": module, "layer": layer}, columns)


def _table(
    table: str,
    runs: list[str],
    kept: np.ndarray,
    same: Mapping[str, str | int | None],
    columns: Mapping[str, np.ndarray],
) -> pa.Table:
    """Rows of the ``kept`` ordered pairs: what is the ``same`` in all, and of ``columns`` [N, N], where NaN is null."""
    i, j = np.nonzero(kept)
    schema, names = Similarity.tables[table], pa.array(runs, pa.string())
    made = {"run_a": names.take(pa.array(i)), "run_b": names.take(pa.array(j))}
    made |= {name: pa.repeat(pa.scalar(value, schema.field(name).type), len(i)) for name, value in same.items()}
    made |= {name: pa.array(values[i, j], pa.float64(), from_pandas=True) for name, values in columns.items()}
    return pa.table([made[name] for name in schema.names], schema=schema)
