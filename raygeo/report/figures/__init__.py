"""Every figure of a study, one function each: it takes a ``View`` of the tables and returns a matplotlib ``Figure``.

A new figure is one function under ``@figure(...)`` in the module of its kind; the page and the tracker find it in
``FIGURES``, in reading order. A figure without data returns None.
"""

from collections.abc import Mapping

import matplotlib
import pyarrow as pa
from matplotlib.figure import Figure

from raygeo.report.figures import connectivity, curvature, off_principal, representation, training, weights, yardsticks
from raygeo.report.figures.parts import Plot
from raygeo.report.style import RC
from raygeo.report.view import View

FIGURES: dict[str, Plot] = {
    plot.name: plot
    for module in (training, weights, yardsticks, off_principal, connectivity, curvature, representation)
    for plot in vars(module).values()
    if isinstance(plot, Plot)
}


def draw_figures(tables: Mapping[str, pa.Table], reference_run: str) -> dict[str, Figure]:
    """Draw every figure whose tables hold data, in reading order."""
    view = View(tables, reference_run)
    with matplotlib.rc_context(RC):
        drawn = {name: plot.draw(view) for name, plot in FIGURES.items()}
    return {name: fig for name, fig in drawn.items() if fig is not None}
