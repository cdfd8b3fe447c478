"""Every figure of a study, one function each: it takes a ``View`` of the tables and returns a matplotlib ``Figure``.

A new figure is one function under ``@figure(...)``; the page and the tracker find it in ``FIGURES``. A figure without
data returns None.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from raygeo.report import typeset
from raygeo.report.style import GRID, MUTED, PAPER, RC
from raygeo.report.view import View
from raygeo.tables import BASE

WIDTH = 10.0
_SMOOTHING = 25
_MARKERS_A_CURVE = 8
_DENSITY_DECADES = 7
_WIDE = 5
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))
_POWERS = FuncFormatter(lambda value, _: typeset.significant(value, 1).removeprefix("1 × "))


@dataclass(frozen=True)
class Plot:
    """A figure of the report: its heading, how to read it, and the function that draws it."""

    title: str
    caption: str
    draw: Callable[[View], Figure | None]


FIGURES: dict[str, Plot] = {}


def figure(name: str, title: str, caption: str) -> Callable[[Callable[[View], Figure | None]], Callable]:
    """Register a drawing function as ``FIGURES[name]``; the order of registration is the reading order."""

    def register(draw: Callable[[View], Figure | None]) -> Callable[[View], Figure | None]:
        FIGURES[name] = Plot(title, " ".join(caption.split()), draw)
        return draw

    return register


def draw_figures(tables: Mapping[str, pa.Table], reference_run: str) -> dict[str, Figure]:
    """Draw every figure whose tables hold data, in reading order."""
    view = View(tables, reference_run)
    with matplotlib.rc_context(RC):
        drawn = {name: plot.draw(view) for name, plot in FIGURES.items()}
    return {name: fig for name, fig in drawn.items() if fig is not None}


# -- shared parts -----------------------------------------------------------------------------------------------------


def _panels(count: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make ``count`` axes in rows of at most ``columns``, ``height`` inches a row."""
    columns = min(count, columns)
    rows = math.ceil(count / columns)
    fig = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in grid[count:]:
        ax.remove()
    return fig, list(grid[:count])


def _legend(fig: Figure, view: View, names: Iterable[str], extra: Iterable[Line2D] = ()) -> None:
    """Put one legend for the whole figure below it."""
    handles = [Line2D([], [], label=name, **view.styles[name].line()) for name in view.order(set(names))]
    handles += extra
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), columnspacing=1.6)


def _integer_x(ax: Axes, label: str) -> None:
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log(ax: Axes, which: str) -> None:
    """Make one axis logarithmic, with round numbers written out."""
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(_PLAIN)
    axis.set_minor_formatter(NullFormatter())


