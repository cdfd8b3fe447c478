"""Accuracy while training."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import figure, make_panels
from raygeo.report.sheets import Sheet, section
from raygeo.report.style import INK, MUTED
from raygeo.report.view import View

_COLOURS = ("#0072b2", "#cc0066", "#18a5a5", "#ad9100", "#9e532e", "#8c1aff")
_MARKERS = "os^Dv<>"


@figure(
    "monitor",
    "Accuracy while training",
    """Accuracy of the weights that were kept on the way, one panel a run, with 95 % intervals; step 0 is the untrained
    base. In black (in the dark, white), where they were asked, problems that are trained on. Where that curve and
    another part and meet again is marked by thin lines and said in the table. The axis is linear below 1 and
    logarithmic from there. Of runs in stages or rounds the steps are those at which one ended.""",
)
def curves(view: View) -> Figure | None:
    """Draw accuracy against the step, one panel a run, one curve a benchmark."""
    frame = view.frame("monitor")
    if frame.empty:
        return None
    names = view.examples(frame.run)
    benchmarks = list(dict.fromkeys(frame.benchmark))
    others = [benchmark for benchmark in benchmarks if benchmark != "train"]
    looks = {name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(others)}
    looks |= {"train": (INK, "s")} if "train" in benchmarks else {}
    found = view.frame("partings")
    fig, axes = make_panels(len(names), 3, 2.6)
    for ax, run in zip(axes, names, strict=True):
        for benchmark, (colour, marker) in looks.items():
            rows = frame[(frame.run == run) & (frame.benchmark == benchmark)].sort_values("step")
            ax.plot(rows.step, 100 * rows.accuracy, color=colour, marker=marker, markersize=3.5, label=benchmark)
            ax.fill_between(rows.step, 100 * rows.low, 100 * rows.high, color=colour, alpha=0.12, linewidth=0)
        for row in found[found.run == run].itertuples():
            for step, dashes in ((row.part, (1, 1.5)), (row.meet, (5, 2))):
                if step == step and step is not None:
                    ax.axvline(step, color=looks[row.benchmark][0], linewidth=0.8, linestyle=(0, dashes))
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(left=0)
        ax.set_ylim(0, 100)
        ax.set_xlabel("optimiser step")
        ax.set_title(run)
    axes[0].set_ylabel("accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), labelcolor=MUTED)
    return fig


@section(
    "When accuracy on training problems parts from others, and meets them",
    """They part at the first measured step at which accuracy on training problems less that on the benchmark has a 95 %
    interval wholly above 0, and meet at the first step after that from which on no measured gap has one. The interval
    is made of those of both accuracies (Newcombe's method 10, for different problems). Steps between the kept ones were
    not measured, nothing is corrected for how many were, and few problems hide a gap. A gap at step 0 is there before
    any training: the benchmark is harder for the base.""",
)
def partings(view: View) -> Sheet:
    """One row a run and benchmark."""
    rows = [
        [
            row["run"],
            row["benchmark"],
            typeset.count(row["steps"]),
            _step(row["part"], "never"),
            _step(row["meet"], typeset.MISSING if row["part"] is None else "not by the end"),
            (typeset.points(row["largest_gap"]), f"step {row['largest_at']}"),
        ]
        for row in view.rows("partings")
    ]
    columns = ["run", "benchmark", "steps measured", "part at step", "meet at step", "largest gap, points"]
    return Sheet(columns, rows, frozenset({"run", "benchmark"}))


def _step(step: int | None, otherwise: str) -> str:
    return otherwise if step is None else typeset.count(step)


def histories(view: View) -> Iterator[tuple[str, str, int, float | None]]:
    """Accuracy at each kept step, ``eval/heldout/monitor``."""
    for row in view.rows("monitor"):
        yield row["run"], f"{row['benchmark']}/monitor", row["step"], row["accuracy"]
