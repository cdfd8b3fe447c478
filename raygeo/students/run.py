"""A trained run as everything downstream sees it."""

from dataclasses import dataclass
from pathlib import Path

from raygeo.store import AnyPath
from raygeo.students.delta import Delta, open_delta


@dataclass(frozen=True)
class Run:
    """``key`` is the training run's content key; ``delta`` its folder (an absolute path), None for the base itself.

    ``snapshots`` is the folder of the deltas kept while training, one subfolder ``step-000001`` a step, if any were.
    """

    name: str
    key: str
    delta: AnyPath | None
    snapshots: AnyPath | None = None

    def open(self) -> Delta | None:
        """Open the delta lazily; None for the base."""
        return None if self.delta is None else open_delta(Path(self.delta))

    def mixture(self, coefficient: float = 1.0) -> list[tuple[float, Delta]]:
        """The run as a mixture of deltas for ``MixedWeights``: empty for the base."""
        delta = self.open()
        return [] if delta is None else [(coefficient, delta)]
