"""The base of every settings model, and the content keys made of settings."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, ClassVar, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from raygeo.paths import local_path

MOST_TEXT = 1 << 16
"""Characters of the longest text that a setting may be."""
_MOST_VALUES = 20_000
_MOST_LEVELS = 32
_MOST_COUNT = 10**12
_MOST_NUMBER = 1e12
_LARGEST_SEED = (1 << 63) - 1


def _checked_place(place: str) -> str:
    if "://" not in place:
        local_path(place)
    return place


def _checked_name(name: str) -> str:
    if not name.strip() or "/" in name or "\\" in name or "\n" in name or set(name) <= {"."}:
        raise ValueError("a name holds no slash and no line break, and is not blank")
    return name


AnyPlace = Annotated[str, AfterValidator(_checked_place)]
"""A path, a URI or a hub id."""
Name = Annotated[str, Field(max_length=200), AfterValidator(_checked_name)]
"""What something is called in tables, files and figures."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The rate of a running mean."""


def as_plain(value: Any) -> Any:
    """A copy of settings that were given in Python, as a file holds them: paths are texts, mappings dictionaries."""
    return _as_plain(value, {})


def _as_plain(value: Any, copies: dict[int, tuple[Any, Any]]) -> Any:
    """``copies`` holds what was copied beside its copy, by id; held, no other thing can have that id."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if id(value) in copies:
        return copies[id(value)][1]
    if isinstance(value, Mapping):
        mapping: dict[Any, Any] = {}
        copies[id(value)] = value, mapping
        mapping.update((key, _as_plain(inner, copies)) for key, inner in value.items())
        return mapping
    if isinstance(value, list | tuple):
        listed: list[Any] = []
        copies[id(value)] = value, listed
        listed.extend(_as_plain(inner, copies) for inner in value)
        return listed
    return value


def faults(raw: Any) -> Iterator[tuple[tuple[int | str, ...], str]]:
    """What no setting can be in plain data from a file, whatever it is for: where each stands, and a sentence.

    That are texts that cannot be printed or are longer than ``MOST_TEXT``, numbers that no count, seed or measure can
    be, other things than texts, numbers, lists and mappings, and more of these, or deeper ones, than a study can have.
    """
    budget = [_MOST_VALUES]
    yield from _faults(raw, (), budget)
    if budget[0] < 0:
        yield (), f"the study: more than {_MOST_VALUES:,} values, aliases written out"


def _faults(value: Any, place: tuple[int | str, ...], budget: list[int]) -> Iterator[tuple[tuple[int | str, ...], str]]:
    budget[0] -= 1
    if budget[0] < 0:
        return
    said = ".".join(map(str, place)) or "the study"
    if len(place) > _MOST_LEVELS:
        budget[0] = -1
    elif isinstance(value, Mapping):
        for key, inner in islice(value.items(), _MOST_VALUES + 1):
            if not isinstance(key, str):
                yield (*place, _short(key)), f"{said}: the key {_short(key)} is no text; put it into quotes"
            elif why := _fault_of(key, ""):
                yield (*place, key), f"{said}: the key {_short(key)} is {why}"
            else:
                yield from _faults(inner, (*place, key), budget)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value[: _MOST_VALUES + 1]):
            yield from _faults(inner, (*place, index), budget)
    elif why := _fault_of(value, next((part for part in reversed(place) if isinstance(part, str)), "")):
        yield place, f"{said}: {why} (read {_short(value)})"


def _fault_of(value: Any, name: str) -> str | None:
    """What is wrong with a text or number in the setting of this name, if anything is."""
    if isinstance(value, str):
        if len(value) > MOST_TEXT:
            return f"a text of {len(value):,} characters; at most {MOST_TEXT:,} are read"
        odd = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\r\t"), None)
        return None if odd is None else f"a text that holds the control character {odd!r}"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        most = _LARGEST_SEED if "seed" in name else _MOST_COUNT
        return None if abs(value) <= most else f"a number beyond {most:,}"
    if isinstance(value, float):
        return None if abs(value) <= _MOST_NUMBER else f"a number beyond {_MOST_NUMBER:g}, or none"
    if isinstance(value, BaseModel):
        return None
    return f"a {type(value).__name__}, where a text, number, list or mapping belongs; put a text into quotes"


def _short(value: Any) -> str:
    try:
        said = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"
    return said if len(said) <= 80 else f"{said[:80]}..."


class Settings(BaseModel):
    """A frozen model that refuses unknown keys; every part of a study is described by one.

    ``renamed`` holds keys of earlier versions, which are refused with a word on what they are called now; ``foreign``
    holds names that other libraries have for the same thing, each with the name of a field here or with the rest of a
    sentence about it.
    """

    renamed: ClassVar[dict[str, str]] = {}
    foreign: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _flags_are_no_numbers(cls, raw: Any) -> Any:
        """Refuse true and false, alone or in a list, where pydantic would take them as 1 and 0."""
        wrong: list[InitErrorDetails] = []
        for name, value in raw.items() if isinstance(raw, Mapping) else ():
            entries = list(enumerate(value)) if isinstance(value, list | tuple) else [(None, value)]
            for place, entry in entries:
                if isinstance(entry, bool) and name in cls.model_fields:
                    leaves = _leaves(cls.model_fields[name].annotation)
                    if leaves & {int, float} and not leaves & {bool, Any}:
                        kind = "float_type" if float in leaves else "int_type"
                        loc = (name,) if place is None else (name, place)
                        wrong.append(InitErrorDetails(type=kind, loc=loc, input=entry))
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return raw

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """The options of this model alone, taken from settings that have them among others."""
        return cls.model_validate({name: getattr(settings, name) for name in cls.model_fields})


def _leaves(annotation: Any) -> set[Any]:
    """The types, and choices of ``Literal``, that an annotation is made of."""
    parts = get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
    return {annotation} if not parts else set().union(*map(_leaves, parts))


def kinds(base: type[Settings]) -> Iterator[type[Any]]:
    """The subclasses of ``base`` that a study can name by a ``type``."""
    for kind in base.__subclasses__():
        if "type" in kind.model_fields:
            yield kind
        yield from kinds(kind)


def content_key(*parts: Any) -> str:
    """Return 16 hex digits of SHA-256 over the canonical JSON of ``parts``.

    Settings models are dumped with all their defaults; floats are written as Python's ``repr``. Two units of work
    share a key exactly when their settings and their inputs' keys are equal.
    """
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unit_key(revision: int | tuple[int, ...], *parts: Any) -> str:
    """The content key of ``parts``, and the revisions of the code that makes the unit, as in ``<16 digits>-r2`` or
    ``<16 digits>-r2.1``.
    """
    numbers = (revision,) if isinstance(revision, int) else revision
    return f"{content_key(*parts)}-r{'.'.join(map(str, numbers))}"


def split_key(key: str) -> tuple[str, str]:
    """What a unit is made of, and the revisions of the code that made it; "" for one made before these were kept."""
    made_of, _, revision = key.partition("-r")
    return made_of, revision
