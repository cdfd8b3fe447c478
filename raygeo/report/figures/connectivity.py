"""The loss between runs."""

from matplotlib.figure import Figure

from raygeo.report.figures.parts import figure, legend, make_panels
from raygeo.report.style import GRID
from raygeo.report.view import View
from raygeo.tables import BASE


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
    fig, axes = make_panels(len(panels), 3 if len(panels) != 4 else 2, 3.4)
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
    legend(fig, view, frame.run)
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
