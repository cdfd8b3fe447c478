"""The desk between a trial and the workers that train for it: jobs are laid on it, reports taken from it.

It outlives the workers, so it knows how often a job was begun and what went wrong. Jobs are plain data, opaque to it
but for ``restarts`` and ``micro_batch``.
"""

import asyncio
from typing import Any


class Desk:
    """One job at a time (an actor); every group of workers that asks gets the same answers on all its ranks."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.taken_by: str | None = None
        self.attempt = self.losses = 0
        self.shrunk = False
        self.trouble = ""
        self.closed = False
        self.changed = asyncio.Condition()
        self.given: dict[tuple[str, int], asyncio.Future[dict[str, Any] | None]] = {}
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.cancelled = asyncio.Event()

    # -- the trial's side ---------------------------------------------------------------------------------------------

    async def submit(self, job: dict[str, Any]) -> None:
        """Lay down the next job, once the one before it (cancelled, perhaps) is off the desk."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.job is None)
            self.job, self.attempt, self.losses, self.shrunk, self.trouble = dict(job), 0, 0, False, ""
            self.messages, self.cancelled = asyncio.Queue(), asyncio.Event()
            self.changed.notify_all()

    async def message(self) -> dict[str, Any]:
        """Wait for the next message about the job; its ``kind`` is report, note, done or failed."""
        return await self.messages.get()

    async def cancel(self) -> None:
        """Ask the workers to give the job up at their next step."""
        self.cancelled.set()

    async def close(self) -> None:
        """Let the workers go once the desk is empty."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def abort(self, reason: str) -> None:
        """End the job, because there are no workers any more."""
        await self._settle({"kind": "failed", "reason": reason})

    # -- the workers' side --------------------------------------------------------------------------------------------

    async def take(self, group: str, number: int) -> dict[str, Any] | None:
        """Give the job that a group of workers does as its ``number``-th, or None when there will be none."""
        place = (group, number)
        if place not in self.given:
            self.given[place] = asyncio.ensure_future(self._begin(group))
        return await asyncio.shield(self.given[place])

    async def _begin(self, group: str) -> dict[str, Any] | None:
        while True:
            async with self.changed:
                # A group that asks while its job lies here has a rank that is quicker than rank 0, which ends the job.
                await self.changed.wait_for(lambda: self.closed if self.job is None else self.taken_by != group)
                if self.job is None:
                    return None
                if self.attempt > 0 and not self.shrunk:
                    self.losses += 1
                    self.trouble = self.trouble or "a worker was lost"
                if self.losses <= self.job["restarts"]:
                    if self.attempt > 0 and not self.shrunk:
                        self._tell({"kind": "note", "text": f"{self.trouble}; goes on from its last checkpoint"})
                    self.attempt += 1
                    self.shrunk, self.taken_by = False, group
                    return self.job | {"attempt": self.attempt}
            await self._settle({"kind": "failed", "reason": f"{self.trouble} ({self.losses} times)"})

    async def report(self, step: int, metrics: dict[str, float]) -> None:
        """Pass curves on."""
        self._tell({"kind": "report", "step": step, "curves": metrics})

    async def done(self, summary: dict[str, Any]) -> None:
        """End the job with its summary."""
        await self._settle({"kind": "done", "summary": summary})

    async def hit(self, attempt: int, trouble: str, *, out_of_memory: bool, final: bool) -> None:
        """Note why an attempt failed: lack of memory halves the micro-batch, a final trouble ends the job."""
        if self.job is None or attempt != self.attempt or self.shrunk:
            return
        self.trouble = trouble
        micro = self.job["micro_batch"]
        if out_of_memory and micro > 1:
            self.shrunk, self.job["micro_batch"] = True, (micro + 1) // 2
            self._tell({"kind": "note", "text": f"out of memory at micro_batch {micro}; halved, same batch_size"})
        elif out_of_memory or final:
            await self._settle({"kind": "failed", "reason": trouble})

    async def until_cancelled(self) -> None:
        """Return once the job is cancelled."""
        await self.cancelled.wait()

    def _tell(self, message: dict[str, Any]) -> None:
        self.messages.put_nowait(message)

    async def _settle(self, message: dict[str, Any]) -> None:
        async with self.changed:
            if self.job is not None:
                self.job = self.taken_by = None
                self._tell(message)
                self.changed.notify_all()
