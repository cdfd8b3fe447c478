"""What is shown of compression."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure

from raygeo.analyses.compressibility.workload import DELTA, MODEL, NONE, PRUNED, ROUNDED
from raygeo.report import typeset
from raygeo.report.plots import PLAIN, WIDE, figure, legend, lines, make_panels
from raygeo.report.sheets import Cell, Sheet, nats, section, with_interval
from raygeo.report.view import View
from raygeo.tables import BASE

HALF = 0.5
"""The share pruned that is judged by, or of those measured the nearest."""
_LINEAR = 0.01
_TARGETS = {MODEL: "all weights", DELTA: "the delta alone"}


@figure(
    "compressibility",
    "How well do runs stand compression?",
    """Rise of the NLL on held-out solutions over that of the same run uncompressed, nats a token, when the entries of
    smallest absolute value are set to zero and when all are rounded to few bits. Above, all weights of the blocks,
    base and delta together: the base's own curve is what any run starts from. Below, what was learned alone, added to
    the exact base. An axis that reaches further is linear below 0.01 and logarithmic above.""",
)
def compressibility(view: View) -> Figure | None:
    """Draw the rise of the NLL against the share pruned and the bits kept, for both targets."""
    frame = view.frame("compressibility").dropna(subset=["rise"])
    panels = [(t, m) for t in _TARGETS for m in (PRUNED, ROUNDED) if len(_of(frame, t, m))]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 2, 3.4)
    for ax, (target, method) in zip(axes, panels, strict=True):
        rows = _of(frame, target, method)
        if method == PRUNED:
            start = frame[(frame.target == target) & (frame.method == NONE)].assign(level=0.0)
            rows = pd.concat([start, rows]).assign(level=lambda found: 100 * found.level)
        lines(ax, view, rows, "level", "rise", markersize=3.2)
        if rows.rise.max() > WIDE * _LINEAR:
            ax.set_yscale("symlog", linthresh=_LINEAR)
            ax.yaxis.set_major_formatter(PLAIN)
        ax.set_title(f"{_TARGETS[target]}, {method}")
        ax.set_xlabel("pruned, %" if method == PRUNED else "bits")
        if method == ROUNDED:
            ax.set_xticks(sorted(set(rows.level)))
            ax.invert_xaxis()
    axes[0].set_ylabel("rise of the NLL")
    legend(fig, view, frame.run)
    return fig


def _of(frame: pd.DataFrame, target: str, method: str) -> pd.DataFrame:
    return frame[(frame.target == target) & (frame.method == method)]


@section(
    "Compression",
    """Rise of the NLL in nats a token over the same run uncompressed, with its 95 % interval over texts. “Lost” is the
    norm of what compression took over that of what it was given.""",
    folded=True,
)
def points(view: View) -> Sheet:
    """One row a run, target and point."""
    frame = view.frame("compressibility")
    rows: list[list[Cell]] = [
        [
            row.run,
            _TARGETS[row.target],
            _point(row.method, row.level),
            nats(row.nll),
            with_interval(row.rise, row.rise_low, row.rise_high),
            typeset.percent(row.zeros),
            typeset.percent(row.lost),
            typeset.percent(row.accuracy),
        ]
        for name in view.order(frame.run)
        for row in frame[frame.run == name].itertuples()
        if row.method != NONE
    ]
    columns = ["run", "compressed", "how", "NLL", "rise", "zeros", "lost", "accuracy"]
    return Sheet(columns, rows, frozenset({"run", "compressed", "how"}))


def _point(method: str, level: float) -> str:
    return f"{100 * level:g} % pruned" if method == PRUNED else f"{level:g} bits"


def limits(view: View) -> list[str]:
    """What such compression is and is not."""
    frame = view.frame("compressibility")
    if frame.empty:
        return []
    sentences = [
        "Compression is pruning by magnitude and rounding to nearest, without calibration or training, of the matrices "
        f"of blocks, judged by the NLL of {typeset.count(frame.tokens.max())} tokens: methods that correct for what "
        "they take lose less, and runs may rank differently under them. “Compressibility” is minus the mean rise of "
        f"the NLL at {_judged(view)}."
    ]
    lost = frame[frame.rise.isna()]
    if len(lost):
        they_are = "it is" if len(lost) == 1 else "they are"
        sentences.append(f"At {typeset.counted(len(lost), 'point')} the NLL was not finite; {they_are} left out.")
    return sentences


def _judged(view: View) -> str:
    frame = view.frame("compressibility", target=MODEL)
    return " and ".join(_point(method, level) for method, level in _levels(frame))


def _levels(frame: pd.DataFrame) -> list[tuple[str, float]]:
    """The points that runs are judged by: about half pruned, and the fewest bits."""
    pruned, rounded = (frame[frame.method == method].level for method in (PRUNED, ROUNDED))
    found = [(PRUNED, min(pruned, key=lambda share: (abs(share - HALF), share)))] if len(pruned) else []
    return found + ([(ROUNDED, rounded.min())] if len(rounded) else [])


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """How well a run stands compression, `compressibility`: minus the mean rise of the NLL, nats a token, at half of
    all entries pruned (or the nearest share measured) and at the fewest bits; higher is better. `delta_compressibility`
    is that of the delta alone. `compressibility_over_base` is the first less the base's own.
    """
    found: dict[str, dict[str, float]] = {}
    for target in _TARGETS:
        frame = view.frame("compressibility", target=target)
        judged = _levels(frame)
        points = pd.concat([frame[(frame.method == m) & (frame.level == level)] for m, level in judged] or [frame])
        points = points.dropna(subset=["rise"])
        for run, rows in points.groupby("run", sort=False):
            if len(rows) == len(judged):
                found.setdefault(str(run), {})[target] = -float(rows.rise.mean())
    for run, values in found.items():
        yield run, "compressibility", values.get(MODEL)
        yield run, "delta_compressibility", values.get(DELTA)
        if MODEL in values and BASE in found:
            yield run, "compressibility_over_base", values[MODEL] - found[BASE][MODEL]
