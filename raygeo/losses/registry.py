"""Every loss there is: the classes with a ``type`` in the modules beside this file, and what other packages bring.

Another package names a ``Loss`` class as an entry point of the group ``raygeo.losses``; it must be installed wherever
workers run. A study may name a class that is in no package by ``type: module:class``.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard, Union, get_origin

from pydantic import Discriminator, SerializeAsAny, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

import raygeo.losses as package
from raygeo.errors import ConfigError
from raygeo.losses.base import Loss
from raygeo.nearest import nearest
from raygeo.plugins import installed, is_own, named
from raygeo.search.naming import describe
from raygeo.search.space import Place

GROUP = "raygeo.losses"


def find_losses() -> dict[str, tuple[type[Loss], str]]:
    """Every loss by type, in order, and where it is from: raygeo, or the distribution that names it.

    Raises:
        ConfigError: one from outside cannot be loaded, is not a loss, or has the type of another.
    """
    found: dict[str, tuple[type[Loss], str]] = {}
    for loss, origin in sorted(_found(), key=lambda each: (each[0].order, _type_of(each[0]))):
        name = _type_of(loss)
        if name in found:
            raise ConfigError(
                f"two losses have the type {name!r}, one of {found[name][1]}, one of {origin}; uninstall one package."
            )
        found[name] = loss, origin
    return found


def unknown(name: object) -> str:
    """What to say to whoever names a loss that does not exist."""
    near = nearest(str(name), LOSSES)
    hint = f" (did you mean {near!r}?)" if near else ""
    return f"{name!r} is not a loss{hint}; the types are {', '.join(LOSSES)}"


@cache
def own_loss(path: str) -> type[Loss]:
    """The class that a study names as ``module:class``.

    Its revision follows from its module's text, so that runs are trained anew where that has changed.

    Raises:
        ConfigError: it cannot be loaded, is not a loss, or has a type of its own.
    """
    loss = named(path, "loss")
    if not _is_loss(loss):
        raise ConfigError(f"{path} is {loss!r}, not a subclass of Loss.")
    if _type_of(loss):
        raise ConfigError(f"the loss {path} has the type {_type_of(loss)!r}; leave its type out, as the path names it.")
    if wrong := _lacking(loss):
        raise ConfigError(f"the loss {path} {wrong}.")
    if "revision" not in vars(loss):
        text = Path(inspect.getfile(loss)).read_bytes()
        loss.revision = int(hashlib.sha256(text).hexdigest()[:7], 16)
    return loss


def parse_loss(raw: Mapping[str, Any]) -> Loss:
    """The loss written as in a study; a ``pydantic.ValidationError`` where it is none."""
    return TypeAdapter(AnyLoss).validate_python(raw)


def name_of(loss: Loss) -> str:
    """A loss's type and all that is not as by default: ``rift-negative=paper``."""
    changed = loss.model_dump(exclude_defaults=True, exclude={"type"})
    options: dict[Place, Any] = {(option,): value for option, value in changed.items()}
    return "-".join([loss.label, *([describe(options)] if options else [])])


def variants(loss: type[Loss]) -> dict[str, Loss]:
    """The loss as it is by default, and with each of the options its tests should go through; by name."""
    return {name_of(each): each for each in (loss(), *(loss(**options) for options in loss.variants))}


def _found() -> Iterator[tuple[type[Loss], str]]:
    for info in iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        own = (each for each in vars(module).values() if getattr(each, "__module__", None) == module.__name__)
        yield from ((each, "raygeo") for each in own if _is_loss(each) and _type_of(each))
    for value, loss, origin in installed(GROUP, "loss"):
        if not _is_loss(loss):
            raise ConfigError(f"{value} of {origin} is {loss!r}, not a subclass of Loss.")
        if wrong := _wrong(loss):
            raise ConfigError(f"the loss {value} of {origin} {wrong}.")
        yield loss, origin


def _is_loss(each: Any) -> TypeGuard[type[Loss]]:
    return isinstance(each, type) and issubclass(each, Loss)


def _wrong(loss: type[Loss]) -> str:
    """What a loss lacks to be named in a study by its type; "" if nothing."""
    return _lacking(loss) if _type_of(loss) else "has no type of its own, as in type: Literal['sft'] = 'sft'"


def _lacking(loss: type[Loss]) -> str:
    """What a loss lacks besides a type; "" if nothing."""
    if missing := [name for name in ("title", "paper", "formula") if not hasattr(loss, name)]:
        return f"has no {missing[0]}"
    try:
        loss()
    except (TypeError, ValueError) as error:
        return f"cannot be made with its defaults: {error}"
    return ""


def _type_of(loss: type[Loss]) -> str:
    """The type a study names the loss by, "" if none does."""
    field = loss.model_fields["type"]
    return field.default if get_origin(field.annotation) is Literal else ""


def _own_or_known(raw: Any, handler: ValidatorFunctionWrapHandler) -> Loss:
    """A loss of a study's own, or one of those that are known by their type."""
    if isinstance(raw, Loss) and is_own(raw.type):
        return raw
    if isinstance(raw, Mapping) and "type" in raw:
        if is_own(raw["type"]):
            return own_loss(raw["type"]).model_validate(raw)
        if raw["type"] not in [*LOSSES]:
            raise ValueError(unknown(raw["type"]))
    return handler(raw)


_FOUND = find_losses()
LOSSES: Mapping[str, type[Loss]] = {name: loss for name, (loss, _) in _FOUND.items()}
"""Every loss by type, in order."""
ORIGINS: Mapping[str, str] = {name: origin for name, (_, origin) in _FOUND.items()}
"""Where each loss comes from."""

if TYPE_CHECKING:
    AnyLoss = Loss
else:
    AnyLoss = Annotated[
        Union[tuple(LOSSES.values())],  # noqa: UP007
        Discriminator("type"),
        WrapValidator(_own_or_known),
        SerializeAsAny(),
    ]
