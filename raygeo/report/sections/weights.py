"""How far and where the weights moved."""

import math

import pandas as pd

from raygeo.report import typeset
from raygeo.report.limits import seed_pairs
from raygeo.report.sections.parts import Cell, Sheet, against_reference, at, known, section, unordered
from raygeo.report.view import View
from raygeo.tables import BASE


@section(
    "Noise floor",
    """Runs that differ in nothing but a seed. Two losses can be said to differ in direction only where their cosine is
    clearly below these.""",
    empty="""No two runs differ in a seed only, so this study has no noise floor: how alike two runs of one loss would
    be is unknown here.""",
)
def noise_floor(view: View) -> Sheet:
    """Pairs that differ in a seed only, and how many pairs of different losses are at least as alike."""
    floor = seed_pairs(view)
    between = [
        row.cosine
        for row, a, b in unordered(view, view.frame("similarity", scope="global").dropna(subset="cosine"))
        if view.losses.get(a) != view.losses.get(b)
    ]
    rows = [
        [
            row.run_a,
            row.run_b,
            row.differs,
            typeset.fixed(row.cosine, 3),
            f"{sum(cosine >= row.cosine for cosine in between)} of {len(between)}",
        ]
        for row, *_ in unordered(view, floor)
    ]
    columns = ["a", "b", "differs in", "cosine", "pairs of different losses at least as alike"]
    return Sheet(columns, rows, frozenset({"a", "b", "differs in"}))


@section(
    "Every run against {reference}",
    """“Null s.d.” is the standard deviation the cosine would have between random directions. The orthogonal fraction is
    the share of a run's norm left when the reference's direction is taken out, module by module; it repeats what the
    cosine says. Angles are medians over modules, from the smallest to the largest, with what random subspaces give by
    chance.""",
)
def reference_pairs(view: View) -> Sheet:
    """Every run against the reference: cosine and its null, orthogonal fraction, principal angles, last-layer CKA."""
    similarity = against_reference(view, "similarity", scope="global")
    angles = _median_angles(view)
    cka = view.against(view.reference_run, "cka", treatment="plain").dropna(subset="cka")
    cka = cka.sort_values("layer").groupby("run").last()
    sides = [f"{side} angles" for side in _SIDES]
    columns = ["run", "cosine", "null s.d.", "orthogonal fraction", *sides, "CKA, last layer"]
    rows = [
        [
            name,
            typeset.fixed(at(similarity, name, "cosine"), 3),
            typeset.significant(at(similarity, name, "null_sd"), 2),
            typeset.fixed(at(similarity, name, "orthogonal_fraction"), 3),
            *(_angle_cell(angles, name, side) for side in _SIDES),
            typeset.fixed(at(cka, name, "cka"), 3),
        ]
        for name in view.order({*similarity.index, *angles.index.get_level_values("run"), *cka.index} - {BASE})
    ]
    return Sheet(columns, rows, frozenset({"run"}))


_SIDES = ("left", "right")


def _median_angles(view: View) -> pd.DataFrame:
    """Median over modules of the smallest and largest angle to the reference and of their nulls, by (run, side)."""
    frame = view.against(view.reference_run, "subspaces").dropna(subset="angle_degrees")
    frame = frame[frame.k == frame.groupby(["run", "module", "side"]).k.transform("max")]
    extremes = frame.groupby(["run", "module", "side"])[["angle_degrees", "null_degrees"]].agg(["min", "max"])
    return extremes.groupby(["run", "side"]).median()


def _angle_cell(angles: pd.DataFrame, name: str, side: str) -> Cell:
    if (name, side) not in angles.index:
        return typeset.MISSING
    row = angles.loc[(name, side)]
    angle, null = (
        " to ".join(f"{typeset.fixed(row[(column, end)], 0)}°" for end in ("min", "max"))
        for column in ("angle_degrees", "null_degrees")
    )
    return angle, f"chance {null}"


@section(
    "Trajectories",
    """How the norm of each delta grew with the optimiser step t, over the steps that were kept: two laws of two
    parameters each, fitted to the norms by least squares. A negative difference of AIC favours the logarithm. Norm over
    path length is 1 for a straight way; the path is the sum of straight lines between kept steps, a lower bound, so the
    true ratio is no larger. The sharpest turn is the least cosine between two moves in a row.""",
)
def trajectories(view: View) -> Sheet:
    """How every run's norm grew with the step: both fitted laws, which has the lower AIC, and how straight the way was.

    The last two columns need no law: norm over path length at the end, and the least cosine of two moves in a row.
    """
    frame = view.frame("trajectories").sort_values("step")
    fits = view.frame("trajectory_fits").set_index(["run", "law"])
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        way = frame[frame.run == name]
        log, power = (fits.loc[(name, law)] if (name, law) in fits.index else _NO_FIT for law in ("log", "power"))
        rows.append(
            [
                name,
                typeset.count(len(way)),
                _law(log, "{} + {} log t"),
                _law(power, "{} t^{}"),
                typeset.fixed(log.aic - power.aic, 1),
                typeset.fixed(way.straightness.iloc[-1]),
                typeset.fixed(way.cosine_previous.min()),
            ]
        )
    columns = ["run", "points", "a + b log t", "c t^q", "AIC, log − power", "‖Δ‖ / path", "sharpest turn, cosine"]
    return Sheet(columns, rows, frozenset({"run"}))


_NO_FIT = pd.Series(dict.fromkeys(("a", "b", "rss", "aic"), math.nan))


def _law(fit: pd.Series, text: str) -> Cell:
    if not known(fit.a):
        return typeset.MISSING
    return text.format(*(typeset.significant(fit[name]) for name in "ab")), f"RSS {typeset.significant(fit.rss, 2)}"


@section("Cosine and orthogonal fractions, pair by pair: {rows} rows", folded=True)
def similarity(view: View) -> Sheet:
    """Cosine and orthogonal fractions of every pair of runs, the most alike first."""
    frame = view.frame("similarity", scope="global")
    fractions = {(row.run_a, row.run_b): row.orthogonal_fraction for row in frame.itertuples()}
    rows = [
        [
            a,
            b,
            typeset.fixed(row.cosine, 3),
            typeset.significant(row.null_sd, 2),
            typeset.fixed(fractions.get((a, b)), 3),
            typeset.fixed(fractions.get((b, a)), 3),
        ]
        for row, a, b in unordered(view, frame.sort_values("cosine", ascending=False, kind="stable"))
    ]
    columns = ["a", "b", "cosine", "null s.d.", "b orthogonal to a", "a orthogonal to b"]
    return Sheet(columns, rows, frozenset({"a", "b"}))
