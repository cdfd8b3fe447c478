"""Work for groups of processes, and where processes listen."""

import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil

from checks.equivalence import run_in_group

__all__ = ["listening", "run_in_group", "wait_for_ever"]


def wait_for_ever(rank: int, ranks: int) -> None:
    """Work that does not end by itself."""
    signal.pause()


def listening(processes: Iterable[psutil.Process]) -> list[str]:
    """The addresses on which processes take connections, without ports, in order."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            opened = process.net_connections("tcp")
            found += [each.laddr.ip.removeprefix("::ffff:") for each in opened if each.status == psutil.CONN_LISTEN]
    return sorted(found)
