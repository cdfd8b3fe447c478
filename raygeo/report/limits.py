"""What a study's numbers do not show, worked out from its tables: one sentence or two for each limit that applies."""

import json
from typing import Any

import pandas as pd

from raygeo.report import typeset
from raygeo.report.view import View
from raygeo.tables import BASE, LORA

_MATCHED_NORMS = 1.25
_UNRELATED = 0.5
_MATCHED_DIVERGENCE = 1.5
_WHOLE_PLANE = 0.95
_FP32 = 1e-6


def seed_pairs(view: View) -> pd.DataFrame:
    """Pairs of runs whose settings differ in nothing but a seed: the study's noise floor.

    Columns: run_a, run_b, differs ("data order", "adapter initialisation" or both), cosine.
    """
    runs = view.runs.dropna(subset=["loss", *_SEEDS]).set_index("run")
    rows = []
    for row in view.frame("similarity", scope="global").dropna(subset="cosine").itertuples():
        if row.run_a == row.run_b or not {row.run_a, row.run_b} <= set(runs.index):
            continue
        a, b = runs.loc[row.run_a], runs.loc[row.run_b]
        differs = [what for column, what in _SEEDS.items() if a[column] != b[column] and _draws(a, column)]
        if differs and _seedless(a) == _seedless(b):
            rows.append((row.run_a, row.run_b, " and ".join(differs), row.cosine))
    return pd.DataFrame(rows, columns=["run_a", "run_b", "differs", "cosine"])


_SEEDS = {"seed": "data order", "init_seed": "adapter initialisation"}


def _draws(run: pd.Series, seed: str) -> bool:
    """Whether anything was drawn with a seed: without an adapter there is none to initialise."""
    return seed != "init_seed" or _params(run).get("training", {}).get("lora", {}) is not None


def _seedless(run: pd.Series) -> tuple:
    """What a run was trained with, but for its seeds."""
    params = _params(run)
    training = {name: value for name, value in params.get("training", {}).items() if name not in _SEEDS}
    return run.loss, run.lr, params.get("loss"), training


def _params(run: pd.Series) -> dict[str, Any]:
    return json.loads(run.params) if isinstance(run.params, str) else {}


def limits(view: View) -> list[str]:
    """Every automatic caveat that applies to this study, in the order of the page's sections."""
    rules = (
        _failures, _selection, _seeds, _problems, _tests, _lineage, _rounding, _norms, _trajectories, _yardsticks, _map,
        _angles, _off_principal, _paths, _curves, _averages, _planes, _curvature, _expansions,
        _sharpness, _cka, _drift, _outputs, _coherence,
    )  # fmt: skip
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
    trained = view.runs.dropna(subset=["loss", *_SEEDS])
    if trained.empty:
        return []
    seeds = trained.groupby(["loss", "lr"], dropna=False)[["seed", "init_seed"]].nunique().max(axis=1)
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


def _lineage(view: View) -> list[str]:
    return [
        f"The delta of {row.run} is {typeset.percent(row.relative_norm)} as long as the base weights: so far does no "
        "fine-tuning go. Either it was trained from another base, and its numbers mean nothing, or almost from scratch."
        for row in view.runs.itertuples()
        if row.relative_norm > _UNRELATED
    ]


def _rounding(view: View) -> list[str]:
    sentences = []
    for row in view.runs.dropna(subset="params").itertuples():
        stored = json.loads(row.params).get("stored")
        if stored not in _DIGITS or not row.relative_norm > 0:
            continue
        low, high = (2.0**-digits / 12**0.5 for digits in (_DIGITS[stored], _DIGITS[stored] - 1))
        sentences.append(
            f"{row.run} is stored as {stored}, which rounds every weight. Where weights moved by more than the spacing "
            f"of such numbers, rounding alone is {typeset.significant(100 * low, 2)} to "
            f"{typeset.significant(100 * high, 2)} % of the base norm; where they moved by less than half of it, the "
            f"move is lost. The delta is {typeset.significant(100 * row.relative_norm, 2)} % of the base norm"
            + (", so most of it may be rounding." if row.relative_norm < 2**0.5 * high else ".")
        )
    return sentences


_DIGITS = {"BF16": 8, "F16": 11}
"""Binary digits of a significand, the leading one included."""


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


def _yardsticks(view: View) -> list[str]:
    pairs, tests, floors = view.frame("yardsticks"), view.frame("separations", like=""), view.frame("floors")
    sentences = []
    if pairs.z.notna().any():
        sentences.append(
            "z compares a cosine with that of random directions. Trained deltas share a base, a task and rollouts, so "
            "a large z says no more than that: the floor of other seeds is the measure for losses."
        )
    for test in tests.itertuples():
        if test.reason:
            sentences.append(f"Whether losses differ by more than seeds do is not tested here: {test.reason}.")
        else:
            sentences.append(
                f"The permutation test asks whether the loss matters at all ({test.losses} losses, {test.runs} runs), "
                "not which losses differ, and pairs that share a run are not independent, so d′ is a description."
            )
    corrected = floors.dropna(subset="disattenuated")
    if len(corrected):
        fewest = floors[floors.configuration_a == floors.configuration_b].n.min()
        beyond = int((corrected.disattenuated > 1).sum())
        excess = f" {beyond} of {len(corrected)} exceed 1, which no cosine can." if beyond else ""
        sentences.append(
            "Disattenuated cosines divide by noise floors that rest on as few as "
            f"{fewest} {'pair' if fewest == 1 else 'pairs'} of runs, and have no interval.{excess}"
        )
    return sentences


