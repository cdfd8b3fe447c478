"""Machines on one machine: namespaces of Linux with addresses, mounts and processes of their own, on one bridge."""

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

HEAD = "10.77.0.1:6379"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
ROOT = Path(__file__).resolve().parents[1]

_SHORT = "/media"
"""Where each machine has a file system of its own: short, as Ray's sockets lie there."""


def why_not() -> str | None:
    """Why there can be no machines here, or None."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"this machine has no {' and no '.join(missing)}"
    makes = f"mount -t tmpfs none {_SHORT} && ip link add v0 type veth peer name v1 && ip link add b0 type bridge"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", makes]
    tried = subprocess.run(command, capture_output=True, text=True)
    return f"namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else None


class Holder:
    """Namespaces that last as long as a process that sleeps."""

    def __init__(self, *kinds: str):
        command = ["unshare", *kinds, "--fork", "--kill-child", "sh", "-c", "echo there; exec sleep 3600"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "there\n"
        [self.pid] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def command(self, *words: str) -> list[str]:
        """A command as it is run inside."""
        return ["nsenter", "--all", f"--target={self.pid}", f"--wd={ROOT}", "--", *words]

    def run(self, *words: str) -> None:
        """Run a command inside."""
        subprocess.run(self.command(*words), check=True, capture_output=True)

    def end(self) -> None:
        """End all processes inside, and with them the namespaces."""
        with suppress(ProcessLookupError):
            os.kill(int(self.pid), 9)
        self.process.wait()


class Machine(Holder):
    """A machine with an address on the bridge of ``switch``, and with the same disk, except for ``hidden``."""

    def __init__(self, switch: Holder, number: int, hidden: Sequence[str] = ()):
        super().__init__("--net", "--mount", "--pid", "--mount-proc", "--uts")
        self.number, self.name, self.address = number, f"machine{number}", f"10.77.0.{number}"
        switch.run("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        switch.run("ip", "link", "set", f"port{number}", "master", "bridge", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.run("ip", "link", "set", device, "up")
        self.run("hostname", self.name)
        for folder in (_SHORT, *hidden):
            self.run("mount", "-t", "tmpfs", "none", folder)

    def listening(self, name: str) -> list[str]:
        """The addresses on which processes whose name begins so take connections, without ports; ``*`` are all."""
        shown = subprocess.run(self.command("ss", "-ltnHp"), check=True, capture_output=True, text=True).stdout
        rows = [line.split() for line in shown.splitlines() if f'"ray::{name}' in line]
        return [row[3].rpartition(":")[0].removeprefix("[::ffff:").removesuffix("]") for row in rows]

    @contextmanager
    def without(self, folder: Path) -> Iterator[None]:
        """Have an empty folder in place of this one."""
        self.run("mount", "-t", "tmpfs", "none", str(folder))
        yield
        self.run("umount", "--lazy", str(folder))

    def python(self, *arguments: str, output: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
        """Start this Python inside, with its output in a pipe or a file."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        plain |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                  "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": _SHORT, **TOKEN}  # fmt: skip
        return subprocess.Popen(
            self.command(sys.executable, *arguments), env=plain | environment, text=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def start_ray(self, *options: str, **environment: str) -> None:
        """Start Ray's processes for this machine."""
        started = self.python(
            "-m", "ray.scripts.scripts", "start", f"--node-ip-address={self.address}",
            "--object-store-memory=80000000", *options, **environment,
        )  # fmt: skip
        said, _ = started.communicate(timeout=90)
        assert started.returncode == 0, said


class Machines:
    """A cluster of machines on one bridge; all end with the context. The first, its head, alone sees ``hidden``."""

    def __init__(self, hidden: Sequence[str] = ()) -> None:
        self.hidden = hidden
        self.switch = Holder("--net")
        self.switch.run("ip", "link", "add", "bridge", "type", "bridge")
        self.switch.run("ip", "link", "set", "bridge", "up")
        self.made: list[Machine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for machine in (*self.living(), self.switch):
            machine.end()

    def head(self, *options: str, **environment: str) -> Machine:
        """The first machine, with Ray's head."""
        self.made.append(Machine(self.switch, 1))
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={_SHORT}")
        self.made[0].start_ray(*head, *options, **environment)
        return self.made[0]

    def add(self, *options: str, hidden: Sequence[str] = (), after: float = 0) -> Machine:
        """One more machine, which joins ``after`` some seconds."""
        self.made.append(Machine(self.switch, len(self.made) + 1, (*self.hidden, *hidden)))
        time.sleep(after)
        self.made[-1].start_ray(f"--address={HEAD}", *options)
        return self.made[-1]

    def living(self) -> list[Machine]:
        """The machines that have not been lost."""
        return [machine for machine in self.made if machine.process.poll() is None]

    def lose(self, number: int) -> None:
        """End a machine without a word."""
        self.made[number - 1].end()

    @contextmanager
    def cut(self, number: int) -> Iterator[None]:
        """Pull the plug of a machine's link, and put it back."""
        self.switch.run("ip", "link", "set", f"port{number}", "down")
        try:
            yield
        finally:
            self.switch.run("ip", "link", "set", f"port{number}", "up")
