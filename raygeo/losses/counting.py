"""How many tokens, sequences and pairs examples hold: the denominators of losses and metrics, known from data alone."""

from collections.abc import Iterable, Sequence

from raygeo.losses.base import Example, Unit


def units(examples: Iterable[Example], lengths: Sequence[int]) -> dict[Unit, int]:
    """Count the units of ``examples``; ``lengths[row]`` is the number of completion tokens of a rollout row.

    A row in two pairs is counted twice, as the losses sum over it twice.
    """
    counts: dict[Unit, int] = {"token": 0, "sequence": 0, "pair": 0}
    for example in examples:
        counts["token"] += sum(int(lengths[row]) for row in example.rows)
        counts["sequence"] += len(example.rows)
        counts["pair"] += len(example.rows) == 2
    return counts
