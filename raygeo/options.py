"""The options of a settings model, as one would write them in a study file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from raygeo.settings import Settings


@dataclass(frozen=True)
class Option:
    """One setting: what values it takes, its default as written in a study, and what it does."""

    name: str
    values: str
    default: str
    description: str


def options(model: type[Settings]) -> tuple[Option, ...]:
    """All settings of a model, in order, but for the ``type`` that names it."""
    return tuple(
        Option(name, _values(field), written(field.default), " ".join((field.description or "").split()))
        for name, field in model.model_fields.items()
        if name != "type"
    )


def as_table(listed: Sequence[Option]) -> Iterator[str]:
    """Options as lines of a Markdown table, with an empty one below; nothing of none."""
    if listed:
        yield "| option | values | default | |"
        yield "| --- | --- | --- | --- |"
        for option in listed:
            cells = (f"`{option.name}`", option.values, f"`{option.default}`", option.description)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""


def written(value: Any) -> str:
    """A value as a study has it."""
    return json.dumps(value) if value is None or isinstance(value, (bool, tuple)) else str(value)


def _values(field: FieldInfo) -> str:
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
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _spelled(parts[0])
    if origin is Literal:
        return " | ".join(written(choice) for choice in parts)
    if origin in (Union, UnionType):
        return " | ".join(_spelled(part) for part in parts)
    if origin is tuple:
        inside = [_spelled(part) for part in parts if part is not Ellipsis]
        return f"[{', '.join(inside)}{', ...' if Ellipsis in parts else ''}]"
    return getattr(annotation, "__name__", str(annotation))
