"""A trained run as everything downstream sees it."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from raygeo.errors import DeltaError
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

    def kept(self, last: int) -> dict[int, Delta]:
        """The deltas kept while training by step, ascending; the final one is the last, at step ``last``.

        Raises:
            DeltaError: they are not all of the same parameters.
        """
        assert self.delta is not None
        folders = {last: Path(self.delta)}
        if self.snapshots is not None:
            found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in Path(self.snapshots).iterdir())
            folders |= {int(match[1]): folder for match, folder in found if match and int(match[1]) < last}
        deltas = {step: open_delta(folders[step]) for step in sorted(folders)}
        final = deltas[last]
        if any(set(delta) != set(final) for delta in deltas.values()):
            raise DeltaError(
                f"{final.folder} has other parameters than the deltas kept before it; train the run again."
            )
        return deltas

    def mixture(self, coefficient: float = 1.0) -> list[tuple[float, Delta]]:
        """The run as a mixture of deltas for ``MixedWeights``: empty for the base."""
        delta = self.open()
        return [] if delta is None else [(coefficient, delta)]
