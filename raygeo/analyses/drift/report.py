"""What is shown of drift."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import band, by_layer, figure, legend, make_panels
from raygeo.report.view import View


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
        band(ax, view, frame, f"{column}_low", f"{column}_high")
        ax.set_title(title)
    legend(fig, view, frame.run)
    return fig


_DRIFT = {"cosine": "cosine with the base's hidden state", "change": "|h − h base| / |h base|"}


def uncorrected(view: View) -> list[str]:
    """That drift need not show in predictions."""
    tokens = view.frame("drift").tokens.dropna()
    if tokens.empty:
        return []
    return [
        f"Drift of hidden states is over {typeset.count(tokens.max())} tokens of held-out solutions. It is not "
        "corrected for rotations and scalings that later layers undo, so a large one need not show in any prediction."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Drift of the last layer."""
    rows = view.rows("drift")
    last = max((row["layer"] for row in rows), default=0)
    for row in rows:
        if row["layer"] == last:
            yield row["run"], "last_drift_cosine", row["cosine"]
            yield row["run"], "last_drift_change", row["change"]
