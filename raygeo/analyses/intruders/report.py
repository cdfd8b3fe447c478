"""What is shown of intruder dimensions."""

from collections.abc import Iterator

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section, share
from raygeo.report.view import View


@section(
    "Intruder dimensions",
    """Leading left singular vectors of the tuned weights whose largest cosine to all those of the base's weights is
    below epsilon, over all matrices that were looked at: how many, and how much of the squared norm of the change lies
    along them. Below each is what a random delta with the same singular values gives: only what differs from it says
    anything of how the run was trained.""",
)
def intruders(view: View) -> Sheet:
    """Every run's intruders and their share of the change, beside a random delta's."""
    frame = view.frame("intruders", scope="global")
    rows: list[list[Cell]] = [
        [
            row.run,
            typeset.significant(row.epsilon, 2),
            typeset.count(row.directions),
            (typeset.count(row.intruders), f"random {typeset.count(row.null_intruders)}"),
            (share(row.intruder_share), f"random {share(row.null_intruder_share)}"),
            (share(row.energy_share), f"random {share(row.null_energy_share)}"),
        ]
        for name in view.order(frame.run)
        for row in frame[frame.run == name].itertuples()
    ]
    columns = ["run", "epsilon", "directions", "intruders", "of the directions", "share of ‖Δ‖²"]
    return Sheet(columns, rows, frozenset({"run"}))


def thresholds(view: View) -> list[str]:
    """What a count of intruders does not show."""
    if not view.rows("intruders"):
        return []
    return [
        "Whether a direction is an intruder depends on how long the delta is against the gaps between the base's "
        "singular values: a longer delta has more of them whatever its loss, and where singular values lie close "
        "together any change mixes their vectors. The random delta beside each count is one draw, has the same "
        "singular values, and differs in its directions alone."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """At the first epsilon: shares of intruders among leading directions and of their energy; a random delta's."""
    seen = set()
    for row in view.rows("intruders", scope="global"):
        if row["run"] not in seen:
            seen.add(row["run"])
            yield row["run"], "intruder_share", row["intruder_share"]
            yield row["run"], "intruder_energy_share", row["energy_share"]
            yield row["run"], "random_intruder_share", row["null_intruder_share"]
            yield row["run"], "random_intruder_energy_share", row["null_energy_share"]
