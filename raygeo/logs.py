"""Lines of a log that name what they are about: the study, and the run or task that this thread works on.

Warnings go to standard error. What is too much for a console goes to ``detail`` and, with what the console shows, into
the log file of a study.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

from raygeo.paths import without_credentials

_about: ContextVar[tuple[str, ...]] = ContextVar("about", default=())

detail = logging.getLogger("raygeo.detail")
"""What happens, step by step. Nobody hears of it but log files, and the console where it is asked to."""
detail.propagate = False
detail.setLevel(logging.DEBUG)
shown = logging.getLogger("raygeo.detail.console")
"""What the console shows, for log files alone."""


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

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


class _Lines(logging.StreamHandler[TextIO]):
    """A log that cannot be written, of a full disk say, is no reason to end."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def name_lines(*, verbose: bool = False) -> None:
    """Write the lines of this process's own loggers with time, level and names, on standard error; the details too if
    ``verbose``.
    """
    logger = logging.getLogger("raygeo")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Named("%(asctime)s %(levelname)s %(about)s%(message)s", "%H:%M:%S"))
        handler.addFilter(lambda record: record.name != shown.name)
        logger.addHandler(handler)
    if verbose:
        detail.addHandler(logger.handlers[0])


@contextmanager
def log_to(stream: TextIO) -> Iterator[None]:
    """Write what the console shows, warnings and details to a stream, each with its date and time."""
    handler = _Lines(stream)
    handler.setFormatter(_Named("%(asctime)s %(levelname)s %(about)s%(message)s"))
    loggers = (logging.getLogger("raygeo"), detail)
    for logger in loggers:
        logger.addHandler(handler)
    detail.debug("%s", " ".join(sys.argv))
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
