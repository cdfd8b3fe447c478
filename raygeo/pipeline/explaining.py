"""Why settings are refused, as sentences: the place, what was read, and what to write instead."""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from raygeo.search.space import models_in, tag
from raygeo.settings import Settings

Location = tuple[int | str, ...]

_SURELY, _PERHAPS = 0.8, 0.6
_MOST_PLACES, _MOST_NAMES, _MOST_SHOWN = 3, 5, 80
_LIST, _MAPPING, _TEXT = "a list", "a mapping", "a text"
_WANTED = {
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), _LIST),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type", "mapping_type"), _MAPPING),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": _TEXT,
}
"""What is wanted where pydantic tells of a value of another kind."""
_BARE = re.compile(r"[\w./~-]+")


class _Problem(NamedTuple):
    """A problem as pydantic tells it, with its ``location`` in the data. ``shown`` has the types of settings too, and
    ``union`` is where a value stands that may be of several kinds without a type, if the problem is with one of these.
    """

    told: Any
    location: Location
    shown: Location
    union: Location | None

    @property
    def wanted(self) -> str:
        """What kind of value is wanted; "" if what was read is of that kind, or nothing."""
        kind = self.told["type"]
        return str(self.told["ctx"]["expected"]) if kind == "literal_error" else _WANTED.get(kind, "")


def explain(error: ValidationError, root: type[BaseModel], raw: Any) -> Iterator[tuple[Location, str]]:
    """What is wrong with the plain data ``raw`` for ``root``: where each problem is, and a sentence about it.

    Of a value that is none of several kinds there is one, of the kind that it comes nearest or of all of them.
    """
    problems = [_located(told, root, raw) for told in error.errors()]
    absent = [problem.location for problem in problems if problem.told["type"] == "missing"]
    groups: dict[Any, list[_Problem]] = {}
    for number, problem in enumerate(problems):
        if problem.told["type"] != "too_short" or not any(_is_inside(other, problem) for other in problems):
            groups.setdefault(number if problem.union is None else problem.union, []).append(problem)
    for group in groups.values():
        deepest = max(len(problem.location) for problem in group)
        near = [problem for problem in group if len(problem.location) == deepest]
        near = [problem for problem in near if not problem.wanted] or near
        for location in dict.fromkeys(problem.location for problem in near):
            alike = [problem for problem in near if problem.location == location]
            yield location, _sentence(alike, root, [each[-1] for each in absent if each[:-1] == location[:-1]])


def _located(told: Any, root: type[BaseModel], raw: Any) -> _Problem:
    location, shown, union, node = list[int | str](), list[int | str](), None, raw
    for number, part in enumerate(told["loc"]):
        models, inside = _models_at(told["loc"][:number], root), _has(node, part)
        if inside or isinstance(part, int) or any(part in model.model_fields for model in models):
            location.append(part)
            shown.append(part)
            node = node[part] if inside else None
        elif any(tag(model) == part for model in models):
            shown.append(part)
        elif union is None:
            union = tuple(location)
    return _Problem(told, tuple(location), tuple(shown), union)


def _has(node: Any, part: int | str) -> bool:
    if isinstance(node, Mapping):
        return part in node
    return isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)


def _is_inside(problem: _Problem, whole: _Problem) -> bool:
    """Whether one is a problem with an entry of a list; such entries are not counted where it is said to be short."""
    depth = len(whole.location)
    return len(problem.location) > depth and problem.location[:depth] == whole.location


def _sentence(problems: Sequence[_Problem], root: type[BaseModel], absent: Sequence[int | str]) -> str:
    """A sentence about the problems of one value; ``absent`` are the settings that are missing beside it."""
    told, place = problems[0].told, ".".join(map(str, problems[0].shown)) or "the study"
    kind, read, context = told["type"], told["input"], told.get("ctx", {})
    field = _field(problems[0].shown, root)
    models = [root] if field is None else [*models_in(field.annotation)]
    if kind == "extra_forbidden":
        return f"{place}: {_unknown(told['loc'], read, root, absent)}"
    if kind == "union_tag_invalid":
        known = context["expected_tags"].split(", ")
        near = get_close_matches(f"'{context['tag']}'", known, 1)
        hint = f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known)}."
        return f"{place}.type: there is no {context['tag']!r}; {hint}"
    if kind == "union_tag_not_found":
        known = [kind for model in _models_at(told["loc"], root) if (kind := tag(model)) is not None]
        return f"{place}: it has no type; give one of {', '.join(known)}."
    if kind == "missing":
        return f"{place}: it is missing; give it."
    if kind == "string_pattern_mismatch":
        return f"{place}: write it as a text that matches {context['pattern']} (read {_shown(read)})"
    if kind in ("too_short", "too_long"):
        side, bound = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        items = "1 item" if bound == 1 else f"{bound} items"
        return f"{place}: write at {side} {items}, not {context['actual_length']} (read {_shown(read)})"
    if problems[0].wanted and (kind != "literal_error" or len(problems) > 1):
        wanted = dict.fromkeys(_instead(problem.wanted, read, models) for problem in problems)
        return f"{place}: {_refused(read, list(wanted), field)}"
    said = told["msg"].removeprefix("Value error, ")
    said = said if said.startswith(place) or not problems[0].location else f"{place}: {said}"
    whole = isinstance(read, BaseModel) or (models and isinstance(read, Mapping))
    return said if whole else f"{said} (read {_shown(read)})"


