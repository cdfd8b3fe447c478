"""Groups of processes of their own, forked from one that has imported what training needs."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from equivalence import PRELOADED
from torch.multiprocessing import start_processes


def run_in_group(work: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call ``work(rank, ranks, *args)`` in as many fresh processes as there are ranks, and wait for them."""
    multiprocessing.set_forkserver_preload([*PRELOADED, "raygeo.training.gradient_difference"])
    start_processes(work, (ranks, *args), nprocs=ranks, start_method="forkserver")
