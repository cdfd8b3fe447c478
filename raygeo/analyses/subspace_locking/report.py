"""What is shown of subspaces that lock."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.plots import figure, legend, lines, log, make_panels
from raygeo.report.sheets import Cell, Sheet, known, section
from raygeo.report.style import MUTED
from raygeo.report.view import View

_SIDES = {"left": "output space", "right": "input space"}


@figure(
    "locking",
    "When does a run settle on its directions?",
    """How much of the leading singular directions of each kept delta lies in those of the last one, against the
    optimiser step (log scale): 1 is the same subspace. Means over matrices. The dashed line is the mean of random
    subspaces; on the right of LoRA deltas these lie in the row space of A, which hardly moves.""",
)
def locking(view: View) -> Figure | None:
    """Draw the similarity to the last subspace by step, left and right."""
    frame = view.frame("subspace_locking", scope="global")
    if frame.empty:
        return None
    fig, axes = make_panels(2, 2, 3.2)
    for ax, (side, space) in zip(axes, _SIDES.items(), strict=True):
        here = frame[frame.side == side]
        lines(ax, view, here, "step", "similarity")
        null = here.groupby("step")["null"].median()
        ax.plot(null.index, null, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.set_title(f"{side} ({space})")
        ax.set_ylim(0, 1.05)
        log(ax, "x")
        ax.set_xlabel("optimiser step t")
    chance = Line2D([], [], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="random subspaces")
    legend(fig, view, frame.run, [chance])
    return fig


@section(
    "Directions that lock",
    """Similarity of the leading singular subspaces to those of the last delta, means over matrices: at the first kept
    step, the mean over kept steps, and the step from which on it stays at least half way from chance to 1, as a share
    of all steps.""",
)
def settled(view: View) -> Sheet:
    """Where each run begins, and when it settles, left and right."""
    frame = view.frame("subspace_locking", scope="global").sort_values("step")
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        cells: list[Cell] = []
        for side in _SIDES:
            way = frame[(frame.run == name) & (frame.side == side)]
            if way.empty:
                cells += [typeset.MISSING] * 3
                continue
            first = typeset.fixed(way.similarity.iloc[0]), f"chance {typeset.fixed(way['null'].iloc[0])}"
            cells += [first, typeset.fixed(way.similarity.mean()), typeset.percent(_settled(view, name, way))]
        rows.append([name, *cells])
    columns = [f"{side}, {what}" for side in _SIDES for what in ("first", "mean", "settled at")]
    return Sheet(["run", *columns], rows, frozenset({"run"}))


def _settled(view: View, run: str, way: pd.DataFrame) -> float | None:
    """Share of the run's steps at the first kept one from which on ``way`` stays half way from chance to 1."""
    record = view.records.get(run)
    if record is None or not record.steps or way.empty:
        return None
    below = way[way.similarity < (1 + way["null"]) / 2].step.max()
    after = way.step if not known(below) else way.step[way.step > below]
    return float(after.min() if len(after) else record.steps) / record.steps


def confined(view: View) -> list[str]:
    """What similarity to the end does not show."""
    frame = view.frame("subspace_locking", scope="global")
    if frame.empty:
        return []
    sentences = [
        "Subspaces near the end resemble the last one whatever is learned, since the delta has hardly moved between, "
        "and a falling learning rate makes that sooner. Between kept steps nothing is known."
    ]
    if frame[frame.side == "right"]["null"].max() > 2 * frame[frame.side == "left"]["null"].max():
        sentences.append(
            "On the right, LoRA deltas lie in the row space of A from the first step: chance is high there, and only "
            "the left side can lock."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Mean similarity over kept steps to the last subspace, and the share of steps at which it settles, by side."""
    frame = view.frame("subspace_locking", scope="global").sort_values("step")
    for (run, side), way in frame.groupby(["run", "side"], sort=False):
        yield str(run), f"subspace_locking/{side}", float(way.similarity.mean())
        yield str(run), f"subspace_locked_at/{side}", _settled(view, str(run), way)


def histories(view: View) -> Iterator[tuple[str, str, int, float | None]]:
    """Similarity to the last subspace at the kept steps, by side."""
    for row in view.rows("subspace_locking", scope="global"):
        yield row["run"], f"trajectory/subspace_similarity/{row['side']}", row["step"], row["similarity"]
