"""The JSON schema of a study file, by which editors complete and check it: ``raygeo schema``.

It holds names, types, bounds and docstrings of all settings. What follows from several settings together is checked by
``raygeo plan`` alone.
"""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from raygeo.losses.registry import LOSSES
from raygeo.pipeline.config import Study
from raygeo.pipeline.plan import ALL, RunEntry, StageEntry, TrainingDefaults
from raygeo.search.space import MOST_VALUES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_PLACE = "#/$defs/"
_NUMBER = {"type": "number"}
_RANGE: Schema = {
    "description": "A range to draw from, with sweep.search random or optuna.",
    "oneOf": [
        {
            "type": "object",
            "properties": {kind: {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}},
            "required": [kind],
            "additionalProperties": False,
        }
        for kind in ("uniform", "log_uniform")
    ],
}

_OWN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_OWN_ANALYSIS: Schema = {"description": "An analysis of your own: module:name.", "type": ["object", "null"]}
_OWN_LOSS: Schema = {
    "description": "A loss of your own: module:class.",
    "type": "object",
    "properties": {"type": {"type": "string", "pattern": _OWN}},
    "required": ["type"],
}


def study_schema() -> Schema:
    """The schema (JSON Schema 2020-12) of a study file, with losses and analyses of installed packages.

    In ``training`` and in entries of ``runs`` a list of values, or a range of numbers, may stand for a value.
    """
    schema = Study.model_json_schema()
    definitions: dict[str, Schema] = schema["$defs"]
    runs = schema["properties"]["runs"]
    runs["minItems"] = runs.pop("minLength")  # pydantic takes what stands behind a validator for a text
    training, entry = definitions[TrainingDefaults.__name__], definitions[RunEntry.__name__]
    definitions["GeometrySettings"] |= {"additionalProperties": False, "patternProperties": {_OWN: _OWN_ANALYSIS}}
    stages = definitions[StageEntry.__name__]["properties"]
    stages["loss"] = _either(stages["loss"], _OWN_LOSS)
    for name, setting in training["properties"].items():  # of settings that may be left out pydantic keeps no bounds
        bounded = {key: value for key, value in setting.items() if key != "default"}
        for each in (entry, definitions["StageEntry"]):
            each["properties"][name] = _either(bounded, {"type": "null"})
    varying = _Varying(definitions)
    definitions |= {
        TrainingDefaults.__name__: varying.model(training, TrainingDefaults.fixed),
        RunEntry.__name__: _with_groups(varying.model(entry, RunEntry.fixed)),
        **varying.made,
    }
    return {"$schema": DIALECT, **schema}


class _Varying:
    """Makes schemas of settings that may vary, at any depth, from the ``definitions`` of settings as they are.

    ``made`` holds new definitions, by name.
    """

    def __init__(self, definitions: dict[str, Schema]):
        self.definitions = definitions
        self.made: dict[str, Schema] = {}

    def model(self, settings: Schema, fixed: frozenset[str] = frozenset({"type"})) -> Schema:
        """Settings whose fields may vary, those that are ``fixed`` only within themselves."""
        fields = {
            name: self._within(field) if name in fixed else self._field(field)
            for name, field in settings["properties"].items()
        }
        return settings | {"properties": fields}

    def _field(self, field: Schema) -> Schema:
        kinds = set(self._kinds(field))
        ways = [self._within(field)]
        if "array" not in kinds:
            ways.append({"type": "array", "items": _bare(field), "minItems": 1, "maxItems": MOST_VALUES})
        if kinds & {"number", "integer"}:
            ways.append(_RANGE)
        return _either(*ways)

    def _within(self, field: Schema) -> Schema:
        """A field whose value is one, and may hold settings that vary."""
        field = deepcopy(field)
        if (place := field.get("$ref")) is not None:
            field["$ref"] = self._reference(place)
        for ways in ("anyOf", "oneOf"):
            if ways in field:
                field[ways] = [self._within(way) for way in field[ways]]
        if "discriminator" in field:
            named = field["discriminator"]["mapping"]
            named |= {name: self._reference(place) for name, place in named.items()}
        return field

    def _reference(self, place: str) -> str:
        name = place.removeprefix(_PLACE)
        if name == "StageEntry" or "properties" not in self.definitions[name]:
            return place
        varying = f"{name}Varying"
        if varying not in self.made:
            self.made[varying] = {}
            self.made[varying] = self.model(self.definitions[name])
        return f"{_PLACE}{varying}"

    def _kinds(self, field: Schema) -> Iterator[str]:
        """The JSON types that a value may have."""
        if "type" in field:
            yield field["type"]
        if "$ref" in field:
            yield from self._kinds(self.definitions[field["$ref"].removeprefix(_PLACE)])
        for way in (*field.get("anyOf", ()), *field.get("oneOf", ())):
            yield from self._kinds(way)


def _with_groups(entry: Schema) -> Schema:
    """An entry that may also be one of each of several losses: ``loss: all``, ``except: [sft]``."""
    fields = entry["properties"]
    group = {"enum": list(ALL), "description": "One entry for each of these losses."}
    left_out = {
        "type": "array",
        "items": {"enum": list(LOSSES)},
        "description": "Losses that a group in `loss` is taken without.",
    }
    return entry | {
        "properties": fields | {"loss": _either(fields["loss"], group, _OWN_LOSS), "except": left_out},
        "anyOf": [{"required": ["loss"]}, {"required": ["stages"]}],
        "dependentSchemas": {"except": {"properties": {"loss": {"type": "string"}}, "required": ["loss"]}},
    }


def _either(*ways: Schema) -> Schema:
    """One of several ways to write a field, described as the first is."""
    said = {key: ways[0][key] for key in ("description", "default", "title") if key in ways[0]}
    return said | {"anyOf": [_bare(way) for way in ways]}


def _bare(field: Schema) -> Schema:
    """A field without what is said of it."""
    return {key: value for key, value in field.items() if key not in ("description", "default", "title")}
