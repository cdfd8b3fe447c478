"""The value language of a study's settings: a value is fixed, a list to choose from, or a range to draw from.

In the study file: ``lr: 1e-5``, ``lr: [1e-5, 1e-4]``, ``lr: {log_uniform: [1e-6, 1e-3]}``, ``r: {uniform: [1, 4]}``.
A range of an integer setting holds both its ends. Where a setting's own type is a list, a list is a value of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from raygeo.plugins import is_own, named
from raygeo.settings import Settings

Place = tuple[str, ...]
"""Where a setting stands: ``("loss", "beta")``."""

MOST_VALUES = 1000
"""Values in a list to choose from."""
DIGITS = 4
"""Significant digits of drawn numbers, so that a run's name gives its settings exactly."""

_RANGE = "a range is written {uniform: [low, high]} or {log_uniform: [low, high]}"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many different values there are."""
        return len(self.values)

    def at(self, share: float) -> Any:
        """Return the value below which the ``share`` (in [0, 1)) of the list lies."""
        return self.values[int(share * len(self.values))]

    def plain(self) -> Any:
        """Write the choice as the study file does."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included; it is spread evenly, or its logarithm is. Whole if they are."""

    low: float
    high: float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the range is one of integers."""
        return isinstance(self.low, int)

    @property
    def size(self) -> float:
        """How many different values there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def at(self, share: float) -> float:
        """Return the quantile at ``share`` (in [0, 1))."""
        low, high = self.low, self.high + self.whole
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return self.fit(math.floor(value) if self.whole else value)

    def fit(self, value: float) -> float:
        """Round to ``DIGITS`` significant digits (integers stay what they are) without leaving the range."""
        rounded = value if self.whole else float(f"{value:.{DIGITS}g}")
        return min(max(rounded, self.low), self.high)

    def plain(self) -> Any:
        """Write the range as the study file does."""
        return {"log_uniform" if self.log else "uniform": [self.low, self.high]}


Domain = Choice | Range


class Varied(Settings):
    """Settings of which any, at any depth, may be given as a list or a range instead of a value.

    The fields hold one point, the first value of each list and the lower end of each range; ``domains`` holds what may
    stand in its place. Every value of a list and both ends of a range are checked as the setting itself would be.
    """

    fixed: ClassVar[frozenset[str]] = frozenset()
    """Fields that cannot be replaced as a whole by a list or a range."""

    _domains: dict[Place, Domain] = PrivateAttr(default_factory=dict)

    @property
    def domains(self) -> Mapping[Place, Domain]:
        """What varies, in the order written."""
        return self._domains

    def at(self, values: Mapping[Place, Any]) -> dict[str, Any]:
        """Return the settings as plain data with ``values`` in their places."""
        return _replaced(self.model_dump(), values)

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(raw, Mapping):
            return handler(raw)
        errors: list[InitErrorDetails] = []
        written: dict[Place, tuple[str, Sequence[Any]]] = {}
        for place, value in _varying(cls, raw, cls.fixed):
            try:
                written[place] = _candidates(value)
            except ValueError as error:
                errors.append(_error(place, value, str(error)))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        base = _replaced(raw, {place: values[0] for place, (_, values) in written.items()})
        point = handler(base)
        domains: dict[Place, Domain] = {}
        for place, (kind, values) in written.items():
            checked = [_value(point, place)]
            for value in values[1:]:
                try:
                    checked.append(_value(handler(_replaced(base, {place: value})), place))
                except ValidationError as error:
                    errors += _moved(error)
            if len(checked) < len(values) or (kind == "list" and len(values) == 1):
                continue
            try:
                domains[place] = Choice(tuple(checked)) if kind == "list" else _range(checked, kind == "log_uniform")
            except ValueError as error:
                errors.append(_error(place, {kind: list(values)}, str(error)))
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        point._domains = domains
        return point

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._spread(handler(self))

    def _spread(self, plain: dict[str, Any]) -> dict[str, Any]:
        return _replaced(plain, {place: domain.plain() for place, domain in self._domains.items()})


def refusal(place: Sequence[int | str], read: Any, message: str) -> ValidationError:
    """An error to be raised in a validator of a model: ``message`` about the setting at ``place`` below it."""
    return ValidationError.from_exception_data("study", [_error(place, read, message)])


