"""Which benchmarks a study answers, and what follows from that for the metrics it has."""

from collections.abc import Mapping
from dataclasses import dataclass

from raygeo.evaluation.statistics import pass_sizes


@dataclass(frozen=True)
class Answered:
    """The benchmarks that a study has answered, with their shifts, and how often each problem is."""

    shifts: Mapping[str, str]
    samples: int

    @property
    def names(self) -> list[str]:
        """All benchmarks, the chief one first."""
        return list(self.shifts)

    @property
    def shifted(self) -> list[str]:
        """Those out of distribution, where there is one within it to compare them with."""
        within = "none" in self.shifts.values()
        return [name for name, shift in self.shifts.items() if within and shift == "ood"]

    @property
    def passes(self) -> list[tuple[str, str]]:
        """The benchmark, and how many answers pass@k is of."""
        return [(name, str(k)) for k in pass_sizes(self.samples) for name in self.shifts]
