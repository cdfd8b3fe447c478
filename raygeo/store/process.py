"""Which process this is, told so that another one, on this machine or not, can say whether it is still there."""

import getpass
import hashlib
import json
import os
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def machine() -> str:
    """8 hex digits for what process ids are counted by: a boot of a machine and, in it, a space of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    booted = boot.read_text().strip() if boot.exists() else str(int(psutil.boot_time()))
    space = Path("/proc/self/ns/pid")
    processes = os.readlink(space) if space.is_symlink() else ""
    return hashlib.sha256("\n".join((host(), booted, processes)).encode()).hexdigest()[:8]


def host() -> str:
    """The machine's name."""
    return socket.gethostname()


def user() -> str:
    """The user's name, or number where it has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


def ray_job() -> str | None:
    """The id of the Ray job whose entry point this process is, if it is that of one."""
    try:
        return json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
    except (KeyError, ValueError, TypeError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there, and has not ended unnoticed by its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