def below(place: Sequence[int | str], error: ValidationError, without: Sequence[str] = ()) -> ValidationError:
    """The same errors, of settings that stand at ``place``; ``without`` is where they were validated on their own."""
    return ValidationError.from_exception_data("study", [*_moved(error, place, without)])


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every model in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def tag(model: type[BaseModel]) -> Any:
    """The value of ``type`` that tells a member of a union from the others."""
    info = model.model_fields.get("type")
    return info.default if info else None


def _varying(
    model: type[BaseModel], raw: Mapping[str, Any], fixed: frozenset[str] = frozenset(), above: Place = ()
) -> Iterator[tuple[Place, Any]]:
    """Yield the places of lists and of mappings that are not values of the field they stand in."""
    for name, value in raw.items():
        info = model.model_fields.get(name)
        if info is None:
            continue
        models, place = list(models_in(info.annotation)), (*above, name)
        if isinstance(value, Mapping) and models:
            kind = value.get("type")
            own = named(str(kind), name) if is_own(kind) else None
            if isinstance(own, type) and issubclass(own, BaseModel):
                models.append(own)
            for inner in models:
                if len(models) == 1 or inner is own or tag(inner) == kind:
                    yield from _varying(inner, value, above=place)
        elif name not in fixed and (
            (isinstance(value, Mapping) and not _holds(info.annotation, Mapping))
            or (isinstance(value, list) and not _holds(info.annotation, Sequence))
        ):
            yield place, value


def _holds(annotation: Any, kind: type) -> bool:
    """Whether a value of the annotated type may be a sequence, or a mapping."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return any(_holds(argument, kind) for argument in get_args(annotation))
    found = origin or annotation
    return isinstance(found, type) and issubclass(found, kind) and not issubclass(found, str)


def _candidates(value: Any) -> tuple[str, Sequence[Any]]:
    """How the value is written ("list", "uniform", "log_uniform") and the values that must be valid."""
    if isinstance(value, list):
        if not value:
            raise ValueError("a list of values to choose from needs at least one")
        if len(value) > MOST_VALUES:
            raise ValueError(f"a list of values to choose from has at most {MOST_VALUES:,}, not {len(value):,}")
        return "list", value
    [[kind, ends]] = value.items() if len(value) == 1 else [["", None]]
    if kind not in ("uniform", "log_uniform") or not isinstance(ends, Sequence) or len(ends) != 2:
        raise ValueError(_RANGE)
    return kind, ends


def _range(ends: Sequence[Any], log: bool) -> Range:
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise ValueError("only a number can be drawn from a range; give a list")
    low, high = ends if all(isinstance(end, int) for end in ends) else map(float, ends)
    if low >= high:
        raise ValueError("the lower end of a range must be below the upper one")
    if log and low <= 0:
        raise ValueError("a logarithmic range must lie above zero")
    return Range(low, high, log)


def _replaced(raw: Mapping[str, Any], values: Mapping[Place, Any]) -> dict[str, Any]:
    """A copy of ``raw`` with ``values`` in their places."""
    copy = dict(raw)
    for (name, *rest), value in values.items():
        copy[name] = _replaced(copy[name], {tuple(rest): value}) if rest else value
    return copy


def _value(model: BaseModel, place: Place) -> Any:
    value: Any = model
    for name in place:
        value = getattr(value, name)
    return value.model_dump() if isinstance(value, BaseModel) else value


def _moved(
    error: ValidationError, place: Sequence[int | str] = (), without: Sequence[str] = ()
) -> Iterator[InitErrorDetails]:
    """The errors in one, each at ``place`` and then where it was, ``without`` the beginning of that."""
    for each in error.errors():
        location = each["loc"]
        inner = location[len(without) :] if location[: len(without)] == tuple(without) else location
        yield _error((*place, *inner), each["input"], each["msg"], each["type"], each.get("ctx"))


def _error(
    place: Sequence[int | str],
    read: Any,
    message: str,
    kind: str = "value_error",
    context: Mapping[str, Any] | None = None,
) -> InitErrorDetails:
    said = PydanticCustomError(kind, message, None if context is None else dict(context))
    return InitErrorDetails(type=said, loc=tuple(place), input=read)
