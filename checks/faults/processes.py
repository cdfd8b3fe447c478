"""Processes that a fault strikes: whom to kill, and when they have ended."""

import time
from contextlib import suppress

import psutil

STEERING = ("Controller", "Coordinator", "JobSupervisor", "Synchronization", "IDLE", "autoscaler", "Cleaner")
"""Marks of Ray's processes that steer others and do none of their work."""


def await_end(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until they have ended, at most so long, and return those that have not.

    A process that nobody has reaped has ended: one whose parent is gone waits for a parent that may never look.
    """
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if process.is_running() and not _ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descends from it; none if it has ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def kill_family(pid: int) -> None:
    """End a process and all that descends from it, as lack of power would.

    Raises:
        RuntimeError: one of them still runs after a minute.
    """
    members = family(pid)
    for process in members:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if left := await_end(members, 60):
        raise RuntimeError(f"processes still run a minute after they were killed: {left}")


def command_of(process: psutil.Process) -> str:
    """Its command line, empty where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def working(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of Ray's processes that have a task or an actor of the study."""
    named = ((process, command_of(process)) for process in processes)
    return [p for p, said in named if said.startswith("ray::") and not any(mark in said for mark in STEERING)]
