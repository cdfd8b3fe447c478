"""Where a study runs when a fault strikes it, and what the faults do there."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import IO, Any, ClassVar

import requests

from checks.faults.processes import await_end, command_of, family, kill_family, working
from checks.faults.study import STRUCK
from checks.machines import HEAD, Machines, why_not

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
PYTHON = (sys.executable, "-m", "raygeo", "run")
SOON = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "1000"}  # fmt: skip
"""Ray's patience with a machine that is silent, by default about a minute."""


class Fault(ABC):
    """Something that goes wrong, once, in the middle of a stage; by default of a study with a Ray of its own.

    ``name`` is what it is asked for by; ``what`` says what happens; ``stages`` are those it can happen in; ``alone``
    says whether the study must get over it without being started again.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    stages: ClassVar[Sequence[str]] = STRUCK
    alone: ClassVar[bool] = True

    def __init__(self, store: Path):
        self.store = store

    def why_not(self) -> str | None:
        """Why it cannot be tried on this machine, or None."""
        return None

    @contextmanager
    def place(self) -> Iterator[None]:
        """What must be there while its cases are tried."""
        yield

    @property
    def uri(self) -> str:
        """Where MLflow is asked what it was told."""
        return f"sqlite:///{self.store}/mlflow.db"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of whoever runs the study."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        return plain | {"RAY_ADDRESS": "", "OMP_NUM_THREADS": "1"}

    def start(self, arguments: Sequence[str], log: IO[str]) -> "Popen[str]":
        """Start ``raygeo run`` with these arguments; ``log`` gets what it says."""
        return Popen([*PYTHON, *arguments], env=self.environment, cwd=ROOT, stdout=log, stderr=log, text=True,
                     start_new_session=True)  # fmt: skip

    @abstractmethod
    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """Let it happen."""

    def heal(self) -> None:
        """Put right what a person would before the same command is given again; by default there is nothing."""
        return


class KilledDriver(Fault):
    """The process that leads the study, and with it its cluster."""

    name = "driver"
    what = "driver killed with its cluster"
    alone = False

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """SIGKILL to all."""
        kill_family(driver.pid)


class KilledWorker(Fault):
    """A process that has a task, an actor or a rank of the study."""

    name = "worker"
    what = "a worker process killed"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """SIGKILL to the one that has worked most."""
        members = working(family(driver.pid))
        ranks = [process for process in members if "RayTrainWorker" in command_of(process)]
        used = max(ranks or members, key=lambda process: sum(process.cpu_times()[:2]))
        used.kill()


class FullDisk(Fault):
    """The disk of the store."""

    name = "disk"
    what = "the store's disk full"
    alone = False

    def why_not(self) -> str | None:
        """It takes a file system of its own."""
        return None if os.geteuid() == 0 else "mounting a file system is for root alone"

    @contextmanager
    def place(self) -> Iterator[None]:
        """A file system of 300 MB."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(self.store)], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.store)], check=True)

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """Fill it."""
        with suppress(OSError), (self.store / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))

    def heal(self) -> None:
        """Make room."""
        (self.store / "filler").unlink()