def _name_rows(ax: Axes, names: list[str]) -> None:
    """Name one row per run, top to bottom."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def _heatmap(ax: Axes, cells: pd.DataFrame, norm: Normalize, colours: Colormap, write: Callable) -> None:
    """Draw ``cells`` with each value written in it; missing cells stay empty."""
    values = cells.to_numpy(float)
    rows, columns = values.shape
    ax.pcolormesh(np.ma.masked_invalid(values), norm=norm, cmap=colours, edgecolors=PAPER, linewidth=1.2)
    size = float(np.clip(80 / columns, 5, 9))
    for i, j in np.ndindex(rows, columns):
        if np.isfinite(values[i, j]):
            red, green, blue, _ = colours(float(norm(values[i, j])))
            ink = "#0a0a0a" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.55 else "#fdfdfd"
            ax.text(j + 0.5, i + 0.5, write(values[i, j]), ha="center", va="center", size=size, color=ink)
    ax.set_xticks(np.arange(columns) + 0.5, cells.columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(np.arange(rows) + 0.5, cells.index)
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def _by_layer(ax: Axes, view: View, frame: pd.DataFrame, value: str) -> None:
    """Draw ``value`` against ``layer``, one line a run."""
    for name in view.order(frame.run):
        rows = frame[frame.run == name].sort_values("layer")
        ax.plot(rows.layer, rows[value], **view.styles[name].line())
    _integer_x(ax, "layer")


# -- accuracy and training --------------------------------------------------------------------------------------------


@figure(
    "accuracy",
    "Accuracy on held-out problems",
    """Greedy answers; the line is the Wilson 95 % interval over problems, the dashed line the untrained base.
    Intervals of two runs on the same problems may overlap although the runs differ: for pairs, read the
    McNemar table.""",
)
def accuracy(view: View) -> Figure | None:
    """Draw accuracy with Wilson intervals, one row a run, one panel a benchmark."""
    frame = view.frame("accuracy")
    if frame.empty:
        return None
    benchmarks = list(frame.benchmark.unique())
    names = view.order(frame.run)
    fig, axes = _panels(len(benchmarks), 2, 0.9 + 0.27 * len(names))
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        rows = frame[frame.benchmark == benchmark].set_index("run")
        if BASE in rows.index:
            ax.axvline(100 * rows.accuracy[BASE], color=MUTED, linestyle=(0, (4, 3)), linewidth=0.9)
        for y, name in enumerate(names):
            if name in rows.index:
                row, line = rows.loc[name], view.styles[name].line(linestyle="none", markersize=6)
                ax.plot([100 * row.low, 100 * row.high], [y, y], color=line["color"], linewidth=2.2, alpha=0.75)
                ax.plot(100 * row.accuracy, y, **line)
                ax.annotate(
                    typeset.percent(row.accuracy), (1.01, y), xycoords=("axes fraction", "data"), va="center", size=8.5
                )
        _name_rows(ax, names)
        ax.set_xlim(0, 100)
        ax.set_xlabel("accuracy, %")
        ax.set_title(f"{benchmark}, {int(rows.n.max())} problems")
    return fig


def _curve_panels(fig: Figure, axes: list[Axes], view: View, groups: list[list[str]], frame: pd.DataFrame) -> None:
    for ax, names in zip(axes, groups, strict=True):
        for name in names:
            rows = frame[frame.run == name].sort_values("step")
            line = view.styles[name].line()
            window = max(1, len(rows) // _SMOOTHING)
            if window > 1:
                ax.plot(rows.step, rows.value, color=line["color"], linewidth=0.6, alpha=0.25)
            smooth = rows.value.rolling(window, center=True, min_periods=1).mean()
            first = view.names.index(name) * len(rows) // (_MARKERS_A_CURVE * len(view.names))
            ax.plot(rows.step, smooth, markevery=(first, max(1, len(rows) // _MARKERS_A_CURVE)), **line)
        steady = frame.value[frame.run.isin(set(names) - view.failed)]
        if len(steady) and view.failed & set(names):
            margin = 0.05 * (steady.max() - steady.min()) or 1.0
            ax.set_ylim(steady.min() - margin, steady.max() + margin)
        _integer_x(ax, "optimiser step")
    _legend(fig, view, [name for names in groups for name in names])


@figure(
    "nll",
    "Training: plain negative log-likelihood",
    """Token-mean NLL of each run's own training batches, the one curve that all losses share. Faint: every
    step; bold: a running mean. A loss that never asks for likelihood (DPO, GRPO) need not lower it, and each
    loss sees its own selection of rows, so levels differ by data as well as by loss. A run that diverged leaves
    the panel.""",
)
def nll_curves(view: View) -> Figure | None:
    """Draw the plain token-mean NLL of all runs against the step."""
    frame = view.frame("curves", metric="nll").dropna(subset="value")
    if frame.empty:
        return None
    fig, axes = _panels(1, 1, 3.9)
    _curve_panels(fig, axes, view, [view.order(frame.run)], frame)
    axes[0].set_title("NLL of the training batch, nats a token")
    return fig


@figure(
    "objective",
    "Training: each loss's own objective",
    """One panel a loss, each in its own unit, so levels must not be compared between panels: what to look for
    is that a curve falls and settles. A run that diverged leaves the panel.""",
)
def objective_curves(view: View) -> Figure | None:
    """Draw the objective against the step, one panel a loss."""
    frame = view.frame("curves", metric="objective").dropna(subset="value")
    if frame.empty:
        return None
    groups = view.by_loss(frame.run)
    fig, axes = _panels(len(groups), 3, 2.4)
    _curve_panels(fig, axes, view, list(groups.values()), frame)
    for ax, loss in zip(axes, groups, strict=True):
        ax.set_title(loss)
    return fig


# -- deltas -----------------------------------------------------------------------------------------------------------


@figure(
    "cosine",
    "Do the losses move the weights in the same direction?",
    """Cosine of the angle between two runs' weight deltas, all modules flattened into one vector: 1 is the
    same direction, 0 unrelated, negative (blue) opposed. Runs are ordered so that similar ones stand
    together. Judge each cell against the noise floor below: what the same loss gives when only the seed
    differs. The cosine ignores how far a run moved.""",
)
def cosine_heatmap(view: View) -> Figure | None:
    """Draw the matrix of global cosines, clustered when it is complete."""
    frame = view.frame("similarity", scope="global").dropna(subset="cosine")
    names = view.order({*frame.run_a, *frame.run_b} - {BASE})
    if len(names) < 2:
        return None
    cells = pd.DataFrame(np.eye(len(names)), index=names, columns=names).replace(0.0, np.nan)
    for row in frame.itertuples():
        if row.run_a in names and row.run_b in names and row.run_a != row.run_b:
            cells.loc[row.run_a, row.run_b] = cells.loc[row.run_b, row.run_a] = row.cosine
    if len(names) > 2 and cells.notna().to_numpy().all():
        distance = squareform((1 - cells.to_numpy()).clip(min=0), checks=False)
        leaves = leaves_list(linkage(distance, "average", optimal_ordering=True))
        cells = cells.iloc[leaves, leaves]
    fig = Figure(figsize=(min(WIDTH, 2.6 + 0.62 * len(names)), 1.9 + 0.4 * len(names)), layout="constrained")
    ax = fig.subplots()
    _heatmap(ax, cells, Normalize(-1, 1), matplotlib.colormaps["RdBu_r"], typeset.fixed)
    ax.set_title("cosine of weight deltas, all modules")
    return fig


@figure(
    "norms",
    "How far did each layer move?",
    """Frobenius norm of the delta per layer, absolute and as a share of the same base weights. Runs with very
    different norms are not matched comparisons: a longer step along one direction changes accuracy, curvature
    and paths too.""",
)
def norms(view: View) -> Figure | None:
    """Draw absolute and relative delta norms by layer."""
    frame = view.frame("deltas", scope="module").dropna(subset=["layer", "norm"])
    if frame.empty:
        return None
    squares = frame.assign(norm=frame.norm**2, base_norm=frame.base_norm**2)
    layers = squares.groupby(["run", "layer"])[["norm", "base_norm"]].sum().pow(0.5).reset_index()
    layers["relative"] = 100 * layers.norm / layers.base_norm
    fig, axes = _panels(2, 2, 3.7)
    _by_layer(axes[0], view, layers, "norm")
    _by_layer(axes[1], view, layers, "relative")
    axes[0].set_title("norm of the delta")
    axes[1].set_title("norm of the delta, % of the base weights")
    moved = layers.norm[layers.norm > 0]
    for ax in axes:
        if moved.max() > 2 * _WIDE * moved.min():
            _log(ax, "y")
    _legend(fig, view, layers.run)
    return fig


@figure(
    "trajectories",
    "How did each run move while it trained?",
    """Each kept delta against the optimiser step (log scale). First a panel a loss: the norm (markers) with two
    laws fitted to it by least squares, a + b log t (a straight line here) and c t^q (dotted). Then the direction:
    the cosine to the run's own final delta, which is 1 at the end by construction, and the cosine to the
    reference run at the same step. A few points of one curve are no test between laws, and where the schedule
    ends near zero a flat end says that the learning rate fell, not that training converged.""",
)
def trajectories(view: View) -> Figure | None:
    """Draw norms with their fitted laws, one panel a loss, then cosines to the final delta and the reference run."""
    frame = view.frame("trajectories").sort_values("step")
    if frame.empty:
        return None
    groups = view.by_loss(frame.run)
    cosines = {"cosine_final": "cosine to the final delta", "cosine_reference": f"cosine to {view.reference_run}"}
    shown = [column for column in cosines if frame[column].notna().any()]
    fig, axes = _panels(len(groups) + len(shown), 3, 2.6)
    for ax, (loss, names) in zip(axes, groups.items(), strict=False):
        for name in names:
            rows = frame[frame.run == name]
            ax.plot(rows.step, rows.norm, **view.styles[name].line(linestyle="none"))
            _laws(ax, view, name, rows.step.min(), rows.step.max())
        ax.set_title(f"{loss}: norm of the delta")
    for ax, column in zip(axes[len(groups) :], shown, strict=True):
        for name in view.order(frame.run):
            rows = frame[frame.run == name].dropna(subset=column)
            ax.plot(rows.step, rows[column], **view.styles[name].line())
        ax.axhline(0, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(cosines[column])
    for ax in axes:
        _log(ax, "x")
        ax.set_xlabel("optimiser step t")
    laws = [Line2D([], [], color=MUTED, linewidth=1, **look, label=law) for law, look in _LAW_STYLES.values()]
    _legend(fig, view, frame.run, laws)
    return fig


def _laws(ax: Axes, view: View, run: str, first: float, last: float) -> None:
    """Draw the laws fitted to the norm of ``run`` between its first and last step."""
    t = np.geomspace(first, last, 60)
    for row in view.frame("trajectory_fits", run=run).dropna(subset=["a", "b"]).itertuples():
        norm = row.a + row.b * np.log(t) if row.law == "log" else row.a * t**row.b
        ax.plot(t, norm, color=view.styles[run].colour, linewidth=1, **_LAW_STYLES[row.law][1])


_LAW_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    "log": ("a + b log t", {"linestyle": "-", "alpha": 0.8}),
    "power": ("c t^q", {"linestyle": ":"}),
}


@figure(
    "angles",
    "Principal angles to the reference run, layer by layer",
    """Angles between the leading singular subspaces of each run's delta and the reference run's: 0° is a
    shared direction, 90° none. Top: the smallest angle (the best-shared direction); bottom: the largest; each
    the median over the modules of a layer. The dashed line is the mean angle between random subspaces of the
    same size: only angles clearly below it mean that something is shared. Left vectors live in a module's
    output space, right vectors in its input space. Under LoRA, runs that start from one adapter agree on the
    right before any training; the dashed line there allows for it.""",
)
def angle_profile(view: View) -> Figure | None:
    """Draw the smallest and largest principal angle to the reference run by layer, left and right."""
    frame = view.against(view.reference_run, "subspaces").dropna(subset=["layer", "angle_degrees"])
    if frame.empty:
        return None
    widest = frame.groupby(["run", "module", "side"]).k.transform("max")
    modules = frame[frame.k == widest].groupby(["run", "layer", "module", "side"])[["angle_degrees", "null_degrees"]]
    sides = [side for side in _SIDES if side in set(frame.side)]
    cases = [(which, side) for which in ("min", "max") for side in sides]
    fig, axes = _panels(len(cases), len(sides), 2.7, sharex=True)
    for ax, (which, side) in zip(axes, cases, strict=True):
        extreme = modules.agg(which).xs(side, level="side").groupby(["run", "layer"]).median().reset_index()
        _by_layer(ax, view, extreme, "angle_degrees")
        null = extreme.groupby("layer").null_degrees.median()
        ax.plot(null.index, null, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.set_title(f"{'smallest' if which == 'min' else 'largest'} angle, {side} ({_SIDES[side]}), degrees")
        ax.set_ylim(0, 93)
        ax.set_yticks([0, 15, 30, 45, 60, 75, 90])
        if which == "min":
            ax.set_xlabel("")
    chance = Line2D([], [], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="random subspaces")
    _legend(fig, view, frame.run, [chance])
    return fig


_SIDES = {"left": "output space", "right": "input space"}


# -- paths ------------------------------------------------------------------------------------------------------------


def _path_figure(view: View, origin: str, partners: str) -> Figure | None:
    frame = view.against(origin, "paths")
    frame = frame[frame.run != BASE] if origin != BASE else frame
    panels = [
        (probe, column)
        for probe in frame.probe.unique()
        for column in ("loss", "accuracy")
        if frame.loc[frame.probe == probe, column].notna().any()
    ]
    if not panels:
        return None
    fig, axes = _panels(len(panels), 3 if len(panels) != 4 else 2, 3.4)
    for ax, (probe, column) in zip(axes, panels, strict=True):
        rows = frame[(frame.probe == probe) & frame[column].notna()].sort_values("alpha")
        for name in view.order(rows.run):
            path = rows[rows.run == name]
            scale = 100 if column == "accuracy" else 1
            ax.plot(path.alpha, scale * path[column], **view.styles[name].line(markersize=3.2))
        for end in (0, 1):
            ax.axvline(end, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(f"{probe}: {'accuracy, %' if column == 'accuracy' else 'NLL, nats a token'}")
        ax.set_xlabel(f"α (0 = {origin}, 1 = {partners})")
    _legend(fig, view, frame.run)
    return fig


@figure(
    "paths",
    "Straight lines between the reference run and the others",
    """Each probe along (1 − α) · reference + α · other, in the space of merged weights. A barrier is a
    stretch of curve above the straight line between its two ends; a smooth curve without a bump means that
    the two runs lie in one basin as far as this grid shows. Small deltas make flat paths: absence of a
    barrier is not evidence of similarity.""",
)
def paths(view: View) -> Figure | None:
    """Draw loss and accuracy along the line from the reference run to every other run."""
    return _path_figure(view, view.reference_run, "the other run")


@figure(
    "base-paths",
    "Straight lines from the base to each run",
    """The same along base + α · delta: how the probes change as a delta is switched on (α = 1 is the trained
    run). A minimum before α = 1 says that the run overshot this probe.""",
)
def base_paths(view: View) -> Figure | None:
    """Draw loss and accuracy along the line from the base to every run."""
    return _path_figure(view, BASE, "the run")


# -- curvature --------------------------------------------------------------------------------------------------------


@figure(
    "spectra",
    "Spectral density of the curvature",
    """Density of eigenvalues at each run by stochastic Lanczos quadrature (log scale), the base in grey
    behind each. Mass to the left of zero is negative curvature; isolated bumps to the right are the sharp
    directions. The width of a bump is the smoothing kernel's, not the spectrum's. The curve is that of one
    probe loss common to all runs, not of any run's own training loss. Where runs differ much, the axis is
    linear near zero and logarithmic beyond.""",
)
def spectra(view: View) -> Figure | None:
    """Draw the spectral density of each run in its own panel, the base behind it."""
    frame, what = view.curvature("density")
    frame = frame[frame.value > 0]
    if frame.empty:
        return None
    names = view.order(frame.run)
    shown = [name for name in names if name != BASE] or names
    fig, axes = _panels(len(shown), 4, 2.05, sharex=True, sharey=True)
    for ax, name in zip(axes, shown, strict=True):
        for run in dict.fromkeys((BASE, name)):
            rows = frame[frame.run == run].sort_values("x")
            front = run == name
            colour = view.styles[run].colour if front else MUTED
            ax.plot(rows.x, rows.value, color=colour, linewidth=1.5 if front else 0.9, alpha=1 if front else 0.8)
        ax.axvline(0, color=GRID, linewidth=1.2, zorder=0)
        ax.set_title(name)
    peak = frame.value.max()
    axes[0].set_yscale("log")
    floor = peak * 10**-_DENSITY_DECADES
    axes[0].set_ylim(floor, peak * 3)
    axes[0].yaxis.set_major_formatter(_POWERS)
    reach = frame[frame.value > floor].groupby("run").x.max()
    if reach.min() > 0 and reach.max() > _WIDE * reach.min():
        axes[0].set_xscale("symlog", linthresh=10 ** math.floor(math.log10(reach.min() / 3)))
        axes[0].xaxis.set_major_formatter(_PLAIN)
    fig.supxlabel(f"eigenvalue ({what})", size=9)
    fig.supylabel("density", size=9)
    return fig


@figure(
    "eigenvalues",
    "Largest eigenvalues",
    """The top eigenvalues of the same operator at each run by Lanczos, the largest written out. Larger means
    sharper: the probe loss rises faster along some direction.""",
)
def top_eigenvalues(view: View) -> Figure | None:
    """Draw the top eigenvalues, one row a run."""
    frame, what = view.curvature("eigenvalue")
    if frame.empty:
        return None
    names = view.order(frame.run)
    fig, (ax,) = _panels(1, 1, 0.9 + 0.27 * len(names))
    for y, name in enumerate(names):
        values = frame[frame.run == name].value.sort_values(ascending=False).to_numpy()
        line = view.styles[name].line(linestyle="none")
        ax.plot(values[1:], np.full(len(values) - 1, y), **line | {"alpha": 0.55})
        ax.plot(values[0], y, **line | {"markersize": 7})
        ax.annotate(
            typeset.significant(values[0]), (1.01, y), xycoords=("axes fraction", "data"), va="center", size=8.5
        )
    _name_rows(ax, names)
    low, high = frame.value.min(), frame.value.max()
    if low > 0 and high > _WIDE * low:
        _log(ax, "x")
    elif low > 0:
        ax.set_xlim(left=0)
    ax.set_title(f"eigenvalues ({what})")
    return fig


@figure(
    "directional",
    "Curvature along each delta",
    """Each cell is u·Hu / u·u at the run of its row, with u the delta named by its column: how sharply the
    probe loss bends along the direction that training took. Where row and column agree it is a run's own
    direction; negative (purple) bends down. The colour scale is logarithmic away from zero.""",
)
def directional(view: View) -> Figure | None:
    """Draw the curvature along every delta at every run."""
    frame, what = view.curvature("directional")
    if frame.empty:
        return None
    cells = frame.pivot_table(index="run", columns="name", values="value", aggfunc="first", sort=False)
    known = view.order(cells.columns)
    cells = cells.loc[view.order(cells.index), known + [name for name in cells.columns if name not in known]]
    largest = float(np.nanmax(np.abs(cells.to_numpy()))) or 1.0
    fig = Figure(figsize=(min(WIDTH, 2.6 + 0.72 * cells.shape[1]), 1.9 + 0.4 * cells.shape[0]), layout="constrained")
    ax = fig.subplots()
    norm = SymLogNorm(largest / 100, vmin=-largest, vmax=largest)
    _heatmap(ax, cells, norm, matplotlib.colormaps["PuOr_r"], lambda value: typeset.significant(value, 2))
    ax.set_title(f"curvature ({what}) along a delta")
    ax.set_xlabel("along the delta of")
    ax.set_ylabel("at the weights of")
    return fig


# -- representations --------------------------------------------------------------------------------------------------


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
    panels = [(other, view.against(other, "cka").dropna(subset="cka")) for other in (BASE, view.reference_run)]
    panels = [(other, frame) for other, frame in panels if not frame.empty]
    if not panels:
        return None
    fig, axes = _panels(len(panels), 2, 3.7, sharey=True)
    for ax, (other, frame) in zip(axes, panels, strict=True):
        _by_layer(ax, view, frame, "cka")
        for name, rows in frame.sort_values("layer").groupby("run"):
            ax.fill_between(rows.layer, rows.low, rows.high, color=view.styles[name].colour, alpha=0.1, linewidth=0)
        ax.set_title(f"CKA with {other}")
    _legend(fig, view, [name for _, frame in panels for name in frame.run])
    return fig
