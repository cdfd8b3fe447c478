"""What a study's numbers do not show, worked out from its tables: one sentence or two for each limit that applies."""

import json

import pandas as pd

from raygeo.report import typeset
from raygeo.report.view import View
from raygeo.tables import LORA

_MATCHED_NORMS = 1.25
_FP32 = 1e-6


def seed_pairs(view: View) -> pd.DataFrame:
    """Pairs of runs whose settings differ in nothing but a seed: the study's noise floor.

    Columns: run_a, run_b, differs ("data order", "adapter initialisation" or both), cosine.
    """
    runs = view.runs.set_index("run")
    rows = []
    for row in view.frame("similarity", scope="global").dropna(subset="cosine").itertuples():
        if row.run_a == row.run_b or not {row.run_a, row.run_b} <= set(runs.index):
            continue
        a, b = runs.loc[row.run_a], runs.loc[row.run_b]
        differs = [what for column, what in _SEEDS.items() if a[column] != b[column]]
        if differs and _seedless(a) == _seedless(b):
            rows.append((row.run_a, row.run_b, " and ".join(differs), row.cosine))
    return pd.DataFrame(rows, columns=["run_a", "run_b", "differs", "cosine"])


_SEEDS = {"seed": "data order", "init_seed": "adapter initialisation"}


def _seedless(run: pd.Series) -> tuple:
    """What a run was trained with, but for its seeds."""
    params = json.loads(run.params) if isinstance(run.params, str) else {}
    training = {name: value for name, value in params.get("training", {}).items() if name not in _SEEDS}
    return run.loss, run.lr, params.get("loss"), training


def limits(view: View) -> list[str]:
    """Every automatic caveat that applies to this study, in the order of the page's sections."""
    rules = (
        _failures,
        _selection,
        _seeds,
        _problems,
        _tests,
        _norms,
        _trajectories,
        _angles,
        _paths,
        _curvature,
        _expansions,
        _sharpness,
        _cka,
    )
    return [sentence for rule in rules for sentence in rule(view)]


def _failures(view: View) -> list[str]:
    failed = view.runs[view.runs.run.isin(view.failed)]
    return [
        f"{row.run} has no result: {row.status}, {(row.reason or 'no reason was recorded').rstrip('.')}."
        for row in failed.itertuples()
    ]


def _selection(view: View) -> list[str]:
    trials = view.frame("trials").dropna(subset="rank")
    configurations = trials.drop_duplicates(["entry", "values"])
    if len(configurations) < 2:
        return []
    return [
        f"{typeset.count(len(configurations))} configurations were compared on the held-out data shown here. The best "
        "of many is flattered by chance: measure it again on data that played no part in the choice."
    ]


def _seeds(view: View) -> list[str]:
    if view.runs.empty:
        return []
    seeds = view.runs.groupby(["loss", "lr"], dropna=False)[["seed", "init_seed"]].nunique().max(axis=1)
    single, total = int((seeds <= 1).sum()), len(seeds)
    if not single:
        return []
    which = "Every combination" if single == total else f"{single} of {total} combinations"
    verb = "was" if single in (1, total) else "were"
    return [
        f"{which} of loss and learning rate {verb} trained with one seed only, so nothing here is an interval over "
        "training runs: intervals of accuracy are over problems, and another seed may give another number."
    ]


def _problems(view: View) -> list[str]:
    sentences = []
    for benchmark, rows in view.frame("accuracy").groupby("benchmark", sort=False):
        half = float((rows.high - rows.low).max() / 2)
        sentence = (
            f"{benchmark} has {typeset.count(rows.n.max())} problems: one accuracy is known to about "
            f"± {typeset.fixed(100 * half, 1)} points at worst."
        )
        cut = rows[rows.truncated > 0]
        if not cut.empty:
            worst = cut.loc[(cut.truncated / cut.n).idxmax()]
            sentence += (
                f" Answers cut off at the length limit count as wrong; {worst.run} has the most, "
                f"{typeset.percent(worst.truncated / worst.n)}."
            )
        sentences.append(sentence)
    return sentences


def _tests(view: View) -> list[str]:
    sizes = view.frame("mcnemar").groupby("benchmark", sort=False).size()
    return [
        f"p-values on {benchmark} are Holm-corrected over {size} pairs; a large one does not show two runs to be equal."
        for benchmark, size in sizes.items()
    ]


def _norms(view: View) -> list[str]:
    moved = view.runs[view.runs.delta_norm > 0].set_index("run").delta_norm
    if len(moved) < 2 or moved.max() <= _MATCHED_NORMS * moved.min():
        return []
    return [
        f"The runs are not matched in how far they moved: the delta of {moved.idxmax()} is "
        f"{typeset.significant(moved.max() / moved.min(), 2)} times as long as that of {moved.idxmin()}. Differences "
        "in accuracy, paths, CKA and curvature mix a delta's direction with its length; cosines and angles do not."
    ]


