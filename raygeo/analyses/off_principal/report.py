"""What is shown of the weights before and after."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.geometry.weights.masks import MASKS
from raygeo.report import typeset
from raygeo.report.plots import WIDE, by_layer, figure, legend, log, make_panels
from raygeo.report.sheets import Cell, Sheet, known, section, share, unordered
from raygeo.report.style import GRID
from raygeo.report.view import View

_COLUMNS = {
    "update_sparsity": "entries unchanged in bf16, %",
    "spectral_shift": "shift of the spectrum",
    "left_max_degrees": "turn of the output subspace, degrees",
    "right_max_degrees": "turn of the input subspace, degrees",
}
MEASURED = MASKS[:2]
"""The masks that are shown by layer and in the tracker."""
_LEAST_EXCESS = 0.1
"""How far the axes of overlaps reach from 1 at least."""


@figure(
    "off-principal",
    "Do the runs keep off the principal directions?",
    """The weights of each layer before and after. Sparsity is the share of entries whose bf16 number stays the
    same; the spectral shift is how far all singular values moved, relative to the base's; the turn is the
    largest principal angle between the leading singular subspaces before and after (median over the matrices of
    a layer). The last two: how often changed entries lie where the leading directions make entries large
    (principal), and among the smallest entries (low-magnitude), relative to the same delta with its entries
    shuffled, which is the line at 1: bf16 resolves small weights more finely, so that entries placed evenly
    would not be a fair comparison. Their axes reach at least a tenth above and below 1, since what is smaller is
    one shuffle's chance. The others grow or shrink with how far a run moved: compare runs of like norm.""",
)
def off_principal(view: View) -> Figure | None:
    """Draw sparsity, spectral shift, turns and overlaps over those of shuffled deltas by layer."""
    frame = view.frame("off_principal", scope="layer")
    if frame.empty:
        return None
    masks = view.frame("mask_overlaps", scope="layer")
    masks = masks.assign(excess=masks.overlap / masks.shuffled_overlap)
    fig, axes = make_panels(4 + masks["mask"].isin(MEASURED).any() * len(MEASURED), 3, 2.7)
    for ax, (column, title) in zip(axes, _COLUMNS.items(), strict=False):
        shown = frame.assign(update_sparsity=100 * frame.update_sparsity)
        by_layer(ax, view, shown, column)
        positive = shown[column][shown[column] > 0]
        if column != "update_sparsity" and len(positive) and positive.max() > 2 * WIDE * positive.min():
            log(ax, "y")
        ax.set_title(title)
    for ax, mask in zip(axes[4:], MEASURED, strict=False):
        by_layer(ax, view, masks[masks["mask"] == mask], "excess")
        ax.axhline(1, color=GRID, linewidth=1.4, zorder=0)
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, 1 - _LEAST_EXCESS), max(high, 1 + _LEAST_EXCESS))
        ax.set_title(f"{mask} overlap, × shuffled")
    legend(fig, view, frame.run)
    return fig


@section(
    "Weights before and after",
    """Over all matrices that were looked at. Unchanged: the share of entries whose bf16 number stays the same.
    Still: the share that moved by no more than the tolerance (1e-5 unless set), below it that of normal entries
    of the same norm. The turn is the largest principal angle between the leading singular subspaces before and
    after, below it the mean angle; medians over matrices. The last columns are the share of changed entries that
    lie where the leading directions make entries large, among the smallest entries, in the former without the
    latter, and in neither; below each, the share of the same delta with its entries shuffled, that of entries
    placed at random (with z, the difference in standard deviations). bf16 resolves small weights more finely, so
    only a difference from the shuffled delta says where the delta is large; and with so many entries z is large
    for small differences.""",
)
def before_and_after(view: View) -> Sheet:
    """Every run's sparsity, spectral shift, turns, and the overlaps of its changed entries."""
    overlaps = {(row.run, row.mask): row for row in view.frame("mask_overlaps", scope="global").itertuples()}
    frame = view.frame("off_principal", scope="global").drop_duplicates("run").set_index("run")
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.index)):
        row = frame.loc[name]
        rows.append(
            [
                name,
                (share(row.update_sparsity), f"of {typeset.count(row.entries)}"),
                (share(row.absolute_sparsity), f"normal {share(row.gaussian_sparsity)}"),
                typeset.significant(row.spectral_shift, 2),
                *(_turn(row[f"{side}_max_degrees"], row[f"{side}_mean_degrees"]) for side in ("left", "right")),
                *(_overlap(overlaps.get((name, mask))) for mask in MASKS),
            ]
        )
    columns = ["run", "unchanged", "still", "spectral shift", "output turn", "input turn", *MASKS]
    return Sheet(columns, rows, frozenset({"run"}))


