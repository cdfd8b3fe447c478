"""Call one long function on the cluster and show its progress here."""

import time
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.queue import Queue

from raygeo.cluster.preflight import check_fits
from raygeo.errors import RaygeoError
from raygeo.progress import Progress

_POLL_SECONDS = 0.5


def call(
    work: Callable[[Callable[[int, int, str], None]], None], what: str, progress: Progress, *, cpus: float, gpus: float
) -> None:
    """Run ``work(tick)`` in a Ray task with ``cpus`` (its torch threads too) and ``gpus``; ``tick(done, total, note)``.

    Raises:
        ClusterError: no node has that much.
        RaygeoError: whatever ``work`` raised for the user.
    """
    available = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    cpus = min(cpus, available) if available else cpus
    check_fits(what, {"CPU": cpus, "GPU": gpus})
    queue = Queue(actor_options={"num_cpus": 0})

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    def task(queue: Any) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        last = 0.0

        def tick(done: int, total: int, note: str) -> None:
            nonlocal last
            if time.monotonic() - last > _POLL_SECONDS or done == total:
                last = time.monotonic()
                queue.put((done, total, note))

        work(tick)

    running = task.remote(queue)
    try:
        with progress.bar(what, 1) as bar:
            while not ray.wait([running], timeout=_POLL_SECONDS)[0]:
                for done, total, note in queue.get_nowait_batch(queue.qsize()):
                    bar.update(done, note, total)
        ray.get(running)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RaygeoError) else error) from None
    except KeyboardInterrupt:
        ray.cancel(running, force=True)
        raise
    finally:
        queue.shutdown()
