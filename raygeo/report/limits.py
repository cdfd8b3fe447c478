"""What a study's numbers do not show, worked out from its tables: one sentence or two for each limit that applies."""

import numpy as np
import pandas as pd

from raygeo.report import typeset
from raygeo.report.view import BASE, View

_MATCHED_NORMS = 1.25


def seed_pairs(view: View) -> pd.DataFrame:
    """Pairs of runs with the same loss, learning rate and parameters that differ in a seed: the study's noise floor.

    Columns: run_a, run_b, loss, lr, differs ("data order", "adapter initialisation" or both), cosine.
    """
    runs = view.runs.set_index("run")
    rows = []
    for row in view.frame("similarity", scope="global").dropna(subset="cosine").itertuples():
        if row.run_a == row.run_b or not {row.run_a, row.run_b} <= set(runs.index):
            continue
        a, b = runs.loc[row.run_a], runs.loc[row.run_b]
        differs = [what for column, what in _SEEDS.items() if a[column] != b[column]]
        if (a.loss, a.lr) == (b.loss, b.lr) and differs:
            rows.append((row.run_a, row.run_b, a.loss, a.lr, " and ".join(differs), row.cosine))
    return pd.DataFrame(rows, columns=["run_a", "run_b", "loss", "lr", "differs", "cosine"])


_SEEDS = {"seed": "data order", "init_seed": "adapter initialisation"}


def limits(view: View) -> list[str]:
    """Every automatic caveat that applies to this study, in the order of the page's sections."""
    rules = (_failures, _seeds, _problems, _tests, _norms, _angles, _paths, _curvature, _cka)
    return [sentence for rule in rules for sentence in rule(view)]


def _failures(view: View) -> list[str]:
    failed = view.runs[view.runs.reason.fillna("") != ""]
    return [f"{row.run} has no result: {row.status}, {row.reason.rstrip('.')}." for row in failed.itertuples()]


def _seeds(view: View) -> list[str]:
    if view.runs.empty:
        return []
    seeds = view.runs.groupby(["loss", "lr"], dropna=False)[["seed", "init_seed"]].nunique().max(axis=1)
    single, total = int((seeds <= 1).sum()), len(seeds)
    if not single:
        return []
    which = "Every" if single == total else f"{single} of {total}"
    verb = "was" if single == 1 or single == total else "were"
    return [
        f"{which} combination{'s' if which != 'Every' else ''} of loss and learning rate {verb} trained with one seed only, "
        "so nothing here is an interval over training runs: intervals of accuracy are over problems, and another seed "
        "may give another number."
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
        f"p-values on {benchmark} are Holm-corrected over all {size} pairs; a large one is no evidence that two runs are equal."
        for benchmark, size in sizes.items()
    ]


def _norms(view: View) -> list[str]:
    moved = view.runs[view.runs.delta_norm > 0].set_index("run").delta_norm
    if len(moved) < 2 or moved.max() <= _MATCHED_NORMS * moved.min():
        return []
    return [
        f"The runs are not matched in how far they moved: the delta of {moved.idxmax()} is "
        f"{typeset.significant(moved.max() / moved.min(), 2)} times as long as that of {moved.idxmin()}. Differences in "
        "accuracy, paths, CKA and curvature mix the direction of a delta with its length; cosines and angles do not."
    ]


def _angles(view: View) -> list[str]:
    frame = view.frame("subspaces").dropna(subset="null_degrees")
    if frame.empty:
        return []
    widest = frame[frame.k == frame.k.max()].groupby(["run_a", "run_b", "module", "side"]).null_degrees
    low, high = float(widest.min().median()), float(widest.max().median())
    return [
        f"Random subspaces of the same size ({frame.k.max()} directions) have a smallest principal angle of about "
        f"{typeset.fixed(low, 0)}° and a largest of about {typeset.fixed(high, 0)}°: angles near these show nothing shared, "
        "and a largest angle near 90° is what chance gives."
    ]


def _paths(view: View) -> list[str]:
    frame = view.frame("paths")
    if frame.empty:
        return []
    alphas = np.unique(frame.alpha)
    return [
        f"Paths were sampled at {len(alphas)} values of α between {typeset.significant(alphas.min(), 2)} and "
        f"{typeset.significant(alphas.max(), 2)}. A barrier is a maximum over this grid with the ends included: it cannot be "
        "negative by construction, noise can only raise it, and what lies between grid points is not seen."
    ]


def _curvature(view: View) -> list[str]:
    frame = view.frame("curvature")
    if frame.empty:
        return []
    tokens = frame.tokens.dropna()
    size = f" over {typeset.count(tokens.max())} tokens" if len(tokens) else ""
    return [
        f"Curvature is that of one probe loss{size}, the same for all runs: it is not the sharpness of the loss a run was "
        "trained on. Traces and densities are estimates from random vectors, with the standard error shown where known."
    ]


def _cka(view: View) -> list[str]:
    n = view.frame("cka").n.dropna()
    if n.empty:
        return []
    return [
        f"CKA compares hidden states at {typeset.count(n.max())} positions of one fixed text; it is blind to rotation and "
        "scale, and says nothing of what the models would write themselves."
    ]
