"""One line a run: the numbers worth comparing across runs, taken from a study's tables."""

from collections import defaultdict
from collections.abc import Mapping
from statistics import median

import pyarrow as pa


def run_summaries(tables: Mapping[str, pa.Table], reference: str) -> dict[str, dict[str, float]]:
    """Metrics by run name (the base included) -> metric -> value; what a table does not hold is left out.

    Comparisons are with the run ``reference``: its cosine, the median of its smallest left principal angles (degrees),
    its NLL barrier over the chord, its last-layer CKA. Curvature is that of the first space of the table.
    """
    summaries: defaultdict[str, dict[str, float]] = defaultdict(dict)

    def put(run: str, name: str, value: float | None) -> None:
        if value is not None:
            summaries[run][name] = value

    for row in tables["accuracy"].to_pylist():
        put(row["run"], f"accuracy.{row['benchmark']}", row["accuracy"])
        put(row["run"], f"accuracy_low.{row['benchmark']}", row["low"])
        put(row["run"], f"accuracy_high.{row['benchmark']}", row["high"])
    for row in tables["deltas"].to_pylist():
        if row["scope"] == "global":
            for name in ("norm", "relative_norm", "effective_rank", "stable_rank"):
                put(row["run"], f"delta_{name}", row[name])
    for row in tables["similarity"].to_pylist():
        if row["scope"] == "global" and row["run_b"] == reference and row["run_a"] != reference:
            put(row["run_a"], "cosine_to_reference", row["cosine"])
            put(row["run_a"], "orthogonal_to_reference", row["orthogonal_fraction"])
    angles: defaultdict[str, list[float]] = defaultdict(list)
    for row in tables["subspaces"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair and row["side"] == "left" and row["index"] == 0:
            [other] = pair - {reference}
            angles[other].append(row["angle_degrees"])
    for run, values in angles.items():
        put(run, "first_left_angle_to_reference", median(values))
    for row in tables["paths"].to_pylist():
        for end, run in ((0.0, row["run_a"]), (1.0, row["run_b"])):
            if row["alpha"] == end:
                put(run, f"nll.{row['probe']}", row["loss"])
    for row in tables["barriers"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair and len(pair) == 2:
            [other] = pair - {reference}
            put(other, f"barrier_to_reference.{row['probe']}", row["chord"])
    spaces: dict[str, str] = {}
    for row in tables["curvature"].to_pylist():
        if row["operator"] is None or row["space"] != spaces.setdefault(row["operator"], row["space"]):
            continue
        if row["quantity"] == "eigenvalue" and row["index"] == 0:
            put(row["run"], f"top_eigenvalue.{row['operator']}", row["value"])
        elif row["quantity"] == "trace":
            put(row["run"], f"trace.{row['operator']}", row["value"])
    for row in tables["sharpness"].to_pylist():
        put(row["run"], f"sharpness.{row['measure'].replace(' ', '_')}.{row['radius']:g}", row["value"])
    last = max((row["layer"] for row in tables["cka"].to_pylist()), default=0)
    for row in tables["cka"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if row["layer"] == last and len(pair) == 2:
            for name, one in (("base", "base"), ("reference", reference)):
                if one in pair:
                    [other] = pair - {one}
                    put(other, f"last_cka_to_{name}", row["cka"])
    return dict(summaries)
