"""What is shown of sharpness."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raygeo.analyses.sharpness.workload import SharpnessSettings
from raygeo.report import typeset
from raygeo.report.plots import WIDE, figure, interval, legend, lines, log, make_panels, name_rows, run_rows
from raygeo.report.sheets import Cell, Sheet, section, with_interval
from raygeo.report.view import View

_MEASURES = {
    "sam": ("SAM: one step", "ρ"),
    "ball": ("worst of several steps", "ρ"),
    "asam": ("ASAM: one relative step", "ρ"),
    "noise": ("mean under noise", "σ"),
    "layer noise": ("mean under relative noise", "σ / RMS of the parameter"),
}
"""What each measure of sharpness is called, and its radius."""
_RISE = "rise of the NLL, nats a token"
_FP32 = 1e-6
"""What fp32 resolves of an NLL, relative to it."""


@figure(
    "sharpness",
    "Sharpness",
    """How much the probe's NLL rises near each run: at the end of one ascent step of length ρ (SAM), at most along
    several within that ball, one step of relative length ρ (ASAM, blind to rescaled weights), and on average under
    noise of standard deviation σ on every weight or, layer by layer, relative to the weights; bars are 95 % intervals
    over draws. Steps are lower bounds of the worst rise. The measures have units of their own: compare runs within a
    panel, not panels.""",
)
def sharpness(view: View) -> Figure | None:
    """Draw every measure against its radius, one line a run."""
    frame = view.frame("sharpness").dropna(subset="value")
    if frame.empty:
        return None
    measures = list(frame.measure.unique())
    fig, axes = make_panels(len(measures), 3, 2.8)
    for ax, measure in zip(axes, measures, strict=True):
        part = frame[frame.measure == measure]
        label, symbol = _MEASURES.get(measure, (measure, "radius"))
        if part.radius.nunique() == 1:
            _at_one_radius(ax, view, part)
            ax.set_title(f"{label}, {symbol} = {part.radius.iloc[0]:g}")
            continue
        lines(ax, view, part, "radius", "value")
        for name in [] if view.many else view.order(part.run):
            rows = part[part.run == name].sort_values("radius")
            if rows.low.notna().any():
                colour, reach = view.styles[name].colour, (rows.high - rows.low) / 2
                ax.errorbar(rows.radius, rows.value, reach, fmt="none", ecolor=colour, elinewidth=0.9)
        log(ax, "x")
        if part.value.min() > 0 and part.value.max() > WIDE * part.value.min():
            log(ax, "y")
        ax.set_title(label)
        ax.set(xlabel=symbol, ylabel=_RISE)
    legend(fig, view, frame.run)
    return fig


def _at_one_radius(ax: Axes, view: View, frame: pd.DataFrame) -> None:
    """Draw a measure that was taken at one radius: one row a run, or a configuration, with intervals where known."""
    labels, place = run_rows(view, frame.run)
    for row in frame.itertuples():
        ends = (row.low, row.high) if row.low == row.low else (row.value, row.value)
        interval(ax, view, row.run, place[row.run], row.value, *ends)
    if frame.value.min() > 0 and frame.value.max() > WIDE * frame.value.min():
        log(ax, "x")
    name_rows(ax, labels)
    ax.set_xlabel(_RISE)


@section(
    "Sharpness of every run",
    """Rise of the probe's NLL in nats a token: sam, one ascent step of that length; ball, the most along several within
    it; asam, one step relative to the weights; noise, the mean under noise of that standard deviation with its 95 %
    interval over draws; layer noise, the same relative to each parameter.""",
    folded=True,
)
def rises(view: View) -> Sheet:
    """One row a run, one column a measure and radius."""
    frame = view.frame("sharpness")
    cells = {
        (row.run, row.measure, row.radius): with_interval(row.value, row.low, row.high) for row in frame.itertuples()
    }
    measures = list(dict.fromkeys((measure, radius) for _, measure, radius in cells))
    rows: list[list[Cell]] = [
        [name, *(cells.get((name, *of), typeset.MISSING) for of in measures)] for name in view.order(frame.run)
    ]
    columns = ["run", *(f"{measure} {radius:g}" for measure, radius in measures)]
    return Sheet(columns, rows, frozenset({"run"}))


def limits(view: View) -> list[str]:
    """What sharpness does not show, and what is lost in rounding."""
    frame = view.frame("sharpness").dropna(subset="value")
    if frame.empty:
        return []
    sentences = [
        "Sharpness in a ball is what a few ascent steps found, a lower bound of the worst rise. But for ASAM and layer "
        "noise it is measured in the unit of the weights, so rescaling layers without changing the model changes it."
    ]
    lost = frame[frame.value.abs() < _FP32 * frame.nll]
    if not lost.empty:
        are, show = ("is", "shows") if len(lost) == 1 else ("are", "show")
        sentences.append(
            f"{typeset.count(len(lost))} of {typeset.counted(len(frame), 'rise')} {are} below what fp32 resolves of "
            f"the NLL (10⁻⁶ of it) and {show} rounding: take larger radii."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The rise of the NLL, by measure and radius."""
    for row in view.rows("sharpness"):
        yield row["run"], f"sharpness/{_part(row['measure'], row['radius'])}", row["value"]


def parts(settings: SharpnessSettings) -> list[str]:
    """Measure and radius of every metric."""
    measured = {
        "sam": settings.radii,
        "ball": settings.radii,
        "asam": settings.adaptive_radii,
        "noise": settings.sigmas,
        "layer noise": settings.relative_sigmas,
    }
    return [_part(measure, radius) for measure, radii in measured.items() for radius in radii]


def over_changed(settings: SharpnessSettings) -> bool:
    """Whether the weights that are moved are those that any run changed."""
    return settings.space == "delta"


def _part(measure: str, radius: float) -> str:
    return f"{measure.replace(' ', '_')}/{radius:g}"
