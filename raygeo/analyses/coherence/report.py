"""What is shown of the coherence of gradients."""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raygeo.report import typeset
from raygeo.report.plots import (
    clustered,
    figure,
    heatmap,
    heatmap_figure,
    interval,
    make_panels,
    name_rows,
    rows_height,
    run_rows,
)
from raygeo.report.sheets import Cell, Sheet, at, known, section, unordered
from raygeo.report.style import GRID, MUTED
from raygeo.report.view import View


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
    labels, place = run_rows(view, frame.run)
    if not labels:
        return None
    fig, (ax,) = make_panels(1, 1, 0.2 + rows_height(len(labels), 0.36))
    by_place = dict(iter(frame.groupby(["run", "at"], sort=False)))
    for name, y in place.items():
        for where, height, look in (("base", y - 0.16, _STROKE), ("run", y + 0.16, {})):
            for row in by_place[name, where].itertuples() if (name, where) in by_place else ():
                interval(ax, view, name, height, row.pairwise, row.pairwise_low, row.pairwise_high, **look)
    ax.axvline(0, color=GRID, linewidth=1.4, zorder=0)
    name_rows(ax, labels)
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
def cosine_matrix(view: View) -> Figure | None:
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
    if view.many and cells.notna().to_numpy().all():
        cells = clustered(cells)
    fig, ax = heatmap_figure(cells)
    heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu_r"], typeset.fixed)
    ax.set_title("cosine of mean gradients at the base")
    return fig


@section(
    "Coherence of gradients",
    """Of each run's own training loss over training prompts, one example each, at the base and at the run's weights.
    m-coherence is m times the squared mean gradient over the mean squared gradient: 1 for orthogonal gradients, m for
    equal ones. “A pair” does not grow with m. The gradient's length is that of the loss as training divides it. 95 %
    jackknife intervals over examples. “±” is the standard error of random projections, where gradients were projected.
    """,
)
def estimates(view: View) -> Sheet:
    """m-coherence, the same a pair, and the gradient's length, at the base and at each run's weights."""
    frame = view.frame("coherence").dropna(subset="coherence").set_index(["run", "at"])
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.index.get_level_values("run"))):
        here = frame.loc[name]
        row: list[Cell] = [name, typeset.count(here.n.max())]
        for place in ("base", "run"):
            row += [_estimate(here, place, "coherence", 2), _estimate(here, place, "pairwise", 3)]
            row.append(typeset.significant(at(here, place, "gradient_norm")))
        rows.append(row)
    columns = ["run", "m"]
    for place in ("at the base", "at the run"):
        columns += [f"m-coherence {place}", f"a pair {place}", f"gradient {place}"]
    return Sheet(columns, rows, frozenset({"run"}))


def _estimate(frame: pd.DataFrame, name: str, column: str, digits: int) -> Cell:
    if name not in frame.index:
        return typeset.MISSING
    row = frame.loc[name]

    def write(value: float | None) -> str:
        return typeset.fixed(value, digits)

    spread = typeset.interval(row[f"{column}_low"], row[f"{column}_high"], write)
    error = row.get(f"{column}_error")
    detail = " ".join(filter(None, (spread, f"± {typeset.significant(error)} projected" if known(error) else "")))
    return (write(row[column]), detail) if detail else write(row[column])


@section(
    "Gradients of the losses at the base, pair by pair: {rows}",
    """Cosine of mean gradients over the same prompts, and an estimate of that of the expected gradients from pairs of
    different prompts alone, without the noise of prompts; it is missing where the prompts are too few to tell a
    gradient from noise. 95 % jackknife intervals over prompts. “±” is the standard error of random projections, where
    gradients were projected.""",
    folded=True,
)
def cosine_pairs(view: View) -> Sheet:
    """Cosine of two losses' mean gradients at the base, the most alike first."""
    frame = view.frame("gradient_cosines").dropna(subset="cosine").sort_values("cosine", ascending=False, kind="stable")
    rows = [
        [
            a,
            b,
            *(_estimate(pd.DataFrame([row._asdict()], ["x"]), "x", c, 3) for c in ("cosine", "expected")),
            str(row.n),
        ]
        for row, a, b in unordered(view, frame)
    ]
    return Sheet(["a", "b", "cosine", "expected", "prompts"], rows, frozenset({"a", "b"}))


def few_prompts(view: View) -> list[str]:
    """Which examples the gradients are of."""
    n = view.frame("coherence").n.dropna()
    if n.empty:
        return []
    *fewest, most = sorted({n.min(), n.max()})
    prompts = " to ".join([*map(typeset.count, fewest), typeset.counted(most, "training prompt")])
    return [
        f"Coherence is over {prompts} with one example each, so prompts count alike however many "
        "rollouts a loss uses of them, and prompts that all losses learn from come first: with pairwise losses in the "
        "study these have right and wrong rollouts and do not stand for the whole training set. Gradients are plain "
        "ones; AdamW rescales them entry by entry."
    ]


def projections(view: View) -> list[str]:
    """What projections of gradients add to the errors."""
    pairs = view.frame("coherence").pairwise_error.dropna()
    cosines = view.frame("gradient_cosines").cosine_error.dropna()
    if pairs.empty:
        return []
    between = f", cosines between losses one of at most {typeset.significant(cosines.max())}" if len(cosines) else ""
    return [
        "Gradients were compared by random projections: the coherence of a pair of examples has a standard error of "
        f"at most {typeset.significant(pairs.max())}{between} (from parts of the projections)."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """m-coherence at the base and at each run's own weights, and the gradient's cosine with the reference run's."""
    for row in view.rows("coherence"):
        yield row["run"], f"coherence_at_{row['at']}", row["coherence"]
    for row in view.rows("gradient_cosines"):
        pair = {row["run_a"], row["run_b"]}
        if view.reference_run in pair:
            [other] = pair - {view.reference_run}
            yield other, "gradient_cosine_to_reference", row["cosine"]
