"""Ctrl-C and SIGTERM: the first asks the process to stop, the second ends it.

Where work can be taken up again at any point, the first signal raises KeyboardInterrupt. Training is asked instead
(``deferred``), so that it may write its checkpoints. Signals belong to the process, and so does the state here.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT_SECONDS = 120.0
"""A process that was asked to stop and is still there after so long ends, whatever it waits for."""
_ONE_PRESS_SECONDS = 1.0  # a terminal and a wrapper (timeout, uv run) pass the same Ctrl-C on


class _State:
    asked: signal.Signals | None = None
    at = 0.0
    deferred = False
    previous: dict[signal.Signals, Any] | None = None
    limit: threading.Timer | None = None
    dropped = False
    unraisable: Any = None


def asked() -> signal.Signals | None:
    """The signal that asked this process to stop, if any did."""
    return _State.asked


@contextmanager
def handled() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt, and end the process at the second.

    Contexts may be nested; in a thread that cannot receive signals nothing changes. A signal that is ignored (by
    ``nohup``, or in the background of a script) stays so.
    """
    if _State.previous is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.previous = {s: signal.getsignal(s) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    install()
    _State.unraisable, sys.unraisablehook = sys.unraisablehook, _raise_again
    try:
        yield
    finally:
        sys.unraisablehook = _State.unraisable
        for number, handler in _State.previous.items():
            signal.signal(number, handler)
        if _State.limit is not None:
            _State.limit.cancel()
        _State.previous = _State.asked = _State.limit = None


def install() -> None:
    """Take the signals back from a library that has set handlers of its own, inside ``handled``."""
    if threading.current_thread() is threading.main_thread():
        for number in _State.previous or {}:
            signal.signal(number, _handle)


@contextmanager
def deferred() -> Iterator[None]:
    """Leave the first signal to whoever looks at ``asked``; raise KeyboardInterrupt at the end if there was one."""
    with handled():
        _State.deferred = True
        try:
            yield
        finally:
            _State.deferred = False
        if _State.asked is not None:
            raise KeyboardInterrupt


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.dropped:
        _State.dropped = False
        if not _State.deferred:
            raise KeyboardInterrupt
        return
    if _State.asked is not None:
        if now - _State.at > _ONE_PRESS_SECONDS:
            _end(number)
        return
    _State.asked, _State.at = signal.Signals(number), now
    _State.limit = threading.Timer(LIMIT_SECONDS, _end, (number,))
    _State.limit.daemon = True
    _State.limit.start()
    if not _State.deferred:
        raise KeyboardInterrupt


def _raise_again(dropped: Any) -> None:
    """Send the signal anew where Python has dropped its KeyboardInterrupt, as it does in destructors."""
    if not isinstance(dropped.exc_value, KeyboardInterrupt) or _State.asked is None:
        _State.unraisable(dropped)
        return
    _State.dropped = True
    threading.Timer(0.01, os.kill, (os.getpid(), _State.asked)).start()


def _end(number: int) -> None:
    """End at once, with the terminal's cursor shown again; Ray's processes end with this one."""
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
    os._exit(128 + number)