def _map(view: View) -> list[str]:
    axes = view.frame("map_axes")
    plane = axes[axes.axis <= 2].groupby("scaling").share.sum()
    if plane.empty or plane.min() > _WHOLE_PLANE:
        return []
    return [
        f"The map is flat and holds {typeset.percent(plane.min())} of the variance in one of its panels: runs that lie "
        "close on it may be far apart."
    ]


def _off_principal(view: View) -> list[str]:
    frame = view.frame("off_principal", scope="global")
    if frame.empty:
        return []
    return [
        f"Sparsity counts entries of {typeset.count(frame.entries.max())} that keep their bf16 number when base and "
        "delta are added in fp32 and rounded once. Before rounding nearly every entry changes, and a run that moved "
        "less is sparser for that reason alone.",
        "bf16 resolves small weights more finely, so that a step of one size everywhere changes them first: an overlap "
        "of changed entries with the low-magnitude mask above chance, or with the principal mask below it, needs no "
        "other cause. What differs from the same delta with its entries shuffled does; one shuffle was drawn.",
    ]


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
    inside = frame[(frame.alpha >= 0) & (frame.alpha <= 1)]
    sizes = inside.groupby(["metric", "probe", "run_a", "run_b"], sort=False).size().groupby("metric", sort=False)
    grids = " and ".join(
        f"{' to '.join(typeset.count(n) for n in sorted({least, most}))} values of α for {_METRICS.get(metric, metric)}"
        for metric, least, most in zip(sizes.min().index, sizes.min(), sizes.max(), strict=True)
    )
    return [
        f"Paths were sampled at {grids}. A barrier is a maximum over the grid with the ends included: it cannot be "
        "negative by construction, noise biases it upwards, and a hump between grid points that leaves no trace on "
        "them is not seen."
    ]


def _curves(view: View) -> list[str]:
    frame = view.frame("curve_barriers")
    if frame.empty:
        return []
    return [
        f"Curves were measured on {typeset.count(frame.n.max())} held-out texts, half of the probe; the other half "
        "trained their bends, with one bend and few steps: a barrier that is left says that this search found no way "
        "round, not that there is none."
    ]


def _averages(view: View) -> list[str]:
    sentences = []
    texts = pd.concat([view.frame(name).n for name in ("soups", "wise")]).dropna()
    if len(texts):
        sentences.append(
            f"Averages and lines from the base were measured on {typeset.count(texts.max())} texts, half of the probe; "
            "the best α and the greedy soup were chosen on the other half, so their likelihoods are not flattered by "
            "the choice. Calibration is of next tokens of given texts, not of answers."
        )
    problems = pd.concat([view.frame(name).problems for name in ("soups", "wise")]).dropna()
    if len(problems):
        points = typeset.fixed(100 / problems.max(), 1)
        sentences.append(
            f"Their accuracies are over {typeset.count(problems.max())} problems, so one problem is {points} points; "
            "no two of them are tested against each other."
        )
    return sentences


def _planes(view: View) -> list[str]:
    frame = view.frame("plane_runs")
    away = frame[frame.residual > 0]
    if frame.empty:
        return []
    said = (
        "A plane shows two directions of a space of very many: walls and valleys in it need not be those around a run."
    )
    if len(away):
        share = (away.residual / (away.residual**2 + away.x**2 + away.y**2) ** 0.5).median()
        said += (
            f" Runs that do not span it lie off it, at a median {typeset.percent(share)} of their distance from its "
            "origin, and their marks say nothing of their loss."
        )
    return [said]


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
        f"CKA compares {typeset.count(n.max())} hidden states of fixed texts; it is blind to rotation and scale, and "
        "says nothing of what the models would write themselves. Plain CKA is that of the few dimensions "
        "and directions with the most variance; the table without them shows what they hide."
    ]


def _drift(view: View) -> list[str]:
    tokens = view.frame("drift").tokens.dropna()
    if tokens.empty:
        return []
    return [
        f"Drift of hidden states is over {typeset.count(tokens.max())} tokens of held-out solutions. It is not "
        "corrected for rotations and scalings that later layers undo, so a large one need not show in any prediction."
    ]


def _outputs(view: View) -> list[str]:
    frame = view.frame("divergences", run_a=BASE)
    if frame.empty:
        return []
    tokens, texts = (typeset.count(frame[column].max()) for column in ("tokens", "n"))
    sentence = (
        f"Divergences and calibration are over {tokens} tokens of {texts} "
        "correct held-out solutions, teacher-forced: on what a run would write itself they may differ, and its long "
        "wrong answers are not seen. Intervals are over texts, not over training runs."
    )
    kl = frame[(frame.quantity == "kl_ba") & (frame.value > 0)].set_index("run_b").value
    if len(kl) < 2 or kl.max() <= _MATCHED_DIVERGENCE * kl.min():
        return [sentence]
    return [
        sentence,
        f"The runs are not matched in how far their predictions moved: KL(run ‖ base) of {kl.idxmax()} is "
        f"{typeset.significant(kl.max() / kl.min(), 2)} times that of {kl.idxmin()}.",
    ]


def _coherence(view: View) -> list[str]:
    n = view.frame("coherence").n.dropna()
    if n.empty:
        return []
    count = " to ".join(typeset.count(size) for size in sorted({n.min(), n.max()}))
    return [
        f"Coherence is over {count} training prompts with one example each, so prompts count alike however many "
        "rollouts a loss uses of them, and prompts that all losses learn from come first: with pairwise losses in the "
        "study these have right and wrong rollouts and do not stand for the whole training set. Gradients are plain "
        "ones; AdamW rescales them entry by entry."
    ]