def _trajectories(view: View) -> list[str]:
    frame = view.frame("trajectories")
    if frame.empty:
        return []
    points = frame.groupby("run").size()
    count = " to ".join(typeset.count(n) for n in sorted({points.min(), points.max()}))
    sentences = [
        f"Trajectories have {count} kept steps a run. They are points of one curve, not independent, so a difference "
        "of AIC between two laws of growth is a description and no test; nothing is known of the way between them, "
        "which is why path lengths are lower bounds. AdamW's first steps have the learning rate's size whatever the "
        "gradient, so early norms follow the warm-up as much as the loss."
    ]
    runs = view.runs[view.runs.run.isin(points.index)]
    trained = [json.loads(text).get("training", {}) for text in runs.params.dropna()]
    if any(training.get("schedule", "constant") != "constant" for training in trained):
        sentences.append(
            "Learning rates fell towards the end: late norms that stay flat and late deltas that point where the final "
            "one does are the schedule's doing at least in part, and no sign that training had converged."
        )
    if any(training.get("lora") for training in trained):
        sentences.append(
            "LoRA starts with B at zero, so at first only B moves, within the few input directions of the initial A: "
            "early cosines between runs of one adapter initialisation are raised by what they share from the start."
        )
    return sentences


def _angles(view: View) -> list[str]:
    frame = view.frame("subspaces").dropna(subset="null_degrees")
    if frame.empty:
        return []
    widest = frame[frame.k == frame.k.max()].groupby(["side", "run_a", "run_b", "module"]).null_degrees
    lows, highs = widest.min().groupby("side").median(), widest.max().groupby("side").median()
    ranges = " and ".join(f"{low:.0f}° to {highs[side]:.0f}° on the {side}" for side, low in lows.items())
    return [
        f"Principal angles between random subspaces of the same size ({frame.k.max()} directions) run from {ranges} "
        "(medians, smallest to largest): angles near these show nothing shared, however far from 90° they are."
    ]


def _paths(view: View) -> list[str]:
    frame = view.frame("paths")
    if frame.empty:
        return []
    grids = " and ".join(
        f"{alphas.nunique()} values of α for {_METRICS.get(metric, metric)}"
        for metric, alphas in frame.groupby("metric", sort=False).alpha
    )
    return [
        f"Paths were sampled at {grids}. A barrier is a maximum over the grid with the ends included: it cannot be "
        "negative by construction, noise biases it upwards, and what lies between grid points is not seen."
    ]


_METRICS = {"nll": "the NLL", "accuracy": "accuracy"}


def _curvature(view: View) -> list[str]:
    frame = view.frame("curvature")
    if frame.empty:
        return []
    tokens = frame.tokens.dropna()
    size = f" over {typeset.count(tokens.max())} tokens" if len(tokens) else ""
    sentences = [
        f"Curvature is that of one probe loss{size}, the same for all runs: it is not the sharpness of the loss a run "
        "was trained on. Traces and densities are estimates from random vectors, given with standard errors between "
        "them; an isolated eigenvalue's share of the density is one of 1/dimension, far below that error."
    ]
    if (frame.space == LORA).any():
        sentences.append(
            "Curvature over LoRA factors depends on how a delta is split into B and A (scaling one up and the other "
            "down changes it and not the model), so it compares neither runs nor spaces."
        )
    if frame.space.fillna("").str.startswith("block ").any():
        sentences.append("Spectra of single blocks leave out the curvature between blocks: they do not add up.")
    return sentences


def _expansions(view: View) -> list[str]:
    frame = view.frame("expansions")
    if frame["at"].notna().sum() == 0:
        return []
    return [
        "Predicted paths use the Hessian within the span of the runs' deltas only and are exact where the loss is "
        "quadratic; agreement on a path between runs says nothing of directions that no run took."
    ]


def _sharpness(view: View) -> list[str]:
    frame = view.frame("sharpness").dropna(subset="value")
    if frame.empty:
        return []
    sentences = [
        "Sharpness in a ball is what a few ascent steps found, a lower bound of the worst rise. But for ASAM and layer "
        "noise it is measured in the unit of the weights, so rescaling layers without changing the model changes it."
    ]
    lost = frame[frame.value.abs() < _FP32 * frame.nll]
    if not lost.empty:
        sentences.append(
            f"{typeset.count(len(lost))} of {typeset.count(len(frame))} rises are below what fp32 resolves of the loss "
            "(10⁻⁶ of it) and show rounding: take larger radii."
        )
    return sentences


def _cka(view: View) -> list[str]:
    n = view.frame("cka").n.dropna()
    if n.empty:
        return []
    return [
        f"CKA compares hidden states on {typeset.count(n.max())} fixed texts; it is blind to rotation and scale, and "
        "says nothing of what the models would write themselves."
    ]
