"""What is shown of the power laws of layers."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.report import typeset
from raygeo.report.plots import by_layer, figure, legend, make_panels
from raygeo.report.sheets import Cell, Sheet, known, section
from raygeo.report.style import GRID
from raygeo.report.view import View
from raygeo.tables import BASE


@figure(
    "layer-alpha",
    "Does training change the power law of the layers' spectra?",
    """The exponent alpha of the power law that the largest eigenvalues of WᵀW follow (WeightWatcher's alpha), the mean
    over the matrices of a layer, and its change from the base's. WeightWatcher's users read 2 to 6 as well trained;
    smaller is a heavier tail.""",
)
def alphas(view: View) -> Figure | None:
    """Draw alpha and its change by layer."""
    frame = view.frame("layer_alpha", scope="layer")
    if frame.empty:
        return None
    fig, axes = make_panels(2, 2, 3.2)
    by_layer(axes[0], view, frame, "alpha")
    axes[0].set_title("alpha")
    by_layer(axes[1], view, frame[frame.run != BASE], "change")
    axes[1].axhline(0, color=GRID, linewidth=1.4, zorder=0)
    axes[1].set_title("change of alpha from the base")
    legend(fig, view, frame.run)
    return fig


@section(
    "Power laws of the layers' spectra",
    """Means over the matrices that have a law: the exponent alpha of the largest eigenvalues of WᵀW with its mean
    standard error, its change from the base's, below it that by a random delta with the same singular values, and the
    Kolmogorov-Smirnov distance of the law.""",
)
def means(view: View) -> Sheet:
    """The mean alpha of the base and every run, beside a random delta's."""
    frame = view.frame("layer_alpha", scope="global").drop_duplicates("run").set_index("run")
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.index)):
        row = frame.loc[name]
        change: Cell = typeset.MISSING
        if known(row.change):
            change = typeset.significant(row.change, 2), f"random {typeset.significant(row.null_change, 2)}"
        alpha = typeset.fixed(row.alpha), f"s.e. {typeset.fixed(row.error)}"
        rows.append([name, typeset.count(row.matrices), alpha, change, typeset.fixed(row.distance, 3)])
    return Sheet(["run", "matrices", "alpha", "change", "distance"], rows, frozenset({"run"}))


def laws(view: View) -> list[str]:
    """What a fitted exponent does not show."""
    frame = view.frame("layer_alpha", scope="module")
    if frame.empty:
        return []
    without = frame[frame.run == BASE].alpha.isna().sum()
    sentences = [
        "Alpha is fitted above a threshold that is chosen for each matrix anew, and jumps where another threshold fits "
        "as well: changes smaller than its standard error, or than those a random delta makes, say nothing. That "
        "eigenvalues follow a power law at all is assumed and not tested."
    ]
    if without:
        sentences.append(f"Matrices with too few eigenvalues for a power law are left out: {typeset.count(without)}.")
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The mean alpha over matrices, its change from the base's, and that by a random delta."""
    for row in view.rows("layer_alpha", scope="global"):
        yield row["run"], "layer_alpha", row["alpha"]
        yield row["run"], "layer_alpha_change", row["change"]
        yield row["run"], "random_layer_alpha_change", row["null_change"]
