"""Where a run finds what it learns from."""

from dataclasses import dataclass

from raygeo.store import AnyPath


@dataclass(frozen=True)
class RunInputs:
    """``rollouts`` is the unit key of the rollout table; the rest are folders and files, None where no loss needs them.

    ``student_key`` is the content key of the student that training starts from; ``reference`` and ``reference_states``
    hold what the base says of the rollouts, which is ``referred``, or that same student where it is None;
    ``mismatched`` the tokens of prompts with other prompts' completions, ``mismatched_reference`` what the base says of
    those; ``heldout`` is the probe whose NLL is measured while training; ``teacher`` holds a teacher's likeliest
    tokens, and ``teacher_key`` is the key of the model that they were asked of, None where they came with the rollouts.
    """

    rollouts: str
    student: AnyPath
    student_key: str
    tokens: AnyPath
    pad_id: int
    reference: AnyPath | None = None
    reference_states: AnyPath | None = None
    mismatched: AnyPath | None = None
    mismatched_reference: AnyPath | None = None
    heldout: AnyPath | None = None
    referred: AnyPath | None = None
    teacher: AnyPath | None = None
    teacher_key: str | None = None
