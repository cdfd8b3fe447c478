"""Runs that were trained in stages or rounds."""

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section
from raygeo.report.view import View


@section(
    "Stages and rounds",
    """Every training of the runs that have several, in order; each begins where the one before it ended. Sampled are
    the rollouts that were drawn from the run for a round, and the share of them that was right. The distance is the
    norm of what this training changed, the cosine that between it and the change before it, and the accuracy that on
    held-out problems after it.""",
)
def trainings(view: View) -> Sheet:
    """One row a training: what it learned from, how far it went, and in which direction."""
    found = {(row["run"], row["step"]): row for row in view.rows("trajectories")}
    right = {(row["run"], row["step"]): row for row in view.rows("monitor", benchmark="heldout")}
    rows: list[list[Cell]] = []
    for row in view.rows("stages"):
        way = found.get((row["run"], row["last_step"]), {})
        accuracy = right.get((row["run"], row["last_step"]))
        steps = typeset.MISSING if row["last_step"] is None else f"{row['first_step']} to {row['last_step']}"
        rows.append(
            [
                row["run"],
                str(row["stage"]) + (f", round {row['round']}" if row["round"] else ""),
                row["loss"],
                typeset.rate(row["lr"]),
                row["reference"],
                steps,
                _sampled(row["sampled"], row["sampled_right"]),
                typeset.count(row["examples"]),
                typeset.significant(way.get("distance")),
                typeset.fixed(way.get("cosine_previous")),
                typeset.MISSING if accuracy is None else typeset.percent(accuracy["accuracy"]),
                row["status"],
            ]
        )
    columns = ["run", "stage", "loss", "lr", "compared with", "steps", "sampled", "examples", "distance"]
    columns += ["cosine to the one before", "accuracy after it", "status"]
    return Sheet(columns, rows, frozenset({"run", "stage", "loss", "compared with", "steps", "status"}))


def _sampled(rows: int | None, right: int | None) -> Cell:
    if not rows or right is None:
        return typeset.MISSING
    return typeset.count(rows), f"{typeset.percent(right / rows)} right"


def legs(view: View) -> list[str]:
    """What the change of a single stage is, and what it is not."""
    alone = [record for record in view.records.values() if record.leg is not None]
    if not alone:
        return []
    first = alone[0]
    return [
        f"{first.run} and the like hold what one stage of a run changed, relative to where that stage began "
        f"({first.leg_of} has all of it). Their weights are compared, but the base with such a change alone was never "
        "trained, so it is neither asked nor analysed as a model. A share of base weights is then that of the base's, "
        "not of where the stage began."
    ]
