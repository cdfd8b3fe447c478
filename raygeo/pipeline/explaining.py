"""Why settings are refused, as sentences: the place, what was read, and what to write instead."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from raygeo.search.space import models_in, tag
from raygeo.settings import Settings

_SURELY, _PERHAPS = 0.8, 0.6
_MOST_PLACES = 3


def explain(problem: Any, root: type[BaseModel]) -> str:
    """A sentence about a problem as pydantic tells it, met in plain data for ``root``."""
    place = ".".join(str(part) for part in problem["loc"]) or "the study"
    read = problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{place}: {_unknown(problem['loc'], root)}"
    if problem["type"] == "union_tag_invalid":
        known = problem["ctx"]["expected_tags"].split(", ")
        near = get_close_matches(f"'{problem['ctx']['tag']}'", known, 1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known)}."
        return f"{place}.type: there is no {problem['ctx']['tag']!r}; {hint}"
    if problem["type"] == "union_tag_not_found":
        known = [kind for model in _models_at(problem["loc"], root) if (kind := tag(model)) is not None]
        return f"{place}: it has no type; give one of {', '.join(known)}."
    shown = repr(read)[:200] if not isinstance(read, (dict, list)) else f"{type(read).__name__} {str(read)[:80]}"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')} (read {shown})"


def _unknown(location: Sequence[int | str], root: type[BaseModel]) -> str:
    """What to say of a key that the settings where it stands do not have."""
    key = str(location[-1])
    models = _models_at(location[:-1], root)
    for model in models:
        if issubclass(model, Settings) and (hint := _hint(model, key)):
            return f"{hint}."
    allowed = sorted({name for model in models for name in model.model_fields})
    near = get_close_matches(key, allowed, 1, _SURELY)
    if not near and (places := _places(key, root, location[:-1])):
        return f"is no setting here; it is {' or '.join(places)}."
    near = near or get_close_matches(key, allowed, 1, _PERHAPS)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(allowed)}."
    return f"unknown key; {hint}"


def _hint(model: type[Settings], key: str) -> str:
    """What to write instead of a key that an earlier version or another library has; "" for any other."""
    if key in model.renamed:
        return f"is now called {model.renamed[key]!r}"
    instead = model.foreign.get(key, "")
    return f"is called {instead!r} here" if instead in model.model_fields else instead


def _places(key: str, root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Where in the settings this key belongs, under its own name or another: further in than it stands, or else the
    places nearest to the top.

    None where it stands in one of them, with a type that does not have it.
    """
    above = ".".join(map(str, location))
    if further := _nearest(key, [(above, model) for model in _models_at(location, root)]):
        return further
    here = "".join(f"{part}." for part in location if isinstance(part, str))
    found = _nearest(key, [("", root)])
    return [place for place in found if not here.startswith(f"{place.rpartition('.')[0]}.")]


def _nearest(key: str, level: list[tuple[str, type[BaseModel]]]) -> list[str]:
    """The places of a key below these models, fewest steps down."""
    seen = {model for _, model in level}
    while level:
        level = [(place, inner) for above, model in level for place, inner in _below(model, above) if inner not in seen]
        found = [f"{above}.{name}" for above, model in level if (name := _named(model, key))]
        if found:
            return list(dict.fromkeys(found))[:_MOST_PLACES]
        seen |= {model for _, model in level}
    return []


def _named(model: type[BaseModel], key: str) -> str:
    """The name of the setting of a model that the key stands for; "" if for none."""
    other = model.renamed.get(key, model.foreign.get(key, "")) if issubclass(model, Settings) else ""
    return next((name for name in (key, other) if name in model.model_fields), "")


def _below(model: type[BaseModel], above: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models in the fields of a model, and their places."""
    for name in model.model_fields:
        for inner in _children(model, name):
            yield f"{above}.{name}".lstrip("."), inner


def _models_at(location: Sequence[int | str], root: type[BaseModel]) -> list[type[BaseModel]]:
    """Models that may stand at a location of ``root``, following union tags and list indices as pydantic reports
    them.
    """
    models: list[type[BaseModel]] = [root]
    for part in location:
        if isinstance(part, int):
            continue
        following = [child for model in models for child in _children(model, part)]
        models = following or [m for m in models if tag(m) == part or m.__name__ == part] or models
    return models


def _children(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    info = model.model_fields.get(field)
    return list(models_in(info.annotation)) if info else []