def _refused(read: Any, wanted: list[str], field: FieldInfo | None) -> str:
    """That something else was read than what is wanted."""
    if read is None:
        unless = ", or leave it out" if field is not None and not field.is_required() else ""
        return f"it is empty; write {' or '.join(wanted)}{unless}."
    off = ["null"] if read is False and field is not None and NoneType in get_args(field.annotation) else []
    return f"write {', or '.join([*off, *wanted])} (read {_shown(read)})"


def _instead(wanted: str, read: Any, models: Sequence[type[BaseModel]]) -> str:
    """What to write in place of what was read, which is of another kind; ``models`` are those that may stand there."""
    if wanted == _LIST:
        one = _flow(read) if isinstance(read, Mapping) or not models else _example(read, models)
        if len(one) > _MOST_SHOWN:
            return "a list, with a dash before each entry"
        return f"a list, as in [{one}]" if one and not isinstance(read, bool | None) else _LIST
    if wanted == _MAPPING:
        if example := _example(read, models):
            return f"a mapping, as in {example}"
        if kinds := [str(kind) for model in models if (kind := tag(model)) is not None]:
            return f"a mapping with a type: {', '.join(kinds)}"
        names = [name for model in models for name in model.model_fields]
        more = ", ..." if len(names) > _MOST_NAMES else ""
        whole = f"{_MAPPING} of settings ({', '.join(names[:_MOST_NAMES])}{more})" if names else _MAPPING
        return f"{{}} or {whole}" if read is True else whole
    if wanted == _TEXT and isinstance(read, bool):
        return "a text, in quotes: YAML reads yes, no, on and off as true and false"
    if wanted == _TEXT and isinstance(read, int | float):
        return f"a text, in quotes: '{read}'"
    return wanted


def _example(read: Any, models: Sequence[type[BaseModel]]) -> str:
    """A mapping for one of these models, with a text or number that was read in its place; "" if it fits none."""
    if isinstance(read, bool) or not isinstance(read, str | int | float):
        return ""
    kinds = {str(kind): model for model in models if (kind := tag(model)) is not None}
    for model in models:
        needed = [name for name, field in model.model_fields.items() if field.is_required()]
        kind = tag(model)
        if len(needed) == 1 and (kind is None or str(read).endswith(f".{kind}")):
            return _flow(({} if kind is None else {"type": kind}) | {needed[0]: read})
    if near := get_close_matches(str(read), kinds, 1, _SURELY):
        return _flow({"type": near[0]})
    inner = ((name, tag(child)) for model in models for name in model.model_fields for child in _children(model, name))
    return next((_flow({name: {"type": kind}}) for name, kind in inner if kind == read), "")


def _shown(read: Any) -> str:
    """What was read, as a study file has it, or as much of it as tells which it is."""
    if isinstance(read, Mapping | list | tuple | bool | None):
        return _cut(_flow(read), _MOST_SHOWN)
    return _cut(repr(read), 2 * _MOST_SHOWN)


def _flow(value: Any) -> str:
    """Plain data in YAML's flow style."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value) if isinstance(value, str) and not _BARE.fullmatch(value) else str(value)


def _cut(said: str, most: int) -> str:
    """A text that is not too long, cut where a part of it ends."""
    if len(said) <= most:
        return said
    whole, comma, _ = said[:most].rpartition(", ")
    return f"{whole}, ..." if comma else f"{said[:most]}..."


def _unknown(location: Sequence[int | str], read: Any, root: type[BaseModel], absent: Sequence[int | str]) -> str:
    """What to say of a key that the settings where it stands do not have; ``absent`` are those that they lack."""
    key = str(location[-1])
    models = _models_at(location[:-1], root)
    for model in models:
        if issubclass(model, Settings) and (hint := _hint(model, key)):
            return f"{hint}."
    if "." in key:
        return f"dotted keys are for --set; write it nested: {_nested(key, read)}"
    allowed = sorted({name for model in models for name in model.model_fields})
    near = get_close_matches(key, allowed, 1, _SURELY)
    if not near and len(absent) == 1 and any(_takes(model, str(absent[0]), read) for model in models):
        return f"is called {absent[0]!r} here."
    if not near and (places := _places(key, root, location[:-1])):
        return f"is no setting here; it is {' or '.join(places)}."
    near = near or get_close_matches(key, allowed, 1, _PERHAPS)
    hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(allowed)}."
    return f"unknown key; {hint}"


def _nested(key: str, value: Any) -> str:
    """A dotted key with its value, as mappings in each other."""
    first, *others = key.split(".")
    inner = _cut(_flow(value), _MOST_SHOWN)
    for part in reversed(others):
        inner = f"{{{part}: {inner}}}"
    return f"{first}: {inner}"


def _takes(model: type[BaseModel], name: str, value: Any) -> bool:
    """Whether a setting of a model can have this value."""
    field = model.model_fields.get(name)
    if field is None:
        return False
    kind: Any = Annotated[field.annotation, Field(), *field.metadata]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


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
    return [place for place in found if not here.startswith(f"{place.replace('.0', '').rpartition('.')[0]}.")]


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
    """The models in the fields of a model, and their places, in a list that of its first entry."""
    for name, field in model.model_fields.items():
        yield from _inside(field.annotation, f"{above}.{name}".lstrip("."))


def _inside(annotation: Any, place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every model in a type annotation of what stands at ``place``, and its place."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inside(argument, f"{place}.0" if get_origin(annotation) in (tuple, list) else place)


def _field(location: Sequence[int | str], root: type[BaseModel]) -> FieldInfo | None:
    """The field at a location, or that of the list there; None of the whole."""
    while location and isinstance(location[-1], int):
        location = location[:-1]
    if not location:
        return None
    models = _models_at(location[:-1], root)
    return next((model.model_fields[str(location[-1])] for model in models if location[-1] in model.model_fields), None)


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
