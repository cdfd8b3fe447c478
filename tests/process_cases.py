"""Groups of processes of their own, forked from one that has imported what training needs; where processes listen."""

import multiprocessing
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import psutil
from torch.multiprocessing import start_processes

from checks.equivalence import PRELOADED


def run_in_group(work: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call ``work(rank, ranks, *args)`` in as many fresh processes as there are ranks, and wait for them."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    start_processes(work, (ranks, *args), nprocs=ranks, start_method="forkserver")


def listening(processes: Iterable[psutil.Process]) -> list[str]:
    """The addresses on which processes take connections, without ports, in order."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            opened = process.net_connections("tcp")
            found += [each.laddr.ip.removeprefix("::ffff:") for each in opened if each.status == psutil.CONN_LISTEN]
    return sorted(found)
