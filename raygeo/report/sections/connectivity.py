"""The loss between runs."""

import pandas as pd

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, barrier_cell, nats, section
from raygeo.report.view import View


@section(
    "Curves beside straight lines",
    """Pairs for which a curve with one bend was trained. All numbers are of held-out texts that had no part in training
    it. “Below the line” is how much lower the largest loss of the curve is than that of the line, with an interval from
    the same resampled texts; the bend is how far its free point lies from the midpoint, in distances of the two runs.
    """,
)
def curves(view: View) -> Sheet:
    """Largest loss and barrier of every trained curve beside its line's."""
    frame = view.frame("curve_barriers")
    lines = frame[frame["shape"] == "line"].set_index(["run_a", "run_b"])
    rows: list[list[Cell]] = []
    for row in frame[frame["shape"] != "line"].rename(columns={"shape": "curve"}).itertuples():
        line = lines.loc[(row.run_a, row.run_b)]
        cells = [_interval_cell(of, column) for of in (line, row) for column in ("max", "chord")]
        below, bend = _interval_cell(row, "below"), typeset.fixed(row.bend)
        rows.append([row.run_a, row.run_b, row.curve, *cells, below, bend, typeset.count(row.n)])
    columns = ["a", "b", "curve", "line: largest loss", "line: barrier", "curve: largest loss", "curve: barrier"]
    columns += ["below the line", "bend", "texts"]
    return Sheet(columns, rows, frozenset({"a", "b", "curve"}))


def _interval_cell(row: pd.Series, column: str) -> Cell:
    """A loss with its interval below it; the value of "max" stands in ``max_loss``."""
    value = getattr(row, "max_loss" if column == "max" else column)
    low, high = (getattr(row, f"{column}_{side}") for side in ("low", "high"))
    return (nats(value), typeset.interval(low, high, nats))


@section(
    "Averages of runs",
    """Each average is of weights; runs alone and the base stand above. The greedy soup was chosen on one half of the
    held-out solutions, all likelihoods are of the other half. “Above its members” is the loss less the mean loss of the
    members: above zero, they do not share a basin. The last columns are about next tokens (how sure, how far from how
    often right) and about problems that all members get wrong and the average right, or the reverse.""",
)
def soups(view: View) -> Sheet:
    """Every run and every average of runs: likelihood, barrier, accuracy, calibration, flips."""
    rows: list[list[Cell]] = []
    for row in view.frame("soups").itertuples():
        alone = row.kind == "run"
        interval = typeset.interval(row.barrier_low, row.barrier_high, nats)
        rows.append(
            [
                row.soup,
                typeset.MISSING if alone else ", ".join(row.members),
                (nats(row.loss), typeset.interval(row.loss_low, row.loss_high, nats)),
                typeset.MISSING if alone else (nats(row.barrier), interval),
                typeset.percent(row.accuracy),
                typeset.fixed(row.confidence, 3),
                typeset.fixed(row.ece, 3),
                _flips(row),
            ]
        )
    columns = ["average", "members", "NLL", "above its members", "accuracy", "largest probability"]
    columns += ["calibration error", "rescued : lost"]
    return Sheet(columns, rows, frozenset({"average", "members"}))


def _flips(row: pd.Series) -> str:
    shares = row.false_false_true, row.true_true_false
    return typeset.MISSING if pd.isna(shares[0]) else " : ".join(typeset.percent(share) for share in shares)


@section(
    "From the base through each run",
    """Base + α · delta. The best α has the lowest NLL on one half of the held-out solutions; what stands beside it, and
    beside α = 1, the trained run, is of the other half. “Rescued : lost” are the shares of problems that base and run
    both get wrong and the best α right, and the reverse.""",
)
def wise(view: View) -> Sheet:
    """Best alpha of every run beside the run itself."""
    frame = view.frame("wise")
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        line = frame[frame.run == name].set_index("alpha")
        best = line.loc[line.chosen_loss.idxmin()]
        run = line.loc[1.0] if 1.0 in line.index else None
        row: list[Cell] = [name, typeset.fixed(float(best.name))]
        for point in (best, run):
            if point is None:
                row += [typeset.MISSING] * 4
                continue
            row.append((nats(point.loss), typeset.interval(point.loss_low, point.loss_high, nats)))
            row += [typeset.percent(point.accuracy), typeset.fixed(point.confidence, 3), typeset.fixed(point.ece, 3)]
        rows.append([*row, _flips(best)])
    measured = ["NLL", "accuracy", "largest probability", "calibration error"]
    columns = ["run", "best α", *(f"{what}, {where}" for where in ("best α", "α = 1") for what in measured)]
    return Sheet([*columns, "rescued : lost"], rows, frozenset({"run"}))


