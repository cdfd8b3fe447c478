"""What is shown of CKA between layers."""

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from raygeo.report.hover import name_cells
from raygeo.report.plots import figure, make_panels
from raygeo.report.view import View
from raygeo.tables import BASE


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
    names = view.examples(frame.run_b)
    if not names:
        return None
    fig, axes = make_panels(len(names), 4, 2.5)
    for ax, name in zip(axes, names, strict=True):
        cells = frame[frame.run_b == name].pivot(index="layer_a", columns="layer_b", values="cka")
        mesh = ax.pcolormesh(cells.to_numpy(), norm=Normalize(0, 1), cmap=matplotlib.colormaps["viridis"])
        name_cells(mesh, cells, f"CKA of {name}")
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
