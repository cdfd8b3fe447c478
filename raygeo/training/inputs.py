"""Where a run finds what it learns from."""

from dataclasses import dataclass

from raygeo.store import AnyPath


@dataclass(frozen=True)
class RunInputs:
    """``rollouts`` is the unit key of the rollout table; the rest are folders, ``reference`` where a loss needs it."""

    rollouts: str
    student: AnyPath
    tokens: AnyPath
    reference: AnyPath | None
    pad_id: int
