"""What a person chooses a loss by, read off the classes themselves: formula, paper, needs and options of each."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from pydantic import ValidationError

from raygeo.losses.base import Loss, Need, Unit
from raygeo.options import Option, options, written

NEEDS: dict[Need, str] = {
    "reference": "log-probabilities of the base",
    "reference_logits": "the base's logits: in each step with LoRA, else from its final hidden states, kept on disk",
    "behaviour": "log-probabilities recorded with the rollouts",
    "mismatched": "prompts with other prompts' completions",
    "teacher": "a teacher's likeliest tokens: asked once of a model named in `teacher`, or recorded with the rollouts",
}
"""In words; what is of the base is computed once a study."""


@dataclass(frozen=True)
class Entry:
    """One loss. ``unit`` is what it is averaged over by default; ``needs`` is empty where the rollouts are enough."""

    type: str
    title: str
    formula: str
    paper: str
    description: str
    unit: Unit
    needs: tuple[str, ...]
    options: tuple[Option, ...]


def describe(loss: type[Loss]) -> Entry:
    """Describe a loss that a study can name."""
    default = loss()
    return Entry(
        type=default.type,
        title=loss.title,
        formula=loss.formula,
        paper=loss.paper,
        description=inspect.getdoc(loss) or "",
        unit=default.unit,
        needs=tuple(_needs(default)),
        options=options(loss),
    )


def _needs(default: Loss) -> Iterator[str]:
    """Needs by default, then those that one other choice of one option brings."""
    if default.unit == "pair":
        yield "prompts with right and wrong rollouts"
    if default.embedding_mix > 0:
        yield "a forward pass more, for the student's guesses"
    if default.kept_share < 1:
        yield "a forward pass more, for the choice of rollouts"
    yield from (text for need, text in NEEDS.items() if need in default.needs)
    for name, field in type(default).model_fields.items():
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            try:
                other = type(default)(**{name: choice})
            except ValidationError:  # a choice that another option must go with
                continue
            new = other.needs - default.needs
            yield from (f"{text} ({name}: {written(choice)})" for need, text in NEEDS.items() if need in new)
