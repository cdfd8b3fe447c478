"""How a run looks, the same in every figure and table: colour by loss, line and marker by learning rate and seed.

Where there are more losses than colours, losses of one colour differ by their lines.

Any two of the six colours differ by at least 24 in CIELAB under normal, protan and deutan vision (18 under tritan), and
each has a contrast of at least 3 : 1 on white as on near-black paper.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#d9dee4", "#ffffff"

_COLOURS = {
    "sft": "#0072b2",
    "rft": "#cc0066",
    "dft": "#18a5a5",
    "rift": "#ad9100",
    "grpo": "#9e532e",
    "dpo": "#8c1aff",
}
_DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.6), (1.2, 1.4), (6, 1.6, 1.2, 1.6))
_MARKERS = ("o", "s", "^", "D")
_OF_RUN = "run:"

RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True)
class RunStyle:
    """``dashes`` are points on and off, empty for a solid line; only the first run in a colour has a filled marker.

    ``loss_dashes`` are those of all runs of the loss, where these look alike.
    """

    run: str
    colour: str
    dashes: tuple[float, ...]
    marker: str
    filled: bool
    loss_dashes: tuple[float, ...] = ()

    def line(self, **more: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot``."""
        return {
            "color": self.colour,
            "linestyle": _linestyle(self.dashes),
            "marker": self.marker,
            "markerfacecolor": self.colour if self.filled else PAPER,
            "markeredgewidth": 1.2,
            "gid": self.gid,
        } | more

    def loss_line(self, **more: Any) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for a line that all runs of the loss have."""
        return {"color": self.colour, "linestyle": _linestyle(self.loss_dashes)} | more

    @property
    def gid(self) -> str:
        """Names in a figure what belongs to the run; ``run_of`` reads it."""
        return _OF_RUN + self.run


def _linestyle(dashes: tuple[float, ...]) -> Any:
    return (0, dashes) if dashes else "-"


def group_lines(styles: Sequence[RunStyle], apart: bool) -> dict[str, dict[str, Any]]:
    """Keyword arguments of ``Axes.plot`` for a line of each group of runs, by the run with whose style it is given.

    With ``apart``, groups of one colour differ by their dashes; else they look as their losses do.
    """
    seen: Counter[str] = Counter()
    lines = {}
    for style in styles:
        dashes = _DASHES[seen[style.colour] % len(_DASHES)]
        seen[style.colour] += 1
        lines[style.run] = style.loss_line(**({"linestyle": _linestyle(dashes)} if apart else {}))
    return lines


def run_of(gid: str | None) -> str:
    """The run that an artist with this ``gid`` belongs to, "" if there is none."""
    return gid.removeprefix(_OF_RUN) if gid and gid.startswith(_OF_RUN) else ""


def run_styles(losses: Mapping[str, str], base: str) -> dict[str, RunStyle]:
    """Give every run (name -> loss) a style, and the base the colour of the ink.

    A loss outside the palette takes the next colour that no loss here uses; when all are taken they repeat, and the
    next loss of a colour goes on with dashes and markers where the one before ended.
    """
    free = [c for loss, c in _COLOURS.items() if loss not in losses.values()] or list(_COLOURS.values())
    others = dict.fromkeys(loss for loss in losses.values() if loss not in _COLOURS)
    colours = _COLOURS | {loss: free[i % len(free)] for i, loss in enumerate(others)}
    styles = {base: RunStyle(base, INK, (), "o", True)}
    shared: Counter[str] = Counter()
    loss_dashes = {}
    for loss in dict.fromkeys(losses.values()):
        loss_dashes[loss] = _DASHES[shared[colours[loss]] % len(_DASHES)]
        shared[colours[loss]] += 1
    seen: Counter[str] = Counter()
    for name, loss in losses.items():
        colour = colours[loss]
        variant = seen[colour] % len(_DASHES)
        styles[name] = RunStyle(name, colour, _DASHES[variant], _MARKERS[variant], variant == 0, loss_dashes[loss])
        seen[colour] += 1
    return styles
