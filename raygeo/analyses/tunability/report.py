"""What is shown of further tuning."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.analyses.tunability.workload import NEW
from raygeo.report import typeset
from raygeo.report.plots import figure, interval, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, nats, section, with_interval
from raygeo.report.style import GRID
from raygeo.report.view import View
from raygeo.tables import BASE

_SHOWN = {
    "before": "NLL before, nats a token",
    "after": "NLL after, nats a token",
    "over_base": "below the tuned base, nats a token",
}


@figure(
    "tunability",
    "How well can runs be tuned further?",
    """NLL of texts before and after one fixed fine-tune from each run's weights, on other texts of the same kind, and
    how far below that of the base, tuned in the same way, it ends: below zero a run is a worse start than the base was.
    Of new data (`pairs`) that says how a run can be tuned further; of held-out solutions, of the runs' own task, it is
    in part what a run has learned already. Bars are 95 % intervals over texts.""",
)
def tunability(view: View) -> Figure | None:
    """Draw the NLL before and after, and the end against the base's, one row a run."""
    frame = view.frame("tunability")
    if frame.empty:
        return None
    labels, place = run_rows(view, frame.run)
    rows = frame.set_index("run")
    shown = [column for column in _SHOWN if rows[column].notna().any()]
    fig, axes = make_panels(len(shown), 3, rows_height(len(labels)), sharey=True)
    for ax, column in zip(axes, shown, strict=True):
        for name, y in place.items():
            interval(ax, view, name, y, *rows.loc[name, [column, f"{column}_low", f"{column}_high"]])
        name_rows(ax, labels)
        ax.set_title(_SHOWN[column])
        if column == "over_base":
            ax.axvline(0, color=GRID, linewidth=1.4, zorder=0)
    return fig


@section(
    "Tuned further",
    """NLL of texts that were not tuned on, in nats a token, before and after the fixed fine-tune, with 95 % intervals
    over texts. The spread is the standard deviation over seeds of the fine-tune, where there are several.""",
)
def tuned(view: View) -> Sheet:
    """One row a run."""
    frame = view.frame("tunability")
    rows: list[list[Cell]] = [
        [
            row.run,
            with_interval(row.before, row.before_low, row.before_high),
            with_interval(row.after, row.after_low, row.after_high),
            with_interval(row.gain, row.gain_low, row.gain_high),
            typeset.MISSING if row.run == BASE else with_interval(row.over_base, row.over_base_low, row.over_base_high),
            nats(row.seed_sd),
        ]
        for name in view.order(frame.run)
        for row in frame[frame.run == name].itertuples()
    ]
    columns = ["run", "before", "after", "gain", "below the tuned base", "spread over seeds"]
    return Sheet(columns, rows, frozenset({"run"}))


def on_new_data(view: View) -> bool:
    """Whether runs were tuned on other data than their own task, so that tunability is an outcome."""
    return any(row["texts"] == NEW for row in view.rows("tunability"))


def recipe(view: View) -> list[str]:
    """What the fine-tune was."""
    frame = view.frame("tunability")
    if frame.empty:
        return []
    steps, texts = (typeset.count(frame[column].max()) for column in ("steps", "n"))
    own = (
        "Tunability is on held-out solutions, which are of the task that runs were trained on: how far a run ends "
        "below the tuned base is in part what it had learned before, and the pre-screen leaves it out. Name new data "
        "in geometry.tunability.pairs to see what further tuning can do."
    )
    spread = (
        "the spread over seeds says what the order of texts and the adapters do."
        if frame.seeds.max() > 1
        else "there was one from each run, and what the order of texts and the adapters do is not known "
        "(geometry.tunability.seeds)."
    )
    return [
        *([] if on_new_data(view) else [own]),
        f"Tunability is after {steps} steps at one learning rate, the same from all weights, on half of the texts; the "
        f"other {texts} are measured. A run that would do better at another rate, or after more steps, is not given "
        f"them. Intervals are over texts, not over fine-tunes: {spread}",
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How well a run can be tuned further, `tunability`: how far below that of the base, tuned in the same way, its NLL
    of other texts ends, nats a token; higher is better, below zero it is a worse start than the base. Without `pairs`
    the texts are of the runs' own task, and it is in part what a run had learned before. `tunability_gain` is by how
    much its own NLL fell.
    """
    for row in view.rows("tunability"):
        yield row["run"], "tunability", row["over_base"]
        yield row["run"], "tunability_gain", row["gain"]
