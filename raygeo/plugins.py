"""What other packages bring: objects named as entry points of a group."""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from raygeo.errors import ConfigError


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
