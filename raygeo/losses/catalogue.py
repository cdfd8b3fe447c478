"""What a person chooses a loss by, read off the classes themselves: formula, paper, needs and options of each."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from raygeo.losses import LOSSES
from raygeo.losses.base import Loss, Need, Unit

NEEDS: dict[Need, str] = {
    "reference": "log-probabilities of the base",
    "reference_logits": "final hidden states of the base, kept on disk",
    "behaviour": "log-probabilities recorded with the rollouts",
    "mismatched": "prompts with other prompts' completions",
}
"""In words; what is of the base is computed once a study."""


@dataclass(frozen=True)
class Option:
    """One setting of a loss: what values it takes, its default as written in a study, and what it does."""

    name: str
    values: str
    default: str
    description: str


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


def catalogue() -> dict[str, Entry]:
    """Describe every loss a study can name, by type, in the order of the union."""
    return {name: _entry(name, loss) for name, loss in LOSSES.items()}


def _entry(name: str, loss: type[Loss]) -> Entry:
    options = [
        Option(key, _values(field), _written(field.default), " ".join((field.description or "").split()))
        for key, field in loss.model_fields.items()
        if key != "type"
    ]
    return Entry(
        type=name,
        title=loss.title,
        formula=loss.formula,
        paper=loss.paper,
        description=inspect.getdoc(loss) or "",
        unit=loss().unit,
        needs=tuple(_needs(loss)),
        options=tuple(options),
    )


def _needs(loss: type[Loss]) -> Iterator[str]:
    """Needs by default, then those that one other choice of one option brings."""
    default = loss()
    if default.unit == "pair":
        yield "prompts with right and wrong rollouts"
    if default.embedding_mix > 0:
        yield "a forward pass more, for the student's guesses"
    yield from (text for need, text in NEEDS.items() if need in default.needs)
    for name, field in loss.model_fields.items():
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            try:
                other = loss(**{name: choice})
            except ValidationError:  # a choice that another option must go with
                continue
            new = other.needs - default.needs
            yield from (f"{text} ({name}: {_written(choice)})" for need, text in NEEDS.items() if need in new)


def _values(field: FieldInfo) -> str:
    """Say which values a field takes, as one would write them in a study."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(b, name):g}" for b in field.metadata for name, sign in signs.items() if hasattr(b, name)
    ]
    kind, null, _ = _spelled(field.annotation).partition(" | null")
    return f"{kind} {', '.join(bounds)}".rstrip() + null


def _spelled(annotation: Any) -> str:
    names = {bool: "true | false", int: "integer", float: "number", str: "text", NoneType: "null"}
    if annotation in names:
        return names[annotation]
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return " | ".join(_written(choice) for choice in parts)
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(_spelled(part) for part in parts)
    if get_origin(annotation) is tuple:
        return f"[{', '.join(_spelled(part) for part in parts)}]"
    return str(annotation)


def _written(value: Any) -> str:
    """A value as a study has it."""
    return json.dumps(value) if value is None or isinstance(value, (bool, tuple)) else str(value)
