"""What others bring: objects named as entry points of a group, or as ``module:name`` in a study file."""

import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from raygeo.errors import ConfigError

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def installed(group: str, what: str) -> Iterator[tuple[str, Any, str]]:
    """Each entry point of ``group``: how it is written, the object, and the distribution that names it.

    Raises:
        ConfigError: one cannot be loaded; ``what`` says in a word what it should be.
    """
    for point in entry_points(group=group):
        origin = point.dist.name if point.dist is not None else point.value
        try:
            yield point.value, point.load(), origin
        except Exception as error:
            raise ConfigError(
                f"the {what} {point.name!r} of {origin} cannot be loaded ({type(error).__name__}: {error}); fix or "
                "uninstall that package."
            ) from error


def is_own(name: Any) -> bool:
    """Whether a name in a study file is ``module:name``."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def names_own(raw: Any) -> bool:
    """Whether plain settings, however deep or often they hold each other, name anything as ``module:name``, as a type
    or as a key.
    """
    waiting, seen = [raw], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            if any(map(is_own, value)) or is_own(value.get("type")):
                return True
            waiting += value.values()
        else:
            waiting += value
    return False


FOLDERS: list[str] = []
"""Where ``look_in`` lets modules be found."""


def look_in(folder: str | Path) -> None:
    """Let modules be found in ``folder`` too, here and in processes that are started from now on."""
    place = str(Path(folder).resolve())
    if place in FOLDERS:
        return
    FOLDERS.append(place)
    sys.path.append(place)
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*([known] if known else []), place])


def named(path: str, what: str) -> Any:
    """The object that is written ``module:name``.

    Raises:
        ConfigError: there is none, or its module fails; where, and why. ``what`` says in a word what it should be.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise ConfigError(_failed(path, what, error)) from error
        raise ConfigError(
            f"the {what} {path!r} cannot be loaded: there is no module {error.name!r} beside the study file, in the "
            "working directory, or among the packages that are installed; on a cluster it must be there on every node."
        ) from error
    except Exception as error:
        raise ConfigError(_failed(path, what, error)) from error


def _failed(path: str, what: str, error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if last.filename == __file__ else f" in {last.filename}, line {last.lineno}"
    return f"the {what} {path!r} cannot be loaded: {type(error).__name__}{where}: {error}"
