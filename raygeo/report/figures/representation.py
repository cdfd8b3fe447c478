"""What the models compute."""

from matplotlib.figure import Figure

from raygeo.report.figures.parts import by_layer, figure, legend, make_panels
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
    panels = [(other, view.against(other, "cka").dropna(subset="cka")) for other in (BASE, view.reference_run)]
    panels = [(other, frame) for other, frame in panels if not frame.empty]
    if not panels:
        return None
    fig, axes = make_panels(len(panels), 2, 3.7, sharey=True)
    for ax, (other, frame) in zip(axes, panels, strict=True):
        by_layer(ax, view, frame, "cka")
        for name, rows in frame.sort_values("layer").groupby("run"):
            ax.fill_between(rows.layer, rows.low, rows.high, color=view.styles[name].colour, alpha=0.1, linewidth=0)
        ax.set_title(f"CKA with {other}")
    legend(fig, view, [name for _, frame in panels for name in frame.run])
    return fig
