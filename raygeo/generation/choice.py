"""The engines that a study can choose: every settings model with a ``type`` in the modules beside this one."""

from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

import raygeo.generation as package
from raygeo.generation.engine import EngineSettings
from raygeo.generation.local import LocalSettings

LOCAL = LocalSettings()
"""The engine that is chosen where none is named."""

for _module in iter_modules(package.__path__):
    if (_name := f"{package.__name__}.{_module.name}") != __name__:
        import_module(_name)


def _kinds(base: type[EngineSettings]) -> Iterator[type[EngineSettings]]:
    """The subclasses of ``base`` that a study can name."""
    for kind in base.__subclasses__():
        if "type" in kind.model_fields:
            yield kind
        yield from _kinds(kind)


if TYPE_CHECKING:
    AnyEngine = EngineSettings
else:
    AnyEngine = Annotated[reduce(or_, _kinds(EngineSettings)), Field(discriminator="type")]
