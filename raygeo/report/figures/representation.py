"""What the models compute."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.figures.parts import (
    WIDE,
    WIDTH,
    by_layer,
    figure,
    heatmap,
    legend,
    log,
    make_panels,
    name_rows,
)
from raygeo.report.style import GRID, MUTED
from raygeo.report.view import View
from raygeo.tables import BASE


@figure(
    "cka",
    "Representations, layer by layer",
    """Unbiased linear CKA of hidden states on the same texts: 1 is the same representation up to rotation and
    scale. Bands are 95 % intervals over minibatches, where known; the unbiased estimate may pass 1 by chance.
    Values near 1 everywhere are normal for one student fine-tuned briefly, so read differences between runs
    rather than levels.""",
)
def cka(view: View) -> Figure | None:
    """Draw CKA by layer against the base and against the reference run."""
    panels = [
        (other, view.against(other, "cka", treatment="plain").dropna(subset="cka"))
        for other in (BASE, view.reference_run)
    ]
    panels = [(other, frame) for other, frame in panels if not frame.empty]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 2, 3.7, sharey=True)
    for ax, (other, frame) in zip(axes, panels, strict=True):
        by_layer(ax, view, frame, "cka")
        _bands(ax, view, frame, "low", "high")
        ax.set_title(f"CKA with {other}")
    legend(fig, view, [name for _, frame in panels for name in frame.run])
    return fig


@figure(
    "layer-cka",
    "Which layer of a run is like which layer of the base?",
    """Unbiased linear CKA between all pairs of layers on the same texts, a panel a run; the first is the base with
    itself, what a run that changed nothing would give. Rows are layers of the base, columns of the run, 0 the
    embeddings. A diagonal that fades means that a layer no longer does what it did; a bright band beside it, that
    another layer does it now. Where a model has many layers some are left out; the table has intervals, and the
    same against the reference run.""",
)
def layer_cka(view: View) -> Figure | None:
    """Draw CKA between layers of the base and layers of each run."""
    frame = view.frame("layer_cka", run_a=BASE).dropna(subset="cka")
    names = view.order(frame.run_b)
    if not names:
        return None
    fig, axes = make_panels(len(names), 4, 2.5)
    for ax, name in zip(axes, names, strict=True):
        cells = frame[frame.run_b == name].pivot(index="layer_a", columns="layer_b", values="cka")
        mesh = ax.pcolormesh(cells.to_numpy(), norm=Normalize(0, 1), cmap=matplotlib.colormaps["viridis"])
        ax.set_xticks(np.arange(cells.shape[1]) + 0.5, cells.columns)
        ax.set_yticks(np.arange(cells.shape[0]) + 0.5, cells.index)
        ax.set_aspect("equal")
        ax.grid(False)
        ax.set_title(name)
    bar = fig.colorbar(mesh, ax=axes, shrink=0.6, label="CKA")
    assert bar.solids is not None
    bar.solids.set_rasterized(False)  # a raster image inside the SVG would not follow the page
    fig.supxlabel("layer of the run", size=9)
    fig.supylabel("layer of the base", size=9)
    return fig


@figure(
    "drift",
    "How far did hidden states move?",
    """Against the base, completion token by completion token on the same texts: the mean cosine of hidden states, and
    the mean length of the difference as a share of the base's state. Bands are 95 % intervals over texts. Unlike
    CKA this is not blind to rotation and scale, so it sees changes that later layers may undo; a few dimensions of
    massive activations can keep the cosine near 1 whatever the others do.""",
)
def drift(view: View) -> Figure | None:
    """Draw cosine with the base and relative change by layer."""
    frame = view.frame("drift").dropna(subset="cosine")
    if frame.empty:
        return None
    fig, axes = make_panels(2, 2, 3.7)
    for ax, (column, title) in zip(axes, _DRIFT.items(), strict=True):
        by_layer(ax, view, frame, column)
        _bands(ax, view, frame, f"{column}_low", f"{column}_high")
        ax.set_title(title)
    legend(fig, view, frame.run)
    return fig


_DRIFT = {"cosine": "cosine with the base's hidden state", "change": "|h − h base| / |h base|"}


def _bands(ax: Axes, view: View, frame: pd.DataFrame, low: str, high: str) -> None:
    """Shade an interval against ``layer`` for every run."""
    for name, rows in frame.sort_values("layer").groupby("run"):
        ax.fill_between(rows.layer, rows[low], rows[high], color=view.styles[name].colour, alpha=0.1, linewidth=0)


@figure(
    "divergence",
    "How far did predictions move?",
    """Kullback-Leibler divergence of next-token predictions over the whole vocabulary, in nats a token, on the same
    held-out solutions: run ‖ base weighs tokens as the run predicts them, base ‖ run as the base did. Bars are 95 %
    intervals over texts. Two runs of equal divergence have moved equally far as functions, which equal norms do not
    promise: compare what else differs between such runs first. The texts are correct solutions of held-out problems,
    not what the runs would write.""",
)
def divergence(view: View) -> Figure | None:
    """Draw the divergence from the base, both ways, one row a run."""
    frame = view.frame("divergences", run_a=BASE).dropna(subset="value")
    frame = frame[frame.quantity.isin(_DIVERGENCES)]
    if frame.empty:
        return None
    names = view.order(frame.run_b)
    fig, axes = make_panels(2, 2, 0.9 + 0.27 * len(names), sharey=True)
    for ax, (quantity, title) in zip(axes, _DIVERGENCES.items(), strict=True):
        rows = frame[frame.quantity == quantity].set_index("run_b")
        for y, name in enumerate(names):
            if name in rows.index:
                _interval(ax, view, name, y, *rows.loc[name, ["value", "low", "high"]])
        name_rows(ax, names)
        positive = rows.value[rows.value > 0]
        if len(positive) and positive.max() > WIDE * positive.min():
            log(ax, "x")
        else:
            ax.set_xlim(left=0)
        ax.set_title(title)
    return fig


_DIVERGENCES = {"kl_ba": "KL(run ‖ base), nats a token", "kl_ab": "KL(base ‖ run), nats a token"}


def _interval(ax: Axes, view: View, name: str, y: float, value: float, low: float, high: float, **look: Any) -> None:
    """Draw one value of a run in its row, with the bar of its interval."""
    style = view.styles[name]
    ax.plot([low, high], [y, y], color=style.colour, linewidth=1.2)
    ax.plot(value, y, **style.line(linestyle="none", markersize=6) | look)


@figure(
    "coherence",
    "Do examples agree on where to go?",
    """Of each run's own training loss over a few training prompts, one example each: the mean inner product of the
    gradients of two different examples as a share of their mean square. 1 means equal gradients, 0 orthogonal ones;
    m-coherence is 1 plus this times one less than the number of examples. Markers are at the run's own weights,
    upright strokes at the base. Bars are 95 % jackknife intervals over examples. A loss that is nearly solved has
    small, unlike gradients left. Losses weigh examples and tokens differently, so compare before and after training
    within a loss rather than levels between losses.""",
)
def coherence(view: View) -> Figure | None:
    """Draw the coherence of a pair of examples at the base and at each run's own weights."""
    frame = view.frame("coherence").dropna(subset="pairwise")
    names = view.order(frame.run)
    if not names:
        return None
    fig, (ax,) = make_panels(1, 1, 1.1 + 0.36 * len(names))
    for y, name in enumerate(names):
        for at, place, look in (("base", y - 0.16, _STROKE), ("run", y + 0.16, {})):
            for row in frame[(frame.run == name) & (frame["at"] == at)].itertuples():
                _interval(ax, view, name, place, row.pairwise, row.pairwise_low, row.pairwise_high, **look)
    ax.axvline(0, color=GRID, linewidth=1.4, zorder=0)
    name_rows(ax, names)
    ax.set_title("mean ⟨g, g′⟩ of two examples / mean |g|²")
    marks = [
        Line2D([], [], color=MUTED, linestyle="none", label=label, **look)
        for look, label in ((_STROKE, "at the base"), ({"marker": "o"}, "at the run's own weights"))
    ]
    fig.legend(handles=marks, loc="outside lower center", ncols=2)
    return fig


