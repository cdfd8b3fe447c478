"""A cluster that jobs are submitted to: a head of its own folder, ports and token, ended with what holds it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"
STARTING = ("Failed to connect", "Connection", "No available agent")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class JobCluster:
    """Where jobs go, the environment of whoever may submit them, the cluster's GCS, and the process of its head."""

    def __init__(self, address: str, environment: dict[str, str], gcs: str, head: int):
        self.address, self.environment, self.gcs, self.head = address, environment, gcs, head

    def submit(self, *entrypoint: str, tries: int = 60, **changed: str) -> subprocess.CompletedProcess:
        """Run a job to its end, once the cluster takes jobs; ``changed`` are variables of whoever submits it."""
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", str(REPOSITORY), "--",
                   sys.executable, *entrypoint]  # fmt: skip
        for _ in range(tries):
            done = subprocess.run(
                command, env=self.environment | changed, capture_output=True, text=True, timeout=300, check=False
            )
            if not any(said in done.stdout[-2000:] + done.stderr[-2000:] for said in STARTING):
                break
            time.sleep(1)
        return done


@contextmanager
def job_cluster(cpus: int = 2, *, hidden: Path | None = None, worker: Sequence[str] = ()) -> Iterator[JobCluster]:
    """A head node with ``cpus`` CPUs that asks for a token.

    ``worker`` are options of a second node; ``hidden`` is a folder in whose place it has an empty one of its own.
    """
    gcs, dashboard, client, *agents = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="rg", ignore_cleanup_errors=True) as folder:
        token = Path(folder, "auth_token")
        token.write_text(secrets.token_hex(16))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        common = [RAY, "start", "--block", "--disable-usage-stats"]
        head = [*common, "--head", f"--num-cpus={cpus}", f"--port={gcs}", f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agents[0]}",
                "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]  # fmt: skip
        other = [*common, f"--address={socket.gethostbyname(socket.gethostname())}:{gcs}",
                 f"--dashboard-agent-listen-port={agents[1]}", *worker]  # fmt: skip
        if hidden is not None:
            mounted = 'mount -t tmpfs none "$0" && exec "$@"'
            other = ["unshare", "--mount", "sh", "-c", mounted, str(hidden), *map(str, other)]
        started = []
        try:
            for command in [head, other] if worker else [head]:
                quiet = subprocess.DEVNULL
                started.append(
                    subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
                )
                wait_for_port(dashboard)
            address, head_id = f"http://127.0.0.1:{dashboard}", started[0].pid
            yield JobCluster(address, environment, f"127.0.0.1:{gcs}", head_id)
        finally:
            for process in started:
                os.killpg(process.pid, signal.SIGTERM)
            for process in started:
                try:
                    process.wait(3)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def wait_for_port(port: int) -> None:
    """Wait until somebody listens on a port of this machine."""
    for _ in range(600):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens on {port}")
