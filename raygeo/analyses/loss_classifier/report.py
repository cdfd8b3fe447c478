"""What is shown of the recognition of losses."""

from collections import Counter
from collections.abc import Iterator

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section, share
from raygeo.report.view import View


@section(
    "Losses recognised by their deltas",
    """The loss of each run as predicted from the runs of other seeds: the nearest mean of a loss, by features of the
    delta by module type, standardised without the seed held out. Beside the accuracy stand always saying the most
    frequent loss, and accuracies with losses permuted among runs of the same settings and seeds (mean, 95th percentile,
    and p).""",
)
def accuracies(view: View) -> Sheet:
    """Accuracy beside chance and the permutation null, by features."""
    rows: list[list[Cell]] = []
    for row in view.rows("loss_classifier"):
        if row["accuracy"] is None:
            rows.append([typeset.MISSING, *[typeset.MISSING] * 5, row["reason"]])
            continue
        right = f"{typeset.count(row['correct'])} of {typeset.count(row['runs'])}"
        null: Cell = typeset.MISSING
        if row["p"] is not None:
            null = share(row["null_mean"]), f"95 %: {share(row['null_high'])}"
        sizes = f"{typeset.count(row['losses'])} losses, {typeset.count(row['seeds'])} seeds"
        accuracy = share(row["accuracy"]), right
        rows.append([row["features"], typeset.count(row["dimension"]), accuracy, share(row["chance"]), null])
        rows[-1] += [typeset.p_value(row["p"]), sizes]
    columns = ["features", "number", "accuracy", "most frequent", "permuted", "p", "of"]
    return Sheet(columns, rows, frozenset({"features", "of"}))


@section(
    "What losses are taken for, by {name}",
    "How many runs of each loss (rows) were taken for which (columns), each by the runs of other seeds.",
    folded=True,
)
def confusion(view: View) -> dict[str, Sheet]:
    """The confusion table of each kind of features."""
    sheets = {}
    frame = view.frame("loss_predictions")
    for features, of in frame.groupby("features", sort=False):
        losses = list(view.by_loss(of.run)) if set(of.loss) <= set(view.losses.values()) else sorted(set(of.loss))
        counts = Counter(zip(of.loss, of.predicted, strict=True))
        rows: list[list[Cell]] = [[loss, *(typeset.count(counts[loss, other]) for other in losses)] for loss in losses]
        sheets[str(features)] = Sheet(["loss", *losses], rows, frozenset({"loss"}))
    return sheets


def confounded(view: View) -> list[str]:
    """What recognition does not show."""
    rows = view.rows("loss_classifier")
    if not rows:
        return []
    if rows[0]["accuracy"] is None:
        return [f"Losses could not be recognised by their deltas: {rows[0]['reason']}."]
    untested = [f"Recognised losses are not tested: {rows[0]['reason']}."] if rows[0]["reason"] else []
    return [
        *untested,
        "A loss that is recognised need not differ in kind: losses trained at other learning rates, on other rows or "
        "for other numbers of steps differ in the norm alone, which `norms` and `both` see and `spectra` sees in part. "
        "Runs of one seed share their data order, so that a seed is held out as a whole; few seeds leave p coarse, and "
        "nothing is claimed of models or data that were not trained on.",
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Whether each run's loss is recognised (1) or not (0), by spectra and by norms and spectra together."""
    for row in view.rows("loss_predictions"):
        if row["features"] in ("spectra", "both"):
            yield row["run"], f"loss_recognised/{row['features']}", float(row["loss"] == row["predicted"])
