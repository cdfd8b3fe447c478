"""What is shown of the diversity of answers."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.analyses.shifted import shifted_accuracy
from raygeo.evaluation.diversity import ACROSS, ENTROPY, EQUATIONS, FINALS, PER_INPUT
from raygeo.report import typeset
from raygeo.report.plots import figure, interval, legend, lines, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, section, with_interval
from raygeo.report.view import View

_SHOWN = {
    PER_INPUT: "EAD of answers to one problem",
    ACROSS: "EAD of answers to different ones",
    FINALS: "final answers a problem",
    EQUATIONS: "sets of equations a problem",
    ENTROPY: "entropy of final answers, nats",
}
_METRICS = {
    PER_INPUT: "diversity_per_input",
    ACROSS: "diversity_across_input",
    FINALS: "diversity_answers",
    EQUATIONS: "diversity_equations",
    ENTROPY: "diversity_entropy",
}


@figure(
    "diversity",
    "How diverse are answers?",
    """Of several answers to each problem: expectation-adjusted distinct n-grams (EAD) of those to one problem and of
    one to each of different problems, how many different final answers and sets of equations a problem gets, the
    entropy of its final answers, and the chance that one of k is right. Bars are 95 % intervals over problems; the base
    is what training started from. Last, where a benchmark is out of distribution, accuracy on it.""",
)
def diversity(view: View) -> Figure | None:
    """Draw every quantity one row a run, pass@k as lines, and accuracy out of distribution."""
    frame = view.frame("diversity").dropna(subset=["value"])
    if frame.empty:
        return None
    shown = [quantity for quantity in _SHOWN if (frame.quantity == quantity).any()]
    curve = frame[frame.quantity.str.startswith("pass@")]
    benchmarks, accuracy = shifted_accuracy(view, "ood")
    inputs = frame[frame.quantity == PER_INPUT].set_index("run").value
    both = [name for name in view.order(frame.run) if name in accuracy and name in inputs.index]
    labels, place = run_rows(view, frame.run)
    panels = [*shown, *(["curve"] if len(curve) else []), *(["ood"] if both else [])]
    fig, axes = make_panels(len(panels), 3, max(2.6, rows_height(len(labels))))
    for ax, panel in zip(axes, panels, strict=True):
        if panel == "curve":
            rows = curve.assign(k=curve.quantity.str.removeprefix("pass@").astype(int), share=100 * curve.value)
            lines(ax, view, rows, "k", "share", markersize=3.2)
            ax.set_title("pass@k, %")
            ax.set_xlabel("k")
            continue
        if panel == "ood":
            for name in both:
                ax.plot(inputs[name], 100 * accuracy[name], **view.styles[name].line(linestyle="none", markersize=6))
            ax.set_title(f"accuracy on {', '.join(benchmarks)}, %")
            ax.set_xlabel(_SHOWN[PER_INPUT])
            continue
        rows = frame[frame.quantity == panel].set_index("run")
        for name, y in place.items():
            if name in rows.index:
                interval(ax, view, name, y, *rows.loc[name, ["value", "low", "high"]])
        name_rows(ax, labels)
        ax.set_title(_SHOWN[panel])
    legend(fig, view, frame.run)
    return fig


@section(
    "Diversity of answers",
    """With 95 % intervals over problems. EAD counts different n-grams (n = 1 to 5) over how many as many independent
    tokens would give; more is more diverse. How many different answers a problem has depends on how many were
    drawn.""",
)
def values(view: View) -> Sheet:
    """One row a run."""
    frame = view.frame("diversity")
    cells = {(row.run, row.quantity): with_interval(row.value, row.low, row.high) for row in frame.itertuples()}
    _, accuracy = shifted_accuracy(view, "ood")
    rows: list[list[Cell]] = [
        [
            name,
            *(cells.get((name, quantity), typeset.MISSING) for quantity in _SHOWN),
            typeset.percent(accuracy.get(name)),
        ]
        for name in view.order(frame.run)
    ]
    return Sheet(["run", *_SHOWN.values(), "accuracy out of distribution"], rows, frozenset({"run"}))


def limits(view: View) -> list[str]:
    """What was drawn, and what such diversity does not show."""
    frame = view.frame("diversity")
    if frame.empty:
        return []
    problems, samples = (typeset.count(frame[column].max()) for column in ("problems", "samples"))
    return [
        f"Diversity is of {samples} answers to each of {problems} problems of {frame.benchmark.iloc[0]}. Wrong answers "
        "count as well as right ones, so that it can rise because a run errs in more ways; different words need not be "
        "different ideas, and final answers and equations are compared as they are written. Entropies of few answers "
        "are too small, alike for all runs."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How diverse answers are, higher being more: `diversity_per_input` (the headline), `diversity_across_input`,
    `diversity_answers`, `diversity_equations`, `diversity_entropy`.
    """
    for row in view.rows("diversity"):
        if row["quantity"] in _METRICS:
            yield row["run"], _METRICS[row["quantity"]], row["value"]
