"""What is shown of forgetting."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from raygeo.analyses.forgetting.workload import ACCURACY, KL, POOLED, TEXTS
from raygeo.evaluation.laws import FEWEST_GROUPS
from raygeo.report import typeset
from raygeo.report.plots import figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, known, nats, section, with_interval
from raygeo.report.style import GRID
from raygeo.report.view import View


def _shown(source: str) -> str:
    """What the page calls a source of the table."""
    return "all retention benchmarks" if source == POOLED else source


@figure(
    "forgetting",
    "What was forgotten, and does the divergence foretell it?",
    """The drop of each run on what the base could do before, against KL(base ‖ run) on prompts of the new task, nats a
    token: of accuracy in percentage points, of texts the rise of the NLL in nats a token; above zero is worse than the
    base. Bars are 95 % intervals over problems or passages. The curve is a x + b x², fitted to all runs of the
panel.""",
)
def forgetting(view: View) -> Figure | None:
    """Draw drop against divergence with the fitted curve, one panel a source."""
    frame = view.frame("forgetting").dropna(subset=["kl", "drop"])
    if frame.empty:
        return None
    laws = view.frame("forgetting_laws", predictor=KL).set_index("source")
    sources = list(dict.fromkeys(frame.source))
    fig, axes = make_panels(len(sources), 3, 3.6)
    for ax, source in zip(axes, sources, strict=True):
        rows = frame[frame.source == source]
        accuracy = rows.measure.iloc[0] == ACCURACY
        scale = 100 if accuracy else 1
        for row in rows.itertuples():
            style = view.styles[row.run]
            ax.plot([row.kl, row.kl], [scale * row.low, scale * row.high], color=style.colour, linewidth=1.2)
            ax.plot(row.kl, scale * row.drop, **style.line(linestyle="none", markersize=6))
        if source in laws.index and known(laws.a[source]) and known(laws.b[source]):
            x = np.linspace(0, rows.kl.max(), 100)
            ax.plot(x, scale * (laws.a[source] * x + laws.b[source] * x**2), color="0.35", linewidth=1.1, zorder=0)
        ax.axhline(0, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(f"{_shown(source)}: {'drop, points' if accuracy else 'rise of the NLL'}")
        ax.set_xlabel("KL(base ‖ run), nats a token")
    legend(fig, view, frame.run)
    return fig


@section(
    "Forgetting",
    """Of what the base could do before. The drop is the base's accuracy less the run's, or the rise of the NLL in nats
    a token; positive is worse than the base. 95 % intervals over problems or passages, paired.""",
)
def drops(view: View) -> Sheet:
    """One row a run and source."""
    frame = view.frame("forgetting")
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        for row in frame[frame.run == name].itertuples():
            accuracy = row.measure == ACCURACY
            write = typeset.percent if accuracy else nats
            change = typeset.points if accuracy else nats
            spread = typeset.interval(row.low, row.high, change)
            rows.append([name, _shown(row.source), write(row.base), write(row.value), (change(row.drop), spread)])
    return Sheet(["run", "source", "base", "run's", "drop"], rows, frozenset({"run", "source"}))


@section(
    "Laws of forgetting",
    """drop = a x + b x² over runs, for the divergence and for what competes with it. R² is about the mean; held out,
    each configuration is predicted from the others, and below zero the mean of these does better. The last column is
    how far a predictor's held-out R² lies behind that of the divergence, its interval adjusted for how many are
    compared. 95 % intervals over configurations.""",
)
def laws(view: View) -> Sheet:
    """One row a source and predictor."""
    rows: list[list[Cell]] = [
        [
            _shown(row.source),
            row.predictor,
            typeset.count(row.runs),
            typeset.count(row.configurations),
            *(
                with_interval(*(getattr(row, f"{name}{end}") for end in ("", "_low", "_high")))
                for name in ("a", "b", "r2", "held_out_r2", "behind")
            ),
            row.reason,
        ]
        for row in view.frame("forgetting_laws").itertuples()
    ]
    columns = ["source", "predictor", "runs", "configurations", "a", "b", "R²", "R² held out", "behind KL", "note"]
    return Sheet(columns, rows, frozenset({"source", "predictor", "note"}))


def claim(view: View) -> list[str]:
    """What the laws show, and no more."""
    rows = view.rows("forgetting_laws")
    return [_claim(source, [r for r in rows if r["source"] == source]) for source in dict.fromkeys(_sources(rows))]


def _sources(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [row["source"] for row in rows]


def _claim(source: str, rows: Sequence[dict[str, Any]]) -> str:
    """A sentence on one source that its intervals bear."""
    law = next(row for row in rows if row["predictor"] == KL)
    what = f"the {'rise of the NLL' if source == TEXTS else 'drop of accuracy'} on {_shown(source)}"
    found, runs = law["held_out_r2"], f"{typeset.count(law['runs'])} runs of {typeset.count(law['configurations'])}"
    if not known(found) or not known(law["held_out_r2_low"]):
        return (
            f"Whether KL(base ‖ run) foretells {what} is not known: {runs} configurations are too few, or too alike, "
            f"to say how sure a law is (at least {FEWEST_GROUPS} configurations)."
        )
    spread = typeset.interval(law["held_out_r2_low"], law["held_out_r2_high"])
    measured = f"held-out R² {typeset.fixed(found)}, 95 % interval {spread}, {runs} configurations"
    if law["held_out_r2_low"] <= 0:
        return f"That KL(base ‖ run) foretells {what} is not shown ({measured})."
    said = f"KL(base ‖ run) foretells {what} better than the mean of other configurations does ({measured})"
    rivals = [row for row in rows if row["predictor"] != KL and known(row["behind_low"])]
    verdicts = {
        "better than {} does": [r["predictor"] for r in rivals if r["behind_low"] > 0],
        "worse than {} does": [r["predictor"] for r in rivals if r["behind_high"] < 0],
        "not told apart from {}": [r["predictor"] for r in rivals if r["behind_low"] <= 0 <= r["behind_high"]],
    }
    parts = [words.format(" or ".join(names)) for words, names in verdicts.items() if names]
    return f"{said}; {'; '.join(parts)}." if parts else f"{said}."


def limits(view: View) -> list[str]:
    """What such laws do not show."""
    if not view.rows("forgetting_laws"):
        return []
    return [
        "Laws of forgetting are associations over the runs of one study: nothing was set at random but seeds, and what "
        "moves the divergence may move what is forgotten by another way. The divergence and the drop are each "
        "measured with error, which flattens a curve, and all drops share the base's own."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """What a run forgot, `forgetting`: the base's accuracy less the run's over the problems of all retention
    benchmarks, or without any the rise of the NLL on the texts, nats a token; higher is worse. Both, where they are
    measured, are `forgetting_accuracy` and `forgetting_nll`.
    """
    frame = view.frame("forgetting")
    graded = list(dict.fromkeys(frame.source[frame.measure == ACCURACY]))
    whole = POOLED if POOLED in graded else next(iter(graded), None)
    for run, rows in frame.groupby("run", sort=False):
        drop = rows.set_index("source")["drop"]
        accuracy, nll = drop.get(whole), drop.get(TEXTS)
        yield str(run), "forgetting", accuracy if graded else nll
        yield str(run), "forgetting_accuracy", accuracy
        yield str(run), "forgetting_nll", nll
