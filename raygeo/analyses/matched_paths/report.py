"""What is shown of straight paths between deltas of equal norm."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from raygeo.analyses.paths.report import barrier_sheet, facing, path_figure
from raygeo.report import typeset
from raygeo.report.plots import figure
from raygeo.report.sheets import Sheet, section
from raygeo.report.view import View


@figure(
    "matched-paths",
    "Straight lines between deltas of equal length",
    """The same between the reference run and each other one after the longer delta of the two was scaled down to the
    length of the shorter, so that neither end outweighs the other. The ends are points on the runs' own lines from the
    base, in general not trained runs; the reference's end differs from line to line.""",
)
def matched_paths(view: View) -> Figure | None:
    """Draw NLL and accuracy along the lines between deltas of equal norm."""
    return path_figure(view, view.reference_run, "the other run", "matched_paths")


@section(
    "Barriers between deltas of equal length: {rows}",
    """The longer delta of each pair was scaled down to the norm of the shorter; “scales” are what a and b were
    multiplied by.""",
    folded=True,
)
def matched_barriers(view: View) -> Sheet:
    """Both barriers of every path between deltas of equal norm."""
    frame = view.frame("matched_barriers")
    scales = [
        f"{typeset.significant(a)} : {typeset.significant(b)}"
        for a, b in zip(frame.scale_a, frame.scale_b, strict=True)
    ]
    sheet = barrier_sheet(frame)
    rows = [[*row, scale] for row, scale in zip(sheet.rows, scales, strict=True)]
    return Sheet([*sheet.columns, "scales"], rows, sheet.prose)


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """The barrier over the chord to the reference run, both deltas scaled to equal norm."""
    for other, row in facing(view, "matched_barriers"):
        yield other, f"matched_barrier_to_reference/{row['probe']}", row["chord"]
