"""Where rollouts and prompts come from: one settings model a format, each in a module beside this one.

A new format is a new module with a subclass of ``Reader`` (``PromptReader`` where it gives prompts too).
"""

from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from operator import or_
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from raygeo.data.readers.base import PromptReader, Reader
from raygeo.data.readers.prompts import Prompt, read_prompts

__all__ = ["AnyPromptReader", "AnyReader", "Prompt", "read_prompts"]

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")


def _kinds(base: type[Reader]) -> Iterator[type[Reader]]:
    """The subclasses of ``base`` that a study can name."""
    for kind in base.__subclasses__():
        if "type" in kind.model_fields:
            yield kind
        yield from _kinds(kind)


if TYPE_CHECKING:
    AnyReader = Reader
    AnyPromptReader = PromptReader
else:
    AnyReader = Annotated[reduce(or_, _kinds(Reader)), Field(discriminator="type")]
    AnyPromptReader = Annotated[reduce(or_, _kinds(PromptReader)), Field(discriminator="type")]