class Tracked(Fault):
    """A fault of an MLflow server."""

    def __init__(self, store: Path):
        super().__init__(store)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def uri(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Tells the study of the server."""
        return super().environment | {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}

    @contextmanager
    def place(self) -> Iterator[None]:
        """A server over a database of its own."""
        with tempfile.TemporaryDirectory() as folder:
            self.folder = folder
            try:
                self._serve()
                yield
            finally:
                kill_family(self.server.pid)

    def _serve(self) -> None:
        self.server = Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
             "--artifacts-destination", f"{self.folder}/artifacts", "--host", "127.0.0.1", "--port", str(self.port),
             "--workers", "1", "--allowed-hosts", f"127.0.0.1:{self.port}"],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, stdout=DEVNULL, stderr=DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        await_answer(f"{self.uri}/health", 120)


class KilledServer(Tracked):
    """MLflow's server, which comes back once the study has ended."""

    name = "mlflow-killed"
    what = "the MLflow server killed, back after the end"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """SIGKILL."""
        kill_family(self.server.pid)

    def heal(self) -> None:
        """Start it again over what it had."""
        self._serve()


class StoppedServer(Tracked):
    """MLflow's server, which takes connections and does not answer."""

    name = "mlflow-stopped"
    what = "the MLflow server stopped for a minute"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """SIGSTOP; nothing waits for it."""
        os.killpg(self.server.pid, signal.SIGSTOP)
        self.since = time.monotonic()

    def heal(self) -> None:
        """SIGCONT, after a minute."""
        time.sleep(max(0.0, 60 - (time.monotonic() - self.since)))
        os.killpg(self.server.pid, signal.SIGCONT)


class OverMachines(Fault):
    """A fault in a cluster: a head without CPUs and two machines with one each."""

    patience: ClassVar[dict[str, str]] = SOON

    def why_not(self) -> str | None:
        """It takes namespaces."""
        return why_not()

    @contextmanager
    def place(self) -> Iterator[None]:
        """The machines."""
        with Machines() as self.machines:
            self.machines.head("--num-cpus=0", **self.patience)
            for _ in range(2):
                self.machines.add("--num-cpus=1")
            yield

    def start(self, arguments: Sequence[str], log: IO[str]) -> "Popen[str]":
        """Start it on the head."""
        head = self.machines.made[0]
        return head.python("-m", "raygeo", "run", *arguments, output=log, RAY_ADDRESS=HEAD)

    def busiest(self) -> int:
        """The number of the machine where the study works most now."""
        _, *others = self.machines.living()

        def used(machine: Any) -> float:
            members = working(family(int(machine.pid)))
            ranks = [process for process in members if "RayTrainWorker" in command_of(process)]
            return 1e6 * len(ranks) + sum(sum(process.cpu_times()[:2]) for process in members)

        return int(max(others, key=used).number)


class LostNode(OverMachines):
    """A machine that does the work of the stage."""

    name = "node"
    what = "a node lost, another joins"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """End it without a word, and let another join."""
        self.machines.lose(self.busiest())
        self.machines.add("--num-cpus=1")


class CutLink(OverMachines):
    """The link of a machine that works, for longer than the cluster waits for it."""

    name = "link"
    what = "a node's link cut until it counts as lost, another joins"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """Pull its plug; it comes back when it is no longer one of the cluster."""
        number = self.busiest()
        with self.machines.cut(number):
            self.machines.add("--num-cpus=1")
            time.sleep(5)
        self.machines.lose(number)


class CutHead(OverMachines):
    """The link of the head, for less than the cluster waits for a machine."""

    name = "head-link"
    what = "the head's link cut for 5 s"
    patience: ClassVar = {"RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "10000"}

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """Pull its plug."""
        with self.machines.cut(1):
            time.sleep(5)


HOG = """
import sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=0)
class Hog:
    def eat(self):
        self.held = [ray.put(bytes(5_000_000)) for _ in range(15)]

ray.init(address=sys.argv[1], log_to_driver=False)
hogs = [Hog.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes() if node["Alive"]]
ray.get([hog.eat.remote() for hog in hogs])
print("full", flush=True)
time.sleep(600)
"""
"""Holds 75 of the 80 MB of every machine's object store."""


class FullObjects(OverMachines):
    """The object stores of the machines, of which somebody else's job holds all."""

    name = "objects"
    what = "another job holds the whole object store"

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """Start that job."""
        self.hog = self.machines.made[0].python("-c", HOG, HEAD)
        assert self.hog.stdout is not None
        for line in self.hog.stdout:
            if line == "full\n":
                return
        raise RuntimeError("the job that should hold the object store ended")

    def heal(self) -> None:
        """End it."""
        self.hog.kill()
        self.hog.wait()


class KilledSupervisor(Fault):
    """What leads a job on the cluster it was submitted to."""

    name = "supervisor"
    what = "the job's supervisor killed"
    alone = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """A head that takes jobs, with a token."""
        ports = []
        for _ in range(4):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        gcs, self.dashboard, client, agent = ports
        with tempfile.TemporaryDirectory(prefix="rg", ignore_cleanup_errors=True) as folder:
            self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
            self.head = Popen(
                [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}",
                 f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={client}",
                 f"--dashboard-agent-listen-port={agent}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
                 "--disable-usage-stats"],
                env=self.environment, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                await_answer(f"http://127.0.0.1:{self.dashboard}/api/version", 120, self.token)
                yield
            finally:
                kill_family(self.head.pid)

    @property
    def environment(self) -> dict[str, str]:
        """Has the cluster's token."""
        plain = {name: value for name, value in super().environment.items() if not name.startswith("RAY_")}
        return plain | getattr(self, "token", {}) | {"PYTHONPATH": str(ROOT)}

    def start(self, arguments: Sequence[str], log: IO[str]) -> "Popen[str]":
        """Submit the job, and follow it."""
        command = [RAY, "job", "submit",
                   f"--address=http://127.0.0.1:{self.dashboard}", f"--working-dir={ROOT / 'jobs'}", "--",
                   sys.executable, "study.py", *arguments]  # fmt: skip
        return Popen(command, env=self.environment, cwd=ROOT, stdout=log, stderr=log, text=True)

    def strike(self, driver: "Popen[str]", stage: str) -> None:
        """SIGKILL to the supervisor; what it had started has ended a little later."""
        members = family(self.head.pid)
        led = [
            process
            for process in members
            if "jobs/study.py" in command_of(process) or "study.py" in command_of(process)
        ]
        [supervisor] = [process for process in members if "JobSupervisor" in command_of(process)]
        supervisor.kill()
        if left := await_end(led, 60):
            raise RuntimeError(f"the job's processes still run a minute after its supervisor was killed: {left}")


def await_answer(address: str, seconds: float, token: dict[str, str] | None = None) -> None:
    """Wait until a server answers.

    Raises:
        TimeoutError: it does not.
    """
    headers = {"Authorization": f"Bearer {token['RAY_AUTH_TOKEN']}"} if token else {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(address, headers=headers, timeout=5).ok:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers at {address}")


FAULTS: tuple[type[Fault], ...] = (
    KilledDriver, KilledWorker, LostNode, CutLink, CutHead, FullObjects, FullDisk, KilledServer, StoppedServer,
    KilledSupervisor,
)  # fmt: skip
"""All that is tried."""
