"""One writer at a time: a lease on the store, renewed while its owner lives, and broken when the owner is gone.

The lease is the file ``lease.json``. It says who holds it; its modification time says when it was renewed, by the clock
of the storage, so that the clocks of two machines need not agree. Whoever wants it reads, judges and writes; on a file
system with locks, no one else does so at the same time. An object store, or NFS without locks, has only "the last
writer wins": there, whoever has written waits for ``SETTLING`` seconds, and holds the lease if it is still its own. Of
several, only the last goes on then, unless one was held up for longer than that between reading and writing; in that
case two hold it until the first looks again, within ``RENEWED_EVERY`` seconds, which ends it.
"""

import fcntl
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import NoReturn

from raygeo.errors import BusyStoreError, StoreError
from raygeo.store.cleaning import clear_scratch
from raygeo.store.files import SCRATCH
from raygeo.store.location import check_outlives_job
from raygeo.store.process import host, is_alive, machine, ray_job, user
from raygeo.store.store import LEASE, Store

log = logging.getLogger(__name__)

LOCK = "lease.lock"
RENEWED_EVERY = 10.0
"""Seconds between two renewals."""
LATE_AFTER = 16.0
"""Seconds without a renewal after which the owner may be gone."""
STALE_AFTER = 60.0
"""Seconds without a renewal after which the lease is broken."""
SETTLING = 2.0
"""Seconds until a lease is looked at again, to see that no one else has taken it at the same time."""
_POLL = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, and for what."""

    id: str
    what: str
    host: str
    machine: str
    pid: int
    user: str
    job: str | None
    since: str

    def __str__(self) -> str:
        job = "" if self.job is None else f", Ray job {self.job}"
        return f"{self.what} by {self.user} on {self.host} (process {self.pid}{job}) since {self.since}"

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine, which can be looked for."""
        return self.machine == machine()


@dataclass(frozen=True)
class Held:
    """A lease that was found: who has it, and how many seconds ago it was renewed."""

    holder: Holder
    age: float
    renewed: int

    @property
    def gone(self) -> bool:
        """Whether its owner is not there any more."""
        return self.age > STALE_AFTER or (self.holder.here and not is_alive(self.holder.pid))

    @property
    def certain(self) -> bool:
        """Whether the owner is known to be at work, without looking on for a while."""
        return self.holder.here and self.age <= LATE_AFTER


def find_lease(store: Store) -> Held | None:
    """The lease on a store, if there is one."""
    info = store.filesystem.get_file_info(store.path(LEASE))
    holder = _holder(store)
    if holder is None or info.mtime_ns is None:
        return None
    return Held(holder, (_clock(store) - info.mtime_ns) / 1e9, info.mtime_ns)


def _holder(store: Store) -> Holder | None:
    data = store.read_bytes(LEASE)
    try:
        return None if data is None else Holder(**json.loads(data))
    except (ValueError, TypeError):
        return Holder("", "something that cannot be read", "an unknown host", "", 0, "someone", None, "unknown")


def _clock(store: Store) -> int:
    """The time in nanoseconds, as the storage tells it."""
    name = f"{SCRATCH}/clock-{uuid.uuid4().hex[:8]}"
    try:
        path = store.write_bytes(name, b"")
    except StoreError:  # a disk that is full, or that may only be read
        return time.time_ns()
    try:
        return store.filesystem.get_file_info(path).mtime_ns or time.time_ns()
    finally:
        with suppress(OSError):
            store.filesystem.delete_file(path)


