"""What is shown of runs at equal distance from the base."""

from collections.abc import Iterable, Iterator

import pandas as pd
from matplotlib.figure import Figure

from raygeo.analyses.matched.workload import KL, NORM, TRAINED
from raygeo.analyses.soups.report import flips
from raygeo.evaluation.statistics import wilson
from raygeo.report import typeset
from raygeo.report.plots import figure, interval, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, known, nats, section, with_interval
from raygeo.report.style import GRID
from raygeo.report.verdict import ALPHA, Finding
from raygeo.report.view import View
from raygeo.tables import BASE

_SHOWN = {TRAINED: "as trained", NORM: "at equal norm", KL: "at equal divergence"}


@figure(
    "matched",
    "How good are runs at equal distance from the base?",
    """Accuracy, or where none was measured NLL in nats a token of held-out solutions, of each run as it was trained,
    with its delta scaled to the norm of the reference run's, and scaled to its KL(base ‖ run). Bars are 95 % intervals,
    Wilson's of accuracies and over texts of the NLL; the line is the base. A run that would have to be scaled too far
    has no point.""",
)
def matched(view: View) -> Figure | None:
    """Draw accuracy or NLL at the three distances, one row a run."""
    frame = view.frame("matched")
    column = "accuracy" if frame.accuracy.notna().any() else "nll"
    frame = frame[frame[column].notna()]
    runs = frame[frame.run != BASE]
    if runs.empty:
        return None
    labels, place = run_rows(view, runs.run)
    fig, axes = make_panels(3, 3, rows_height(len(labels)), sharey=True, sharex=True)
    for ax, (quantity, title) in zip(axes, _SHOWN.items(), strict=True):
        for base in frame[frame.run == BASE][column]:
            ax.axvline(_drawn(column, base), color=GRID, linewidth=1.4, zorder=0)
        for row in runs[runs.quantity == quantity].itertuples():
            ends = (row.nll_low, row.nll_high) if column == "nll" else _wilson(row.accuracy, row.problems)
            interval(ax, view, row.run, place[row.run], *(_drawn(column, x) for x in (getattr(row, column), *ends)))
        name_rows(ax, labels)
        ax.set_title(title)
        ax.set_xlabel("accuracy, %" if column == "accuracy" else "NLL, nats a token")
    return fig


def _drawn(column: str, value: float) -> float:
    return 100 * value if column == "accuracy" else value


def _wilson(accuracy: float, problems: float) -> tuple[float, float]:
    return wilson(round(accuracy * problems), int(problems))


@section(
    "Runs at equal distance from the base",
    """Base + scale · delta: as trained, at the norm of the delta and at the divergence KL(base ‖ run), in nats a token,
    that all are brought to, by default those of {reference}. NLL in nats a token with 95 % intervals over texts.
    “Rescued : lost” are the shares of problems that the base gets wrong and the point right, and the reverse.""",
)
def points(view: View) -> Sheet:
    """Three rows a run, and one for the base."""
    frame = view.frame("matched")
    rows: list[list[Cell]] = [
        [
            row.run,
            _SHOWN[row.quantity] if row.run != BASE else typeset.MISSING,
            typeset.significant(row.scale) if known(row.scale) else (typeset.MISSING, row.reason),
            typeset.significant(row.norm),
            typeset.significant(row.kl),
            (nats(row.nll), typeset.interval(row.nll_low, row.nll_high, nats)),
            typeset.percent(row.accuracy),
            typeset.fixed(row.confidence, 3),
            typeset.fixed(row.ece, 3),
            flips(row),
        ]
        for name in view.order(frame.run)
        for row in frame[frame.run == name].itertuples()
    ]
    columns = ["run", "matched", "scale", "norm", "KL(base ‖ run)", "NLL", "accuracy", "largest probability"]
    return Sheet([*columns, "calibration error", "rescued : lost"], rows, frozenset({"run", "matched"}))


@section(
    "Against {reference} at equal distance",
    """Each run less the reference run, both at the same distance: differences in NLL and in accuracy (points) with 95 %
    paired bootstrap intervals over texts and problems, problems that only one of them solves, and McNemar's exact p,
    Holm-corrected over the runs of a distance.""",
)
def tests(view: View) -> Sheet:
    """One row a run and distance."""
    frame = view.frame("matched_tests")
    rows: list[list[Cell]] = [
        [
            row.run,
            _SHOWN[row.quantity],
            with_interval(row.nll, row.nll_low, row.nll_high),
            (typeset.points(row.accuracy), typeset.interval(row.accuracy_low, row.accuracy_high, typeset.points)),
            typeset.MISSING if pd.isna(row.problems) else f"{row.only_run:.0f} : {row.only_reference:.0f}",
            typeset.p_value(row.p_exact),
            typeset.p_value(row.p_holm),
        ]
        for name in view.order(frame.run)
        for row in frame[frame.run == name].itertuples()
    ]
    columns = ["run", "matched", "NLL", "accuracy", "only the run : only the reference", "p", "p, corrected"]
    return Sheet(columns, rows, frozenset({"run", "matched"}))


def apart(view: View) -> Iterable[Finding]:
    """Which runs differ from the reference in accuracy at equal distance, after Holm's correction."""
    frame = view.frame("matched_tests").dropna(subset="p_holm")
    for quantity in (NORM, KL):
        rows = frame[frame.quantity == quantity]
        if rows.empty:
            continue
        told = rows[rows.p_holm < ALPHA].sort_values("accuracy", ascending=False)
        named = ", ".join(f"{row.run} ({typeset.points(row.accuracy)})" for row in told.head(3).itertuples())
        said = f"{len(told)} of {typeset.counted(len(rows), 'run')} {'differs' if len(told) == 1 else 'differ'} from "
        said += f"{view.reference_run} in accuracy: {named} points"
        said += ", and others." if len(told) > 3 else "."
        if told.empty:
            said = f"no run of {len(rows)} is told from {view.reference_run} in accuracy."
        where, problems = _SHOWN[quantity].removeprefix("at "), typeset.count(rows.problems.max())
        yield Finding(
            f"Scaled to {where} ({problems} problems, Holm over {typeset.counted(len(rows), 'run')}), {said}",
            "table-matched-tests",
        )


def scaled(view: View) -> list[str]:
    """What a scaled delta is not, and which runs have no point."""
    frame = view.frame("matched")
    if frame.empty:
        return []
    sentences = [
        "Runs at equal distance are base + scale · delta: a scaled delta is not a run trained for fewer steps or at a "
        "lower rate, whose direction may differ. The divergence is over all held-out solutions of the probe, NLL and "
        "calibration over half of them."
    ]
    missing = frame[frame.reason.notna()]
    for quantity, rows in missing.groupby("quantity", sort=False):
        names = view.order(rows.run)
        sentences.append(f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} no point {_SHOWN[str(quantity)]}.")
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Accuracy and NLL with the delta scaled to the norm, and to the divergence, that all runs are brought to."""
    for row in view.rows("matched"):
        if row["quantity"] != TRAINED:
            yield row["run"], f"matched_{row['quantity']}_accuracy", row["accuracy"]
            yield row["run"], f"matched_{row['quantity']}_nll", row["nll"]
