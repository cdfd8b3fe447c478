"""Groups of processes of their own, forked from one that has imported what training needs."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes

from checks.equivalence import PRELOADED


def run_in_group(work: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call ``work(rank, ranks, *args)`` in as many fresh processes as there are ranks, and wait for them."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    start_processes(work, (ranks, *args), nprocs=ranks, start_method="forkserver")
