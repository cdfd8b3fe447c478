"""Where rollouts and prompts come from: one settings model a format, each in a module beside this one.

A new format is a new module with a subclass of ``Reader`` (``PromptReader`` where it gives prompts too).
"""

from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raygeo.data.readers.base import PromptReader, Reader
from raygeo.data.readers.prompts import Prompt, read_prompts
from raygeo.settings import kinds

__all__ = ["READERS", "AnyPromptReader", "AnyReader", "Prompt", "read_prompts"]

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")


READERS: tuple[type[Reader], ...] = tuple(kinds(Reader))

if TYPE_CHECKING:
    AnyReader = Reader
    AnyPromptReader = PromptReader
else:
    AnyReader = Annotated[reduce(or_, READERS), Field(discriminator="type")]
    AnyPromptReader = Annotated[reduce(or_, kinds(PromptReader)), Field(discriminator="type")]
