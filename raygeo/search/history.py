"""What a search has suggested so far, as JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raygeo.search.configurations import Configuration
from raygeo.search.space import Choice, Domain, Place


def write_history(suggested: Sequence[tuple[int, Configuration]]) -> bytes:
    """Write configurations, each with the index of its space."""
    plain = [[space, {".".join(place): value for place, value in values.items()}] for space, values in suggested]
    return json.dumps(plain).encode()


def read_history(data: bytes | None, spaces: Sequence[Mapping[Place, Domain]]) -> list[tuple[int, Configuration]]:
    """Read what ``write_history`` wrote of the same spaces; None holds nothing."""
    return [
        (space, {place: _as_listed(domain, values[".".join(place)]) for place, domain in spaces[space].items()})
        for space, values in json.loads(data or b"[]")
    ]


def _as_listed(domain: Domain, value: Any) -> Any:
    """The value of a choice that JSON made ``value`` of."""
    if isinstance(domain, Choice):
        return next(listed for listed in domain.values if json.dumps(listed) == json.dumps(value))
    return value
