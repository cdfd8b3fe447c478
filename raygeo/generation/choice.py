"""The engines that a study can choose: every settings model with a ``type`` in the modules beside this one."""

from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

import raygeo.generation as package
from raygeo.generation.engine import EngineSettings
from raygeo.generation.local import LocalSettings
from raygeo.settings import kinds

LOCAL = LocalSettings()
"""The engine that is chosen where none is named."""

for _module in iter_modules(package.__path__):
    if (_name := f"{package.__name__}.{_module.name}") != __name__:
        import_module(_name)


ENGINES: tuple[type[EngineSettings], ...] = tuple(kinds(EngineSettings))

if TYPE_CHECKING:
    AnyEngine = EngineSettings
else:
    AnyEngine = Annotated[reduce(or_, ENGINES), Field(discriminator="type")]
