"""Call one long function on the cluster and show its progress here."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.queue import Queue

from raygeo.cluster.placement import beside_me
from raygeo.cluster.preflight import check_fits, living_nodes
from raygeo.cluster.waiting import Waiting
from raygeo.errors import RaygeoError, WorkloadError
from raygeo.progress import Progress

MAX_LOSSES = 3
_POLL_SECONDS = 0.5

Work = Callable[[Callable[[int, int, str], None]], None]


def call(work: Work, what: str, progress: Progress, *, cpus: float, gpus: float) -> None:
    """Run ``work(tick)`` in a Ray task with ``cpus`` (its torch threads too) and ``gpus``; ``tick(done, total, note)``.

    A task whose process or node is lost begins again, ``MAX_LOSSES`` times.

    Raises:
        ClusterError: no node has that much.
        WorkloadError: its process was lost again and again.
        RaygeoError: whatever ``work`` raised for the user.
    """
    available = max((node.get("CPU", 0) for node in living_nodes()), default=0)
    cpus = min(cpus, available) if available else cpus
    demand = {"CPU": cpus, "GPU": gpus}
    check_fits(what, demand)
    queue = Queue(actor_options=beside_me() | {"name": f"progress of {what} {uuid4().hex[:6]}"})

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    def task(queue: Any) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        last = 0.0

        def tick(done: int, total: int, note: str) -> None:
            nonlocal last
            if time.monotonic() - last > _POLL_SECONDS or done == total:
                last = time.monotonic()
                with suppress(RayActorError):  # it is being started anew
                    queue.put((done, total, note))

        tick(0, 1, "")
        work(tick)

    try:
        for losses in range(MAX_LOSSES + 1):
            try:
                _follow(task.options(name=what).remote(queue), queue, what, progress, Waiting(demand))
                return
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, RaygeoError) else error) from None
            except RayError as error:
                if losses == MAX_LOSSES:
                    raise WorkloadError(
                        f"{what}: its process was lost {MAX_LOSSES + 1} times ({error}). It probably needs more memory "
                        "than its node has."
                    ) from None
                progress.say(f"  {what}: its process was lost; begins again")
    finally:
        queue.shutdown()


def _follow(running: ray.ObjectRef, queue: Any, what: str, progress: Progress, waiting: Waiting) -> None:
    """Show how far a task is, until it has ended."""
    begun = False
    try:
        with progress.bar(what, 1) as bar:
            while not ray.wait([running], timeout=_POLL_SECONDS)[0]:
                with suppress(RayActorError):  # it is being started anew
                    for done, total, note in queue.get_nowait_batch(queue.qsize()):
                        begun = True
                        bar.update(done, note, total)
                if not begun and (said := waiting.note(1)):
                    progress.say(f"  {what}: {said}")
        ray.get(running)
    except KeyboardInterrupt:
        ray.cancel(running, force=True)
        raise
