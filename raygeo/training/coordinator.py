"""The coordinator between a trial and its workers: the trial submits jobs and hears of them, the workers take and do
them.

It outlives the workers, so it knows how often a job was begun and what went wrong. Jobs are plain data, opaque to it
but for ``restarts`` and ``micro_batch_size``.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

_NOT_BEGUN = {"kind": "done", "status": "interrupted", "reason": "interrupted before it began", "steps": 0}


@dataclass(frozen=True)
class Failure:
    """An error of a worker in one line, the end of its traceback, and what it means for the job.

    ``out_of_memory``: try again in smaller pieces. ``final``: do not try again. Otherwise the error is what the loss of
    another process or of a device looks like from here, and new workers may do what these could not. ``full``: a disk
    is full, as it would be for every other run.
    """

    reason: str
    detail: str = ""
    out_of_memory: bool = False
    final: bool = False
    full: bool = False


class Coordinator:
    """One job at a time (an actor); every group of workers that asks gets the same answers on all its ranks."""

    def __init__(self) -> None:
        self.job: dict[str, Any] | None = None
        self.group: str | None = None
        self.taken_by: str | None = None
        self.attempt = self.losses = self.begun_with = 0
        self.shrunk = self.at_work = self.closed = False
        self.failure = ""
        self.place: Any = None
        self.changed = asyncio.Condition()
        self.given: dict[tuple[str, int], asyncio.Future[dict[str, Any] | None]] = {}
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.command = ""
        self.commanded = asyncio.Event()

    # -- the trial's side ---------------------------------------------------------------------------------------------

    async def submit(self, job: dict[str, Any]) -> None:
        """Submit the next job, once the one before it (given up, perhaps) has ended."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.job is None)
            self.job, self.attempt, self.losses, self.shrunk, self.failure = dict(job), 0, 0, False, ""
            self.begun_with, self.at_work = job["micro_batch_size"], False
            self.messages, self.command, self.commanded = asyncio.Queue(), "", asyncio.Event()
            self.changed.notify_all()

    async def message(self) -> dict[str, Any]:
        """Wait for the next message about the job; its ``kind`` is report, note, done or failed."""
        return await self.messages.get()

    async def stop(self, key: str) -> None:
        """Have the workers give the job up for good at their next step, if it is the one with this key."""
        if self.job is not None and self.job["key"] == key:
            self._tell_workers("stop")

    async def interrupt(self) -> None:
        """Have the job end for now: at the next step of workers that have begun it, else at once."""
        self._tell_workers("interrupt")
        if self.taken_by is None:
            await self._end(dict(_NOT_BEGUN))

    async def close(self) -> None:
        """Let the workers go once there is no job."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def waits(self) -> bool:
        """Whether there is a job and no group of workers at it: none has begun it, or the last one is lost."""
        return self.job is not None and not self.at_work

    async def lost(self) -> None:
        """Note that the group of workers that was at work has come apart."""
        self.at_work = False

    async def placed(self, place: Any) -> None:
        """Note the place on the cluster of the group of workers that is set up."""
        self.place = place

    async def place_of_last(self) -> Any:
        """The place that the last group of workers had, or None."""
        return self.place

    async def unstarted(self, reason: str = "") -> bool:
        """Note that no group of workers could be started, and say whether to try again.

        The ``reason`` is empty where there was no room for it yet.
        """
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or self.job is not None)
        if self.job is None or not reason:
            return self.job is not None
        self.losses += 1
        if self.losses > self.job["restarts"]:
            await self._end({"kind": "failed", "reason": f"{reason} ({self.losses} times)"})
            return False
        self._tell_trial({"kind": "note", "text": f"{reason}; tries again"})
        return True

    # -- the workers' side --------------------------------------------------------------------------------------------

    async def take(self, group: str, number: int) -> dict[str, Any] | None:
        """Give the job that a group of workers does as its ``number``-th, or None when there will be none."""
        place = (group, number)
        if place not in self.given:
            if number == 0 or self.group is None:  # it knows of none where it follows a lost coordinator
                self.group = group  # what a rank of an earlier one still waits for is nobody's
            self.given[place] = asyncio.ensure_future(self._begin(group))
        return await asyncio.shield(self.given[place])

    async def _begin(self, group: str) -> dict[str, Any] | None:
        while True:
            async with self.changed:
                # A group that asks while it has a job has a rank that is quicker than rank 0, which ends the job.
                await self.changed.wait_for(
                    lambda: self.group != group or (self.closed if self.job is None else self.taken_by != group)
                )
                if self.job is None or self.group != group:
                    return None
                again = self.attempt > 0 and not self.shrunk
                if again:
                    self.losses += 1
                    self.failure = self.failure or "a worker was lost"
                if self.command == "interrupt":
                    end = dict(_NOT_BEGUN)
                elif self.losses <= self.job["restarts"]:
                    if again:
                        self._tell_trial({"kind": "note", "text": f"{self.failure}; resumes from its last checkpoint"})
                    self.attempt += 1
                    self.shrunk, self.at_work, self.taken_by = False, True, group
                    return self.job | {"attempt": self.attempt}
                else:
                    end = {"kind": "failed", "reason": f"{self.failure} ({self.losses} times)"}
            await self._end(end)

    async def report(self, step: int, metrics: dict[str, float]) -> None:
        """Pass the metrics of a step on, with ``fitted``, the size of its micro-batches, once that was halved."""
        micro = self.begun_with if self.job is None else self.job["micro_batch_size"]
        halved = {"fitted": micro} if micro < self.begun_with else {}
        self._tell_trial({"kind": "report", "step": step, "metrics": metrics} | halved)

    async def done(self, result: dict[str, Any]) -> None:
        """End the job with its status, reason and steps, and what was ``measured`` of it, if anything was."""
        await self._end({"kind": "done"} | result)

    async def failed(self, key: str, attempt: int, failure: Failure) -> None:
        """Note why an attempt at the job with this key failed: lack of memory halves the micro-batch, a final failure
        ends the job.
        """
        if self.job is None or (key, attempt) != (self.job["key"], self.attempt) or self.shrunk:
            return
        self.failure = failure.reason
        micro = self.job["micro_batch_size"]
        if failure.out_of_memory and micro > 1:
            self.shrunk, self.job["micro_batch_size"] = True, (micro + 1) // 2
            text = f"out of memory at micro_batch_size {micro}; halved, same batch_size"
            self._tell_trial({"kind": "note", "text": text})
        elif failure.out_of_memory or failure.final:
            detail = {"text": failure.detail} if failure.detail else {}
            await self._end({"kind": "failed", "reason": failure.reason, "full": failure.full} | detail)

    async def wait_for_command(self) -> str:
        """Wait for a command about the job, ``stop`` or ``interrupt``; it holds until the job has ended."""
        await self.commanded.wait()
        return self.command

    def _tell_workers(self, command: str) -> None:
        self.command = self.command or command
        self.commanded.set()

    def _tell_trial(self, message: dict[str, Any]) -> None:
        self.messages.put_nowait(message)

    async def _end(self, message: dict[str, Any]) -> None:
        async with self.changed:
            if self.job is not None:
                self.job = self.taken_by = None
                self._tell_trial(message)
                self.changed.notify_all()