@section(
    "Entries that stayed by kind of module: {rows}",
    """The share of entries whose bf16 number stays the same, and of those that moved by no more than the tolerance,
    with that of normal entries of the same norm.""",
    folded=True,
)
def sparsity_by_type(view: View) -> Sheet:
    """Both sparsities of every run and module type."""
    frame = view.frame("off_principal", scope="module type")
    rows: list[list[Cell]] = []
    for name in view.order(frame.run):
        for row in frame[frame.run == name].itertuples():
            shares = (share(row.update_sparsity), share(row.absolute_sparsity), share(row.gaussian_sparsity))
            rows.append([name, row.module, *shares, typeset.count(row.entries)])
    return Sheet(["run", "modules", "unchanged", "still", "normal", "entries"], rows, frozenset({"run", "modules"}))


@section(
    "Entries changed by two runs alike: {rows}",
    """Entries that both runs changed, over those that either did, and what that would be if each had changed as many
    entries at random. Both runs see bf16 resolve the same small entries, which alone lifts it above chance.""",
    folded=True,
)
def changed_pairs(view: View) -> Sheet:
    """Jaccard index of the changed entries of every pair of runs, the most alike first."""
    frame = view.frame("changed_pairs", scope="global").sort_values("jaccard", ascending=False, kind="stable")
    rows: list[list[Cell]] = [
        [a, b, typeset.fixed(row.jaccard, 3), typeset.fixed(row.null_jaccard, 3), typeset.count(row.both)]
        for row, a, b in unordered(view, frame)
    ]
    return Sheet(["a", "b", "both over either", "chance", "entries changed by both"], rows, frozenset({"a", "b"}))


def _turn(largest: float | None, mean: float | None) -> Cell:
    return f"{typeset.significant(largest, 2)}°", f"mean {typeset.significant(mean, 2)}°"


def _chance(row) -> str:
    return f"{share(row.shuffled_overlap)} shuffled, {share(row.baseline)} random (z {typeset.significant(row.z, 2)})"


def _overlap(row) -> Cell:
    if row is None or not known(row.overlap):
        return typeset.MISSING
    return share(row.overlap), _chance(row)


def resolution(view: View) -> list[str]:
    """What the resolution of bf16 alone brings about."""
    frame = view.frame("off_principal", scope="global")
    if frame.empty:
        return []
    return [
        f"Sparsity counts entries of {typeset.count(frame.entries.max())} that keep their bf16 number when base and "
        "delta are added in fp32 and rounded once. Before rounding nearly every entry changes, and a run that moved "
        "less is sparser for that reason alone.",
        "Two conventions of sparsity are not the same number: what moved by less than an absolute tolerance may still "
        "change the bf16 number of a small weight, and what moved by more may leave that of a large one.",
        "bf16 resolves small weights more finely, so that a step of one size everywhere changes them first: an overlap "
        "of changed entries with the low-magnitude mask above chance, or with the principal mask below it, needs no "
        "other cause. What differs from the same delta with its entries shuffled does; one shuffle was drawn.",
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Sparsity and spectral shift of whole runs, and how much of what changed lies in either mask."""
    for row in view.rows("off_principal", scope="global"):
        yield row["run"], "update_sparsity", row["update_sparsity"]
        yield row["run"], "absolute_sparsity", row["absolute_sparsity"]
        yield row["run"], "gaussian_sparsity", row["gaussian_sparsity"]
        yield row["run"], "spectral_shift", row["spectral_shift"]
    for row in view.rows("mask_overlaps", scope="global"):
        if row["mask"] in MEASURED:
            yield row["run"], f"{row['mask'].replace('-', '_')}_overlap", row["overlap"]