_STROKE: dict[str, Any] = {"marker": "|", "markersize": 10, "markeredgewidth": 2}


@figure(
    "gradient-cosines",
    "Do the losses pull the base in the same direction?",
    """Cosine of the mean gradients of two losses at the base, over the same training prompts, each loss under its first
    run: where training starts out, before any optimiser, learning rate or length of training. AdamW rescales
    gradients entry by entry, so deltas need not point where these do. Losses that draw the same rows of a prompt
    share its noise, which raises the cosine; the table has an estimate without it.""",
)
def gradient_cosines(view: View) -> Figure | None:
    """Draw the matrix of cosines between losses' mean gradients at the base."""
    frame = view.frame("gradient_cosines").dropna(subset="cosine")
    names = view.order({*frame.run_a, *frame.run_b})
    if len(names) < 2:
        return None
    cells = pd.DataFrame(np.nan, index=names, columns=names)
    for row in frame.itertuples():
        cells.loc[row.run_a, row.run_b] = cells.loc[row.run_b, row.run_a] = row.cosine
    for name in names:
        cells.loc[name, name] = 1.0
    fig = Figure(figsize=(min(WIDTH, 2.6 + 0.62 * len(names)), 1.9 + 0.4 * len(names)), layout="constrained")
    ax = fig.subplots()
    heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu_r"], typeset.fixed)
    ax.set_title("cosine of mean gradients at the base")
    return fig