class Lease:
    """A lease on ``store`` for ``what``, not held yet."""

    def __init__(self, store: Store, what: str):
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self.store, self.path = store, store.path(LEASE)
        self.mine = Holder(uuid.uuid4().hex, what, host(), machine(), os.getpid(), user(), ray_job(), now)
        self.taken_by: Holder | None = None
        """Who has taken the lease from this process, which was thought to be gone."""
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self, *, wait: bool, say: Callable[[str], None]) -> None:
        """Take the lease, from an owner that is gone too; with ``wait``, once another owner gives it back.

        Raises:
            BusyStoreError: another process holds it.
        """
        first: Held | None = None
        told = ""
        while (found := self._take()) is not None:
            if first is None or found.holder.id != first.holder.id:
                first = found
            working = found.certain or found.renewed != first.renewed
            if working and not wait:
                raise BusyStoreError(
                    f"the store {self.store.shown} is in use: {found.holder}. Two at once would write over each other: "
                    "wait until it has ended (with --wait: this command does), or give another --store."
                )
            said = "waiting" if working else "stale"
            if said != told:
                told = said
                say(self._waiting(found) if working else self._passing(found))
            time.sleep(_POLL)
        self.thread.start()

    def _waiting(self, found: Held) -> str:
        return f"  waiting for the store {self.store.shown}, which is in use: {found.holder}"

    def _passing(self, found: Held) -> str:
        return (
            f"  the store {self.store.shown} was in use: {found.holder}. That process has not been heard of for "
            f"{found.age:.0f} s; unless it is, this one goes on in {max(STALE_AFTER - found.age, 0):.0f} s"
        )

    def release(self) -> None:
        """Give the lease back, if it is still this process's."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join(RENEWED_EVERY)  # it may hang where the storage does
        with suppress(OSError), self._alone():
            found = _holder(self.store)
            if found is not None and found.id == self.mine.id:
                self.store.filesystem.delete_file(self.path)

    def check(self) -> None:
        """See that the lease is still this process's.

        Raises:
            BusyStoreError: another process has taken it.
        """
        if self.taken_by is not None:
            self._lost(self.taken_by)

    def _lost(self, by: Holder) -> NoReturn:
        raise BusyStoreError(
            f"the store {self.store.shown} was taken over: {by}. This process had not renewed its lease for more than "
            f"{STALE_AFTER:.0f} s, because it or its machine was stopped, or the store could not be reached. What is "
            "finished is kept; run the same command again once the other has ended."
        )

    def _take(self) -> Held | None:
        """Take the lease and return None, or return that of another, who may be there."""
        with self._alone() as certainly:
            found = find_lease(self.store)
            if found is not None and not found.gone:
                return found
            self._put()
        if not certainly:
            time.sleep(SETTLING)
            found = find_lease(self.store)
            if found is not None and found.holder.id != self.mine.id:
                return found
        return None

    def _put(self) -> None:
        self.store.write_bytes(LEASE, json.dumps(asdict(self.mine)).encode())

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep others from reading or writing the lease meanwhile, where the file system has locks: whether it has."""
        if not self.store.is_local:
            yield False
            return
        path = self.store.path(LOCK)
        with self.store.writing(path):
            file = open(path, "a")  # noqa: SIM115 (closed below; what happens inside is not about this file)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                locked = True
            except OSError:
                locked = False
            yield locked

    def _keep(self) -> None:
        """Renew the lease until it is given back or lost."""
        pause = SETTLING
        while not self.ended.wait(pause):
            pause = RENEWED_EVERY
            try:
                self._renew()
            except Exception as error:
                log.warning("the lease on %s could not be renewed: %s", self.store.shown, error)
            if self.taken_by is not None:
                log.error("the store %s was taken over: %s", self.store.shown, self.taken_by)
                if callable(signal.getsignal(signal.SIGTERM)):
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    def _renew(self) -> None:
        with self._alone():
            found = _holder(self.store)
            if found is not None and found.id != self.mine.id:
                self.taken_by = found
            elif found is None or not self.store.is_local:
                self._put()
            else:
                os.utime(self.path)  # which a full disk does not prevent


@contextmanager
def held(
    store: Store, what: str, *, wait: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[Lease]:
    """Hold the lease on a store; ``what`` says to others what for.

    Raises:
        BusyStoreError: another process holds it (with ``wait``, never at the start), or has taken it.
        StoreError: the store lies where it would be deleted.
    """
    check_outlives_job(store.location)
    lease = Lease(store, what)
    try:
        lease.acquire(wait=wait, say=say)
        clear_scratch(store)
        yield lease
    except KeyboardInterrupt:
        lease.check()
        raise
    finally:
        lease.release()
