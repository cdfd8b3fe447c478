"""What two runs have in common, loss, settings or seeds: what their cosine may come from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Seeds = Literal["same", "order", "init", "both"]
"""Which seeds two runs differ in: none, that of the data order, that of the adapter initialisation, or both."""


@dataclass(frozen=True)
class Condition:
    """How a run was trained. Runs that agree in ``loss`` and ``settings`` are of one configuration.

    ``loss`` is the loss with its options and ``settings`` everything else but the seeds, each as text in one canonical
    form. ``seed`` is that of the data order, ``init_seed`` that of the adapter; None where there is no adapter.
    """

    loss: str
    settings: str
    seed: int
    init_seed: int | None

    @property
    def configuration(self) -> tuple[str, str]:
        """The condition without its seeds."""
        return self.loss, self.settings

    @property
    def surroundings(self) -> tuple[str, int, int | None]:
        """The condition without its loss: runs that agree in it would be one if the loss did not matter."""
        return self.settings, self.seed, self.init_seed

    def seeds(self, other: "Condition") -> Seeds:
        """Which seeds differ."""
        order, init = self.seed != other.seed, self.init_seed != other.init_seed
        return "both" if order and init else "order" if order else "init" if init else "same"


def configurations(conditions: Sequence[Condition]) -> list[list[int]]:
    """Indices of the runs of each configuration, in order of appearance."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i, condition in enumerate(conditions):
        groups[condition.configuration].append(i)
    return list(groups.values())
