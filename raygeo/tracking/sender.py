"""The thread that sends to MLflow what the driver queues, so that nothing waits for it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from raygeo.interrupts import asked
from raygeo.tracking.outbox import FOLDER, Entry, Outbox
from raygeo.tracking.remote import Remote
from raygeo.tracking.server import is_away, plain

RETRY_SECONDS = 5.0
"""How often an MLflow that is away is tried again, and how often what is queued meanwhile is written to the store."""
_GLANCE_SECONDS = 0.2  # how often the thread looks whether the process was asked to stop
SETTLE_SECONDS = 1.0  # what an MLflow that stood still was asked before, it may be about to do
_TRIES = 3


class _Away(Exception):
    """MLflow does not answer."""


class Sender:
    """Sends entries in order. ``refused`` holds what MLflow said of those it would not take, ``away`` why it does not
    answer, None if it does.

    Once the process is asked to stop, all running runs are marked as killed before anything else is sent: a scheduler
    may leave no more than seconds.
    """

    def __init__(self, remote: Remote, outbox: Outbox, say: Callable[[str], None], away: str | None = None):
        self.remote, self.outbox, self.say = remote, outbox, say
        self.away = away
        self.refused: list[str] = []
        self.sending: deque[Entry] = deque()
        self.waiting: list[Entry] = []
        self.stored = bool(outbox.files())
        self.marked = self.stopping = False
        self.tried = self.kept = time.monotonic()
        self.changed = threading.Condition()
        self.keeping = threading.Lock()
        self.thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self.thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry."""
        with self.changed:
            self.waiting.append(entry)
            self.changed.notify_all()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything is sent or MLflow is away, and no longer than ``seconds``."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.away is not None or not self._left() or not self.thread.is_alive(), seconds
            )

    def close(self, seconds: float | None = None) -> int:
        """Send what can be sent, in ``seconds`` at most, and keep the rest in the store; how many entries are there."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.thread.join(seconds)
        self._keep()
        return len(self.outbox) if self.stored else 0

    def _left(self) -> bool:
        return bool(self.sending or self.waiting) or self.stored

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.stopping or (self.waiting and self.away is None), _GLANCE_SECONDS)
                stopping = self.stopping
            self._mark()
            if self._left() and (self.away is None or stopping or self._due(self.tried)):
                self._send()
            if self.away is not None and self._due(self.kept):
                self._keep()
            with self.changed:
                self.changed.notify_all()
                if stopping and (self.away is not None or not self._left()):
                    return

    def _due(self, last: float) -> bool:
        return time.monotonic() - last >= RETRY_SECONDS

    def _mark(self) -> None:
        if asked() is not None and not self.marked:
            self.marked = True
            with suppress(Exception):
                self.remote.close("KILLED", int(time.time() * 1000))

    def _send(self) -> None:
        """Send what the store keeps, then what is in memory, up to where MLflow is away."""
        self.tried = time.monotonic()
        back = self.away is not None
        try:
            if back:
                self._ask()
                time.sleep(SETTLE_SECONDS)
            sent = self._send_stored() if self.stored else 0
            if back:
                self.say(f"  MLflow answers again: {sent} entries sent")
            self.away = None
            while (entry := self._first()) is not None:
                self._call(entry)
                with self.changed:
                    if self.sending and self.sending[0] is entry:
                        self.sending.popleft()
        except _Away as away:
            self._lost(str(away))
        except OSError as error:  # the store cannot be read
            self._lost(plain(error))

    def _first(self) -> Entry | None:
        with self.changed:
            if not self.sending:
                self.sending, self.waiting = deque(_merged(self.waiting)), []
            return self.sending[0] if self.sending else None

    def _send_stored(self) -> int:
        sent = 0
        for name in self.outbox.files():
            entries = _merged(self.outbox.read(name))
            for entry in entries:
                self._call(entry)
            with self.keeping:
                self.outbox.remove(name)
            sent += len(entries)
        self.stored = False
        return sent

    def _call(self, entry: Entry) -> None:
        said = ""
        for _ in range(_TRIES):
            self._mark()
            try:
                self.remote.do(entry)
                return
            except Exception as error:
                said = plain(error)
                if not is_away(error):
                    break
            self._ask()
            time.sleep(SETTLE_SECONDS)
        self.refused.append(said)

    def _ask(self) -> None:
        try:
            self.remote.ping()
        except Exception as error:
            raise _Away(plain(error)) from error

    def _lost(self, why: str) -> None:
        if self.away is None:
            place = f"{plain(self.outbox.store.location)}/{FOLDER}"
            self.say(f"  MLflow does not answer ({why}): what it is to be told is kept in {place} until it does")
        self.away = why
        self._keep()

    def _keep(self) -> None:
        """Write what is in memory to the store."""
        self.kept = time.monotonic()
        with self.keeping:
            with self.changed:
                entries = [*self.sending, *self.waiting]
                self.sending.clear()
                self.waiting = []
            try:
                self.outbox.append(_merged(entries))
                self.stored = self.stored or bool(entries)
            except OSError:  # whoever writes next ends the study; until then the entries stay in memory
                with self.changed:
                    self.waiting = [*entries, *self.waiting]


def _merged(entries: Iterable[Entry]) -> list[Entry]:
    """The same with the steps of a run that nothing stands between in one entry."""
    merged: list[Entry] = []
    last: dict[str, Entry] = {}
    for entry in entries:
        key = entry.get("key", "")
        if entry["call"] != "steps":
            last.pop(key, None)
            merged.append(entry)
        elif key in last:
            last[key]["points"] += entry["points"]
        else:
            last[key] = entry | {"points": list(entry["points"])}
            merged.append(last[key])
    return merged
