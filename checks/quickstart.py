"""The quick start with three seeds of the data order: ``python -m checks.quickstart --store S --write PAGE``.

The shipped study, every loss with three seeds and with those analyses alone that its table shows, becomes the block
between ``<!-- seeds -->`` and ``<!-- end -->`` of ``docs/quickstart.md``; without ``--write`` it is printed. It resumes
and takes runs from a store that the quick start has been run into.
"""

import argparse
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import raygeo
from checks.findings import sheet, spread, written_into
from raygeo.analyses.registry import analyses
from raygeo.pipeline.shipped import shipped_studies
from raygeo.pipeline.written import read_yaml
from raygeo.report import typeset
from raygeo.tables import BASE

SEEDS = (0, 1, 2)
SHOWN = {
    "norms": {},
    "similarity": {"pairs": "all"},
    "paths": {"pairs": "all", "accuracy_problems": 0},
    "curvature": {"top_k": 1, "slq_probes": 0, "path_points": 0},
}
"""The analyses that the table shows, and their settings."""


def study() -> dict[str, Any]:
    """The shipped study with three seeds of every loss."""
    settings = read_yaml(shipped_studies()["quickstart"].text)
    settings["runs"] = [run | {"seed": list(SEEDS)} for run in settings["runs"]]
    return settings | {"geometry": dict.fromkeys(analyses()) | SHOWN}


def measured(tables: Callable[[str], pd.DataFrame]) -> pd.DataFrame:
    """What the table shows of every run: a row each, its loss, rate and seed first."""
    runs = tables("runs").set_index("run")[["loss", "lr", "seed"]]
    partner = {seed: name for name, run in runs[runs.loss == "sft"].iterrows() for seed in [run.seed]}
    with_sft = [tuple(sorted((name, partner[run.seed]))) for name, run in runs.iterrows()]

    def of_pairs(table: pd.DataFrame, column: str) -> list[float]:
        values = dict(zip(map(tuple, np.sort(table[["run_a", "run_b"]], axis=1)), table[column], strict=True))
        return [values.get(pair, np.nan) for pair in with_sft]

    accuracy, deltas, paths, curvature = (tables(name) for name in ("accuracy", "deltas", "paths", "curvature"))
    ends = paths.query(f"run_a == '{BASE}' and probe == 'solutions' and metric == 'nll' and alpha == 1")
    top = curvature.query("space == 'delta' and quantity == 'eigenvalue' and index == 0")
    runs["accuracy"] = 100 * accuracy.query("benchmark == 'heldout'").set_index("run").accuracy
    runs["nll"] = ends.set_index("run_b").nll
    runs["norm"] = 100 * deltas.query("scope == 'global'").set_index("run").relative_norm
    runs["cosine"] = of_pairs(tables("similarity").query("scope == 'global'"), "cosine")
    runs["barrier"] = of_pairs(tables("barriers").query("probe == 'solutions' and metric == 'nll'"), "chord")
    runs["eigenvalue"] = top.set_index("run").value
    return runs


COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "accuracy": ("accuracy, %", lambda value: typeset.fixed(value, 1)),
    "nll": ("NLL of held-out solutions", lambda value: typeset.fixed(value, 3)),
    "norm": ("‖Δ‖/‖W‖, %", lambda value: typeset.fixed(value, 2)),
    "cosine": ("cosine to SFT of that seed", lambda value: typeset.fixed(value, 2)),
    "barrier": ("barrier to it", lambda value: typeset.fixed(value, 3)),
    "eigenvalue": ("top eigenvalue", lambda value: typeset.fixed(value, 1)),
}


def table(runs: pd.DataFrame) -> str:
    """Mean and range over seeds of every configuration, and how much of their order all seeds agree on."""
    configurations = [rows for _, rows in runs.groupby(["loss", "lr"], sort=False)]
    lines = [
        [
            f"`{rows.loss.iloc[0]}`, {rows.lr.iloc[0]:g}",
            *(spread(rows[name], write) for name, (_, write) in COLUMNS.items()),
        ]
        for rows in configurations
    ]
    agreed = ["order that all seeds agree on"]
    for name in COLUMNS:
        values = [rows.sort_values("seed")[name].to_numpy() for rows in configurations]
        pairs = [a - b for a, b in combinations([each for each in values if np.isfinite(each).all()], 2)]
        same = sum(bool((gap > 0).all() or (gap < 0).all()) for gap in pairs)
        agreed.append(f"{same} of {len(pairs)} pairs" if pairs else typeset.MISSING)
    return sheet(["loss, learning rate", *(title for title, _ in COLUMNS.values())], [*lines, agreed])


def main() -> None:
    """Run the study as far as the store lacks it, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", required=True, help="where the study is kept")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page whose block is replaced")
    given = parser.parse_args()
    found = raygeo.run(study(), store=given.store)
    text = table(measured(lambda name: found.table(name).to_pandas()))
    if given.write is None:
        print(text)
    else:
        given.write.write_text(written_into(given.write.read_text(), "seeds", text))


if __name__ == "__main__":
    main()
