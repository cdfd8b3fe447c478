"""What is shown of rank-1 trajectories."""

from collections.abc import Iterator

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section, share
from raygeo.report.view import View


@section(
    "Rank-1 trajectories",
    """The deltas that each run kept of a tensor, approximated by one direction with a coefficient a step: the share of
    their squared norms in it, and R² of the coefficient against the step and its logarithm (medians over tensors),
    below each what a way of moves as long, all orthogonal, has. Then how far the last delta is foretold by the line
    through the first steps' coefficients, relative to its norm, beside the last of the first deltas stretched to the
    true final norm, and as it is: 100 % is no better than foretelling no move at all.""",
)
def lines(view: View) -> Sheet:
    """Every run's share of rank 1, its R², and the errors of extrapolation beside their null."""
    frame = view.frame("rank_one", scope="global").drop_duplicates("run").set_index("run")
    rows: list[list[Cell]] = []
    for name in view.order(set(frame.index)):
        row = frame.loc[name]
        fits: list[Cell] = [
            (typeset.fixed(row[law]), f"orthogonal {typeset.fixed(row[f'null_{law}'])}")
            for law in ("r2_linear", "r2_log")
        ]
        deltas = typeset.count(row.snapshots), f"{typeset.count(row.early)} early"
        errors: list[Cell] = [share(row[error]) for error in ("error", "scaled_error", "held_error")]
        first = share(row["share"]), f"orthogonal {share(row.null_share)}"
        rows.append([name, deltas, first, *fits, *errors])
    columns = ["run", "deltas", "rank 1", "R², step", "R², log step", "line's error", "stretched", "held"]
    return Sheet(columns, rows, frozenset({"run"}))


def few_points(view: View) -> list[str]:
    """What one direction does not show."""
    frame = view.frame("rank_one", scope="global")
    if frame.empty:
        return []
    sentences = [
        "Deltas count from the base, so that later ones hold the earlier: even moves in orthogonal directions have "
        "most of their energy in one direction and a coefficient that grows with the step. Only what exceeds that is "
        "a line. Steps are kept evenly in log t, so that late deltas weigh most and a line is fitted to few early "
        "ones; warm-up and a falling learning rate bend it, whatever the loss."
    ]
    without = frame[frame.early.isna()].run
    if len(without):
        sentences.append(
            f"Fewer than two deltas were kept early in {', '.join(view.order(without))}, so nothing is extrapolated "
            "there: keep more (`training.snapshots`), or raise `geometry.rank_one.early`."
        )
    return sentences


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Share of rank 1, R² of its coefficient, and the extrapolation's error beside the stretched early delta's."""
    for row in view.rows("rank_one", scope="global"):
        yield row["run"], "rank_one_share", row["share"]
        yield row["run"], "rank_one_r2", row["r2_linear"]
        yield row["run"], "rank_one_r2_log", row["r2_log"]
        yield row["run"], "extrapolation_error", row["error"]
        yield row["run"], "stretched_error", row["scaled_error"]
