"""One line a run: the numbers worth comparing across runs, taken from a study's tables."""

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import median

import pyarrow as pa


def run_summaries(tables: Mapping[str, pa.Table], reference: str) -> dict[str, dict[str, float]]:
    """Metrics by run name (the base included) -> metric -> value; what a table does not hold is left out.

    Comparisons are with the run ``reference``: its cosine, the median of its smallest left principal angles (degrees),
    its NLL barriers over the chord (straight, at equal norms, and of a trained curve), its last-layer CKA, the
    agreement of top guesses, the gradient of its loss at the base. ``kl_to_base`` is KL(run || base) in nats a token,
    ``kl_from_base`` KL(base || run); of the yardsticks z, the cosine of centred unit deltas, and the
    distance at equal norms. Curvature is that of the first space of the table.
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
    for row in tables["yardsticks"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair:
            [other] = pair - {reference}
            put(other, "cosine_z_to_reference", row["z"])
            put(other, "centred_cosine_to_reference", row["matched_centred_cosine"])
            put(other, "matched_distance_to_reference", row["matched_distance"])
    for row in tables["off_principal"].to_pylist():
        if row["scope"] == "global":
            put(row["run"], "update_sparsity", row["update_sparsity"])
            put(row["run"], "spectral_shift", row["spectral_shift"])
    for row in tables["mask_overlaps"].to_pylist():
        if row["scope"] == "global" and row["mask"] in ("principal", "low-magnitude"):
            put(row["run"], f"{row['mask'].replace('-', '_')}_overlap", row["overlap"])
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
    for row in tables["matched_barriers"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair:
            [other] = pair - {reference}
            put(other, f"matched_barrier_to_reference.{row['probe']}", row["chord"])
    for row in tables["curve_barriers"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair and row["shape"] != "line":
            [other] = pair - {reference}
            put(other, f"curve_barrier_to_reference.{row['shape']}", row["chord"])
    best: dict[str, float] = {}
    for row in tables["wise"].to_pylist():
        if row["chosen_loss"] < best.get(row["run"], math.inf):
            best[row["run"]] = row["chosen_loss"]
            put(row["run"], "wise_best_alpha", row["alpha"])
    for row in tables["soups"].to_pylist():
        if row["kind"] == "run":
            put(row["soup"], "token_confidence", row["confidence"])
            put(row["soup"], "token_ece", row["ece"])
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
        if row["layer"] == last and row["treatment"] == "plain" and len(pair) == 2:
            for name, one in (("base", "base"), ("reference", reference)):
                if one in pair:
                    [other] = pair - {one}
                    put(other, f"last_cka_to_{name}", row["cka"])
    last = max((row["layer"] for row in tables["drift"].to_pylist()), default=0)
    for row in tables["drift"].to_pylist():
        if row["layer"] == last:
            put(row["run"], "last_drift_cosine", row["cosine"])
            put(row["run"], "last_drift_change", row["change"])
    for row in tables["divergences"].to_pylist():
        if row["run_a"] == "base":
            put(row["run_b"], _FROM_BASE[row["quantity"]], row["value"])
        elif reference in (row["run_a"], row["run_b"]) and row["quantity"] == "agreement":
            [other] = {row["run_a"], row["run_b"]} - {reference}
            put(other, "agreement_with_reference", row["value"])
    for row in tables["outputs"].to_pylist():
        put(row["run"], f"predictions.{row['quantity']}", row["value"])
    for row in tables["coherence"].to_pylist():
        put(row["run"], f"coherence_at_{row['at']}", row["coherence"])
    for row in tables["gradient_cosines"].to_pylist():
        pair = {row["run_a"], row["run_b"]}
        if reference in pair:
            [other] = pair - {reference}
            put(other, "gradient_cosine_to_reference", row["cosine"])
    return dict(summaries)


_FROM_BASE = {"kl_ba": "kl_to_base", "kl_ab": "kl_from_base", "agreement": "agreement_with_base"}
