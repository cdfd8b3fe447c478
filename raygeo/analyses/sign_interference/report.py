"""What is shown of opposite signs."""

from collections.abc import Iterator

from raygeo.report import typeset
from raygeo.report.sheets import Cell, Sheet, section, share, unordered
from raygeo.report.view import View
from raygeo.tables import BASE


@section(
    "Opposite signs: {rows}",
    """Entries that two runs move in opposite directions, of those that both move; and the same weighted by the product
    of their sizes, in which tiny entries do not count. Below is chance: the mean with the entries of one in random
    places, and one draw with the columns of b in random order, which keeps its rank.""",
    folded=True,
)
def opposite_signs(view: View) -> Sheet:
    """Opposite signs of every pair of runs, the most opposed first."""
    frame = view.frame("sign_interference", scope="global").sort_values("share", ascending=False, kind="stable")
    rows: list[list[Cell]] = []
    for row, a, b in unordered(view, frame):
        norms = row.norm_ratio if a == row.run_a or not row.norm_ratio else 1 / row.norm_ratio
        chance = f"random {share(row.null_share)}, shuffled {share(row.shuffled_share)}"
        cells: list[Cell] = [(share(row.share), chance), share(row.weighted_share), typeset.significant(norms, 2)]
        rows.append([a, b, *cells])
    return Sheet(["a", "b", "opposite", "weighted by size", "‖a‖/‖b‖"], rows, frozenset({"a", "b"}))


def half(view: View) -> list[str]:
    """What a share of opposite signs does not show."""
    if not view.rows("sign_interference", scope="global"):
        return []
    lora = any((record.training or {}).get("lora") for record in view.records.values())
    small = "Most entries of a LoRA product are small, and their signs" if lora else "Signs of small entries"
    return [
        "Half of all signs are opposite between unrelated deltas, so that 45 % is close to chance and not close to "
        f"agreement. {small} count as much as those of large ones: "
        "the share weighted by size does not have this fault, and goes with the cosine."
    ]


def metrics(view: View) -> Iterator[tuple[str, str, float | None]]:
    """Opposite signs to the reference run, as they are and weighted by size, and with columns shuffled."""
    for row in view.rows("sign_interference", scope="global"):
        pair = {row["run_a"], row["run_b"]}
        if view.reference_run in pair and BASE not in pair:
            [other] = pair - {view.reference_run}
            yield other, "sign_interference_to_reference", row["share"]
            yield other, "weighted_sign_interference_to_reference", row["weighted_share"]
            yield other, "shuffled_sign_interference_to_reference", row["shuffled_share"]
