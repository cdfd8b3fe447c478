"""What is shown of attention heads."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.analyses.heads.workload import CONTROL, LARGEST, RANDOM
from raygeo.geometry.weights.heads import evenness
from raygeo.report import typeset
from raygeo.report.plots import figure, integer_x, interval, legend, make_panels, name_rows, rows_height, run_rows
from raygeo.report.sheets import Cell, Sheet, section, share, with_interval
from raygeo.report.view import View

_LOOKS: dict[str, Any] = {LARGEST: {"marker": "o"}, RANDOM: {"marker": "s"}, CONTROL: {"marker": "x"}}
_TITLES = {"removed": "rise of the run's NLL without it", "added": "fall of the base's NLL by it alone"}


@figure(
    "heads",
    "Which attention heads moved?",
    """Norm of the part of each run's delta that belongs to a head, the largest first, as a multiple of their root mean
    square; under grouped queries query heads (columns of o, rows of q) and key-value heads (rows of k and v) are
    apart. Dotted: as many rows and columns dealt at random. A line above its dots at the left says that training
    moved some heads more than chance would have it.""",
)
def heads(view: View) -> Figure | None:
    """Draw sorted norms beside random ones, one panel a kind of head."""
    frame = view.frame("heads")
    frame = frame[frame.norm > 0]
    if frame.empty:
        return None
    kinds = list(frame.kind.unique())
    fig, axes = make_panels(len(kinds), 2, 3.4)
    for ax, kind in zip(axes, kinds, strict=True):
        of_kind = frame[frame.kind == kind]
        for name in view.examples(of_kind.run):
            own, style = of_kind[of_kind.run == name], view.styles[name]
            if own.empty:
                continue
            for column, dashes in (("norm", "-"), ("random_norm", ":")):
                norms = np.sort(own[column].to_numpy())[::-1]
                places = np.arange(1, len(norms) + 1)
                ax.plot(places, norms / np.sqrt((norms**2).mean()), color=style.colour, linestyle=dashes, linewidth=1.2)
        integer_x(ax, "head, the largest first")
        ax.set_title(f"{kind} heads" if kind != "head" else "heads")
    axes[0].set_ylabel("norm, in units of the mean")
    legend(fig, view, frame.run, [Line2D([], [], color="0.4", linestyle=":", label="dealt at random")])
    return fig


@figure(
    "head-effects",
    "What does the NLL owe to single heads?",
    """Left, how much a run's NLL on held-out solutions rises when the update of one head is taken out; right, how much
    the base's falls when it alone is added. Circles are the heads with the largest updates, squares random others,
    crosses as many random rows and columns of the same matrices; bars are 95 % intervals over texts, not corrected for
    the number of heads. Effects of heads do not add up to the run's. Of many runs the first of each configuration are
    shown.""",
)
def effects(view: View) -> Figure | None:
    """Draw both effects of every head measured, one row a run."""
    frame = view.frame("head_effects")
    if frame.empty:
        return None
    frame = frame[frame.run.isin(list(view.groups(frame.run)))]
    labels, places = run_rows(view, frame.run)
    fig, axes = make_panels(2, 2, rows_height(len(labels)) + 0.8, sharey=True)
    offsets = {LARGEST: -0.25, RANDOM: 0.0, CONTROL: 0.25}
    for ax, (column, title) in zip(axes, _TITLES.items(), strict=True):
        for row in frame.dropna(subset=column).itertuples():
            y = places[row.run] + offsets[row.chosen]
            low, value, high = (getattr(row, f"{column}{end}") for end in ("_low", "", "_high"))
            interval(ax, view, row.run, y, value, low, high, markersize=4.5, **_LOOKS[row.chosen])
        ax.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        ax.set_title(title)
        ax.set_xlabel("nats a token")
        name_rows(ax, labels)
    words = {LARGEST: "largest", RANDOM: "random heads", CONTROL: "random rows and columns"}
    marks = [Line2D([], [], color="0.3", linestyle="none", label=words[kind], **_LOOKS[kind]) for kind in _LOOKS]
    legend(fig, view, (), marks)
    return fig


@section(
    "Attention heads: {rows}",
    """Heads whose update was taken out of the run (the rise of its NLL) and added alone to the base (the fall of the
    base's), with 95 % paired intervals over texts; “random rows” are the control, as many rows and columns of the same
    matrices. “Its share” is of the squared norm of the whole delta.""",
    folded=True,
)
def switched(view: View) -> Sheet:
    """One row a head or control measured."""
    frame = view.frame("head_effects")
    norms = view.frame("heads")
    shares = {(row.run, row.module, row.kind, row.head): row.share for row in norms.itertuples()}
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        for row in frame[frame.run == name].itertuples():
            control = row.chosen == CONTROL
            kind = "" if row.kind == "head" else f" {row.kind}"
            rows.append(
                [
                    name,
                    row.module,
                    "random rows" + kind if control else f"{int(row.head)}{kind}",
                    row.chosen,
                    typeset.significant(row.norm),
                    typeset.MISSING if control else share(shares.get((name, row.module, row.kind, int(row.head)))),
                    with_interval(row.removed, row.removed_low, row.removed_high),
                    with_interval(row.added, row.added_low, row.added_high),
                ]
            )
    columns = ["run", "attention", "head", "chosen as", "norm", "its share", "removed", "added alone"]
    return Sheet(columns, rows, frozenset({"run", "attention", "head", "chosen as"}))


def limits(view: View) -> list[str]:
    """What single heads do not show."""
    frame, measured = view.frame("heads"), view.frame("head_effects")
    if frame.empty:
        return []
    sentences = []
    if switched := _most_measured(measured):
        sentences.append(
            f"Of {typeset.counted(frame.groupby('run').size().max(), 'head')} a run, {typeset.count(switched)} "
            f"{'was' if switched == 1 else 'were'} switched off and on, one at a time: heads that stand in for each "
            "other show no effect, and no interval is corrected for their number."
        )
    if (frame.kind == "query").any():
        sentences.append(
            "Queries are grouped: the keys and values that several query heads share are counted as heads of their "
            "own, and a query head without its update still reads the changed ones."
        )
    looked_at = set(frame.run)
    if left := [name for name in view.names if name not in looked_at | view.failed | view.legs]:
        failed = view.rows("missing", part="geometry.heads")
        alone = f": {'this run leaves' if len(left) == 1 else 'these runs leave'} attention's weights alone"
        sentences.append(f"No head of {', '.join(left)} was looked at{'' if failed else alone}.")
    return sentences


def _most_measured(measured: pd.DataFrame) -> int:
    own = measured[measured.chosen != CONTROL]
    return int(own.groupby("run").size().max()) if len(own) else 0


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How evenly heads moved, beside chance, and the mean effect of the heads and controls measured."""
    frame, measured = view.frame("heads"), view.frame("head_effects")
    for name in view.order(frame.run):
        for kind, own in frame[(frame.run == name) & (frame.norm > 0)].groupby("kind"):
            where = f"/{str(kind).replace('-', '_')}"
            yield name, f"heads/evenness{where}", evenness(own.norm.tolist())
            yield name, f"heads/evenness_random{where}", evenness(own.random_norm.tolist())
        for chosen, rows in measured[measured.run == name].groupby("chosen"):
            for effect in _TITLES:
                yield name, f"heads/{effect}/{chosen}", float(rows[effect].mean())
