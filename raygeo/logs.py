"""Lines of a log that name what they are about: the study, and the run or task that this thread works on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_about: ContextVar[tuple[str, ...]] = ContextVar("about", default=())


@contextmanager
def about(*names: str) -> Iterator[None]:
    """Let every line of raygeo's loggers be about these, beside what it is about already."""
    token = _about.set((*_about.get(), *filter(None, names)))
    try:
        yield
    finally:
        _about.reset(token)


class _Named(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.about = "".join(f"{name}: " for name in _about.get())
        return super().formatMessage(record)


def name_lines() -> None:
    """Write the lines of this process's own loggers with time, level and names, on standard error."""
    logger = logging.getLogger("raygeo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Named("%(asctime)s %(levelname)s %(about)s%(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
