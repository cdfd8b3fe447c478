"""Short, readable names of configurations."""

import json
from collections.abc import Mapping
from typing import Any

from raygeo.search.space import Place


def describe(values: Mapping[Place, Any]) -> str:
    """Write what was chosen as in ``beta0.1-negative=token``: numbers after a setting's name, other values after ``=``.

    The last part of a place names it, all of it where two end alike.
    """
    last = [place[-1] for place in values]
    names = {place: place[-1] if last.count(place[-1]) == 1 else ".".join(place) for place in values}
    return "-".join(f"{names[place]}{_shown(value)}" for place, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"={json.dumps(value)}"
    if isinstance(value, int | float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "=" + ",".join(f"{name}{_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return "=" + ",".join(_shown(inner).removeprefix("=") for inner in value)
    return f"={value}"
