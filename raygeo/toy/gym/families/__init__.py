"""The families of problems, one a file."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from raygeo.toy.gym.family import Family


def _found() -> Mapping[str, type[Family]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    own = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    return {each.name: each for each in own if issubclass(each, Family) and each is not Family}


FAMILIES: Mapping[str, type[Family]] = _found()
"""Every family by its name in reasoning-gym, sorted."""
