"""The weights before and after."""

from matplotlib.figure import Figure

from raygeo.report.figures.parts import WIDE, by_layer, figure, legend, log, make_panels
from raygeo.report.style import GRID
from raygeo.report.view import View


@figure(
    "off-principal",
    "Do the runs keep off the principal directions?",
    """The weights of each layer before and after. Sparsity is the share of entries whose bf16 number stays the same;
    the spectral shift is how far all singular values moved, relative to the base's; the turn is the largest principal
    angle between the leading singular subspaces before and after (median over the matrices of a layer). The last
    two: how often changed entries lie where the leading directions make entries large (principal), and among the
    smallest entries (low-magnitude), relative to the same delta with its entries shuffled, which is the line at 1:
    bf16 resolves small weights more finely, so that entries placed evenly would be no fair comparison. The others
    grow or shrink with how far a run moved: compare runs of like norm.""",
)
def off_principal(view: View) -> Figure | None:
    """Draw sparsity, spectral shift, turns and overlaps over those of shuffled deltas by layer."""
    frame = view.frame("off_principal", scope="layer")
    if frame.empty:
        return None
    masks = view.frame("mask_overlaps", scope="layer")
    masks = masks.assign(excess=masks.overlap / masks.shuffled_overlap)
    fig, axes = make_panels(4 + masks["mask"].isin(_MASKS).any() * len(_MASKS), 3, 2.7)
    for ax, (column, title) in zip(axes, _COLUMNS.items(), strict=False):
        shown = frame.assign(update_sparsity=100 * frame.update_sparsity)
        by_layer(ax, view, shown, column)
        positive = shown[column][shown[column] > 0]
        if column != "update_sparsity" and len(positive) and positive.max() > 2 * WIDE * positive.min():
            log(ax, "y")
        ax.set_title(title)
    for ax, mask in zip(axes[4:], _MASKS, strict=False):
        by_layer(ax, view, masks[masks["mask"] == mask], "excess")
        ax.axhline(1, color=GRID, linewidth=1.4, zorder=0)
        ax.set_title(f"{mask} overlap, × shuffled")
    legend(fig, view, frame.run)
    return fig


_COLUMNS = {
    "update_sparsity": "entries unchanged in bf16, %",
    "spectral_shift": "shift of the spectrum",
    "left_max_degrees": "turn of the output subspace, degrees",
    "right_max_degrees": "turn of the input subspace, degrees",
}
_MASKS = ("principal", "low-magnitude")
