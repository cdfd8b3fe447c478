"""The job as a user submits it, on a cluster that was started by itself."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student

import raygeo
from raygeo.analyses.registry import analyses

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def cluster():
    """A head node with two CPUs, its own folder and ports; ended by ending the process that holds it."""
    gcs, dashboard, client, agent = free_ports(4)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryDirectory(prefix="rg", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}",
             f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
             "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()


def submit(address, environment, study: Path, timeout: int) -> subprocess.CompletedProcess:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(REPOSITORY), "--",
               sys.executable, "jobs/study.py", str(study)]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def test_a_submitted_study_runs_on_the_cluster(cluster, tmp_path):
    address, environment = cluster
    with (tmp_path / "rollouts.jsonl").open("w") as file:
        draw_rollouts(12).to_pandas().to_json(file, orient="records", lines=True)
    few = {name: None for name in analyses() if name != "norms"}
    read = [{"type": "jsonl", "path": str(tmp_path / "rollouts.jsonl")}]
    student = {"model": str(save_tiny_student(tmp_path / "student"))}
    study = tiny_study(store=str(tmp_path / "store"), geometry=few, rollouts={"read": read}, student=student)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    starting = ("Failed to connect", "Connection", "No available agent")
    for _ in range(60):
        done = submit(address, environment, tmp_path / "study.yaml", 300)
        if not any(said in done.stdout[-2000:] + done.stderr[-2000:] for said in starting):
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    store = raygeo.open(str(tmp_path / "store"))
    assert store.table("runs")["status"].to_pylist() == ["finished"]
    assert Path(store.path("report.html")).exists()


def test_a_job_that_is_refused_says_why(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(trainning={})))
    command = [sys.executable, str(REPOSITORY / "jobs" / "study.py"), str(tmp_path / "study.yaml")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "did you mean 'training'" in refused.stderr
