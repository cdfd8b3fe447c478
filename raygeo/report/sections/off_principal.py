"""The weights before and after."""

from raygeo.report import typeset
from raygeo.report.sections.parts import Cell, Sheet, known, section, share, unordered
from raygeo.report.view import View


@section(
    "Weights before and after",
    """Over all matrices that were looked at. Unchanged: the share of entries whose bf16 number stays the same. The turn
    is the largest principal angle between the leading singular subspaces before and after, below it the mean angle;
    medians over matrices. The last columns are the share of changed entries that lie where the leading directions make
    entries large, among the smallest entries, in the former without the latter, and in neither; below each, the share
    of the same delta with its entries shuffled, that of entries placed at random (with z, the difference in standard
    deviations). bf16 resolves small weights more finely, so only a difference from the shuffled delta tells of where
    the delta is large; and with so many entries z is large for small differences.""",
)
def off_principal(view: View) -> Sheet:
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
                typeset.significant(row.spectral_shift, 2),
                *(_turn(row[f"{side}_max_degrees"], row[f"{side}_mean_degrees"]) for side in ("left", "right")),
                *(_overlap(overlaps.get((name, mask))) for mask in _MASKS),
            ]
        )
    columns = ["run", "unchanged", "spectral shift", "output turn", "input turn", *_MASKS]
    return Sheet(columns, rows, frozenset({"run"}))


@section(
    "Entries changed by two runs alike: {rows} pairs",
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


_MASKS = ("principal", "low-magnitude", "principal only", "neither")


def _turn(largest: float | None, mean: float | None) -> Cell:
    return f"{typeset.significant(largest, 2)}°", f"mean {typeset.significant(mean, 2)}°"


def _chance(row) -> str:
    return f"{share(row.shuffled_overlap)} shuffled, {share(row.baseline)} random (z {typeset.significant(row.z, 2)})"


def _overlap(row) -> Cell:
    if row is None or not known(row.overlap):
        return typeset.MISSING
    return share(row.overlap), _chance(row)
