"""A real MLflow server, and runs as a trial begins them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from mlflow.tracking import MlflowClient


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A real ``mlflow server`` over a new database."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.client = MlflowClient(self.uri)
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
             "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
             "--port", str(self.port), "--workers", "1", "--allowed-hosts", f"127.0.0.1:{self.port}"],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for(f"{self.uri}/health", self.process)

    def tell(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        self.tell(signal.SIGKILL)
        self.process.wait()

    def runs(self, study):
        """The runs of a study by name, those that are there twice by number too."""
        found = {}
        for run in self.client.search_runs([self.client.get_experiment_by_name(study).experiment_id]):
            name = run.info.run_name
            found[f"{name} {len(found)}" if name in found else name] = run
        return found

    def states(self, study):
        return {name: run.info.status for name, run in self.runs(study).items()}


def open_run(tracking, key="k"):
    """A run that a trial has begun."""
    tracking.child(key, f"run {key}", {"loss": "sft", "lr": 0.1})
    tracking.begin(key)
    return key


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError("the server never answered")