@section(
    "Parts moved from one run to another: {rows} rows",
    """The rise of the NLL when a part of run a is replaced by run b's, at the largest step measured, with an interval
    over texts. “Parts together” is the sum of the rises of single parts: where it differs from “everything”, parts act
    on each other. “On the way” is the largest excess over the chord to the swapped part.""",
    folded=True,
)
def layerwise(view: View) -> Sheet:
    """For every pair: the part that raises the loss most, the sum over parts, and the whole."""
    rows: list[list[Cell]] = []
    for (a, b), frame in view.frame("layerwise").groupby(["run_a", "run_b"], sort=False):
        far = frame[frame.alpha == frame.alpha.max()]
        parts, whole = far[far.part != "all"], far[far.part == "all"].iloc[0]
        top = parts.loc[parts.rise.idxmax()]
        way = frame.loc[frame.excess.idxmax()]
        rows.append(
            [
                a,
                b,
                str(top.part),
                (nats(top.rise), typeset.interval(top.rise_low, top.rise_high, nats)),
                nats(parts.rise.sum()),
                (nats(whole.rise), typeset.interval(whole.rise_low, whole.rise_high, nats)),
                (nats(way.excess), f"{way.part}, α = {way.alpha:g}"),
            ]
        )
    columns = ["a", "b", "part that raises it most", "its rise", "parts together", "everything", "on the way"]
    return Sheet(columns, rows, frozenset({"a", "b", "part that raises it most"}))


@section(
    "Runs and planes: {rows} rows",
    """Distance of every run from each plane, and its own loss: what a plane shows at a run's mark is the loss of the
    run only where that distance is zero.""",
    folded=True,
)
def planes(view: View) -> Sheet:
    """Coordinates, distance from the plane and own loss of every run, plane by plane."""
    rows = [
        [
            ", ".join((row.run_a, row.run_b, row.run_c)),
            row.run,
            typeset.significant(row.x),
            typeset.significant(row.y),
            typeset.significant(row.residual),
            nats(row.loss),
            typeset.count(row.n),
        ]
        for row in view.frame("plane_runs").itertuples()
    ]
    columns = ["plane through", "run", "x", "y", "distance from the plane", "its own NLL", "texts"]
    return Sheet(columns, rows, frozenset({"plane through", "run"}))


@section(
    "Barriers between deltas of equal length: {rows} rows",
    """The longer delta of each pair was scaled down to the norm of the shorter; “scales” are what a and b were
    multiplied by.""",
    folded=True,
)
def matched_barriers(view: View) -> Sheet:
    """Both barriers of every path between deltas of equal norm."""
    frame = view.frame("matched_barriers")
    scales = [
        f"{typeset.significant(a)} : {typeset.significant(b)}"
        for a, b in zip(frame.scale_a, frame.scale_b, strict=True)
    ]
    sheet = _barriers(frame)
    rows = [[*row, scale] for row, scale in zip(sheet.rows, scales, strict=True)]
    return Sheet([*sheet.columns, "scales"], rows, sheet.prose)


@section("Barriers, path by path: {rows} rows", folded=True)
def barriers(view: View) -> Sheet:
    """Both barriers of every path that was measured."""
    return _barriers(view.frame("barriers"))


def _barriers(frame: pd.DataFrame) -> Sheet:
    rows = [
        [
            row.run_a,
            row.run_b,
            row.probe if row.metric == "nll" else f"{row.probe}, error rate",
            barrier_cell(row, "chord"),
            typeset.fixed(row.chord_alpha),
            barrier_cell(row, "mean"),
            typeset.count(row.n),
        ]
        for row in frame.itertuples()
    ]
    columns = ["a", "b", "probe", "above the chord", "at α", "above the mean of the ends", "examples"]
    return Sheet(columns, rows, frozenset({"a", "b", "probe"}))
