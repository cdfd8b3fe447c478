"""What is shown of runs cut to few singular directions."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.analyses.rank_truncation.workload import RANDOM, SCALED, TRUNCATED, WHOLE
from raygeo.report import typeset
from raygeo.report.plots import figure, legend, lines, log, make_panels
from raygeo.report.sheets import Cell, Sheet, at, known, nats, section, share
from raygeo.report.view import View

_NULLS: dict[str, Any] = {RANDOM: ":", SCALED: "--"}


@figure(
    "rank-truncation",
    "How many directions carry a run?",
    """Base plus the leading singular directions of each matrix of a run's delta, by how many are kept: the share of the
    run's gain in NLL that is left, the share of the delta's squared norm, and accuracy. The last point of a line is the
    whole run. Dotted: as many random directions of the same delta; dashed: the whole delta, each parameter scaled to
    the norm that it has when cut. Directions matter where the line stands above both; of many runs the nulls are in the
    tables alone.""",
)
def truncation(view: View) -> Figure | None:
    """Draw what is kept, energy and accuracy against rank, one line a run."""
    frame = view.frame("rank_truncation")
    if frame.empty:
        return None
    cut = frame[frame.kind.isin([TRUNCATED, WHOLE])].copy()
    cut.loc[cut.kind == WHOLE, "kept"] = cut.kept.where(cut.kind != WHOLE, 1.0)
    told = frame.groupby("run").kept.apply(lambda kept: kept.notna().any())
    cut.loc[~cut.run.map(told).astype(bool), "kept"] = None
    panels = {"kept": "gain in NLL kept, %", "energy": "squared norm kept, %", "accuracy": "accuracy, %"}
    shown = {column: title for column, title in panels.items() if cut[column].notna().any()}
    fig, axes = make_panels(len(shown), 3, 3.4)
    for ax, (column, title) in zip(axes, shown.items(), strict=True):
        rows = cut[cut[column].notna()]
        lines(ax, view, rows.assign(shown=100 * rows[column]), "rank", "shown", markersize=3.2)
        if not view.many:
            _nulls(ax, view, frame, column)
        log(ax, "x")
        ax.set_title(title)
        ax.set_xlabel("rank kept of each matrix")
    named = {RANDOM: "random directions", SCALED: "whole, scaled"}
    extra = [Line2D([], [], color="0.4", linestyle=_NULLS[kind], label=label) for kind, label in named.items()]
    legend(fig, view, frame.run, () if view.many else extra)
    return fig


def _nulls(ax: Axes, view: View, frame: pd.DataFrame, column: str) -> None:
    for kind, dashes in _NULLS.items():
        of_kind = frame[(frame.kind == kind) & frame[column].notna()]
        if column == "energy" and kind == SCALED:
            continue
        for name, rows in of_kind.groupby("run"):
            rows = rows.sort_values("rank")
            colour = view.styles[str(name)].colour
            ax.plot(rows["rank"], 100 * rows[column], color=colour, linestyle=dashes, linewidth=1)


@section(
    "Ranks that carry each run",
    """The gain is the NLL of the base less that of the run on held-out solutions. The least rank is the one from which
    on all ranks measured keep the wanted share of the gain, with its 95 % interval over texts; a dash where the gain is
    not told from 0. Beside it what rank 1 (or the least measured) keeps of gain and squared norm, and what as many
    random directions, and the whole delta of that squared norm, keep of the gain.""",
)
def least(view: View) -> Sheet:
    """One row a run."""
    ranks, frame = view.frame("least_ranks").set_index("run"), view.frame("rank_truncation")
    rows: list[list[Cell]] = []
    for name in view.order(ranks.index):
        own, kinds = ranks.loc[name], frame[frame.run == name]
        cut = kinds[kinds.kind == TRUNCATED]
        smallest = kinds[kinds["rank"] == cut["rank"].min()].set_index("kind")
        whole = typeset.count(own.full_rank)
        enough: Cell = typeset.MISSING
        if known(own.least_rank):
            enough = (
                f"{typeset.count(own.least_rank)} of {whole}",
                typeset.interval(own.least_low, own.least_high, typeset.count),
            )
        kept = [share(at(smallest, kind, "kept")) for kind in (TRUNCATED, RANDOM, SCALED)]
        rows.append(
            [
                name,
                (nats(own.gain), typeset.interval(own.gain_low, own.gain_high, nats)),
                enough,
                typeset.percent(own.keep),
                typeset.count(cut["rank"].min()) if len(cut) else typeset.MISSING,
                share(at(smallest, TRUNCATED, "energy")),
                *kept,
            ]
        )
    columns = ["run", "gain in NLL", "least rank", "that keeps", "least measured", "its squared norm", "its gain"]
    return Sheet([*columns, "random directions", "whole, scaled"], rows, frozenset({"run"}))


def limits(view: View) -> list[str]:
    """What truncation does not show."""
    frame, ranks = view.frame("rank_truncation"), view.frame("least_ranks")
    if frame.empty:
        return []
    sentences = [
        "Ranks are cut from all matrices of a delta at once, and the gain is of the likelihood of held-out solutions "
        f"({typeset.count(frame.n.max())} texts); a least rank is one of those measured. Vectors, as biases and norms, "
        "are kept whole in every cut."
    ]
    problems = frame.problems.dropna()
    if len(problems):
        points = typeset.fixed(100 / problems.max(), 1)
        sentences.append(
            f"Accuracies of cut runs are over {typeset.count(problems.max())} problems, so one problem is {points} "
            "points; no two of them are tested against each other."
        )
    if untold := view.order(ranks[ranks.least_rank.isna()].run):
        sentences.append(
            f"The gain in NLL over the base is not told from 0 for {', '.join(untold)}: nothing is said of the ranks "
            "that keep it."
        )
    if worse := view.order(ranks[ranks.gain_high < 0].run):
        sentences.append(
            f"{', '.join(worse)} made held-out solutions less likely than the base does: the shares kept are of that "
            "loss."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The gain, the least rank that keeps it, and what the ranks measured keep of gain and squared norm."""
    for row in view.rows("least_ranks"):
        yield row["run"], "rank_truncation/gain", row["gain"]
        yield row["run"], "rank_truncation/least_rank", row["least_rank"]
    for row in view.rows("rank_truncation"):
        if row["kind"] in (TRUNCATED, RANDOM, SCALED):
            yield row["run"], f"rank_truncation/{row['kind']}/{row['rank']}", row["kept"]
        if row["kind"] == TRUNCATED:
            yield row["run"], f"rank_truncation/energy/{row['rank']}", row["energy"]
