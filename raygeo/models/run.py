"""A trained run as everything downstream sees it."""

from dataclasses import dataclass, field

from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Delta, open_delta
from raygeo.models.loading import Loading
from raygeo.store import AnyPath

_DEFAULT = Loading()


@dataclass(frozen=True)
class Run:
    """``key`` is the training run's content key; ``delta`` its folder (an absolute path), None for the base itself.

    ``snapshots`` is the folder of the deltas kept while training, one subfolder ``step-000001`` a step, if any were.
    ``base`` is the model that ``delta`` is a fine-tune of, where ``delta`` is a complete model and not a difference.
    ``leg`` marks what a later stage of a run changed, relative to where that stage began: of such a run the weights are
    compared, but base + delta is no model that was ever trained.
    ``loading`` says how its weights are held where it is measured, and is part of ``key`` where it is not the default.
    """

    name: str
    key: str
    delta: AnyPath | None
    snapshots: AnyPath | None = None
    base: AnyPath | None = None
    leg: bool = False
    loading: Loading = field(default=_DEFAULT, hash=False)

    def open(self, base: Checkpoint | None = None) -> Delta | None:
        """Open the delta lazily; None for the base. ``base`` is the model of that name, if it is open already."""
        if self.delta is None:
            return None
        return open_delta(self.delta, self.base if self.base is None or base is None else base)

    def mixture(self, coefficient: float = 1.0) -> list[tuple[float, Delta]]:
        """The run as a mixture of deltas for ``MixedWeights``: empty for the base."""
        delta = self.open()
        return [] if delta is None else [(coefficient, delta)]
