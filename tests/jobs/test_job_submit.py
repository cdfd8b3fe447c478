"""The job as a user submits it, on a cluster that was started by itself."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from itertools import count
from pathlib import Path

import psutil
import pytest
import yaml
from job_cases import RAY, REPOSITORY, JobCluster, job_cluster
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from ray.job_submission import JobSubmissionClient
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student

import raygeo
from checks.faults.processes import command_of
from raygeo.analyses.registry import analyses

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


class Cluster:
    """A running cluster, and how its jobs are doing."""

    def __init__(self, given: JobCluster):
        self.given = given

    @cached_property
    def jobs(self) -> JobSubmissionClient:
        """What asks the dashboard of jobs, sooner than the command line can."""
        token = Path(self.given.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        return JobSubmissionClient(self.given.address, headers={"Authorization": f"Bearer {token}"})

    def ray(self, *arguments: str) -> str:
        """What a command of Ray prints."""
        done = subprocess.run(
            [RAY, *arguments], env=self.given.environment, capture_output=True, text=True, timeout=100, check=False
        )
        return done.stdout + done.stderr

    def submit(self, name: str, study: Path, *options: str, job: str = "study") -> None:
        """Submit the study's job, or another one with options, once the cluster takes jobs."""
        command = ["job", "submit", "--address", self.given.address, "--working-dir", str(REPOSITORY), "--no-wait",
                   "--submission-id", name, "--", sys.executable, f"jobs/{job}.py", str(study), *options]  # fmt: skip
        said = ""
        for _ in range(60):
            said = self.ray(*command)
            if "submitted successfully" in said:
                return
            time.sleep(1)
        raise AssertionError(said)

    def status(self, name: str) -> str:
        """PENDING, RUNNING, STOPPED, FAILED or SUCCEEDED."""
        return self.jobs.get_job_status(name).value

    def wait_for(self, name: str, there: Callable[[], bool], *, ended: bool = False) -> None:
        """Wait until something is there, while the job is running."""
        deadline = time.monotonic() + 300
        for look in count():
            if there():
                return
            if time.monotonic() > deadline or (not ended and look % 40 == 39 and not self.active(name)):
                raise AssertionError(self.jobs.get_job_logs(name)[-3000:])
            time.sleep(0.1)

    def active(self, name: str) -> bool:
        """Whether a job has not ended."""
        return self.status(name) in ("PENDING", "RUNNING")

    def workers(self) -> list[psutil.Process]:
        """Processes that train."""
        family = psutil.Process(self.given.head).children(recursive=True)
        return [process for process in family if "RayTrainWorker" in command_of(process)]


class Seen:
    """What MLflow shows of the study in a store."""

    def __init__(self, store: Path):
        self.database = store / "mlflow.db"
        self.uri = f"sqlite:///{self.database}"

    def runs(self) -> dict[str, Run]:
        client = MlflowClient(self.uri)
        found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        runs = {run.info.run_name: run for run in found}
        assert len(runs) == len(found)
        return runs

    def states(self) -> dict[str, str]:
        return {name: run.info.status for name, run in self.runs().items()}

    def curve(self, name: str) -> list[int]:
        history = MlflowClient(self.uri).get_metric_history(self.runs()[name].info.run_id, "train/nll")
        return [point.step for point in history]

    def steps(self, name: str) -> int:
        """How many steps of a run are there."""
        joined = "select count(*) from metrics join runs using (run_uuid)"
        query = f"{joined} where metrics.key = 'train/nll' and runs.name = ?"
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as database:
                return database.execute(query, (name,)).fetchone()[0]
        except sqlite3.OperationalError:
            return 0


@pytest.fixture
def cluster():
    with job_cluster() as given:
        yield Cluster(given)


def test_a_submitted_study_is_stopped_and_resumed_and_says_what_failed(cluster, tmp_path):
    with (tmp_path / "rollouts.jsonl").open("w") as file:
        draw_rollouts(12).to_pandas().to_json(file, orient="records", lines=True)
    study = tiny_study(
        store=str(tmp_path / "store-1.5"),
        geometry={name: None for name in analyses() if name != "norms"},
        rollouts={"read": [{"type": "jsonl", "path": str(tmp_path / "rollouts.jsonl")}]},
        student={"model": str(save_tiny_student(tmp_path / "student"))},
        training={"steps": 400, "batch_size": 8, "log_every": 1, "checkpoint_every": 20, "snapshots": 0,
                  "restarts": 0, "cpus": 1.5},
        runs=[{"name": name, "loss": {"type": "sft"}, "seed": seed} for seed, name in enumerate(("first", "second"))],
    )  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    seen = Seen(tmp_path / "store-1.5")

    cluster.submit("stopped", tmp_path / "study.yaml")
    cluster.wait_for("stopped", lambda: seen.steps("first") > 20)
    cluster.jobs.stop_job("stopped")
    cluster.wait_for("stopped", lambda: not cluster.active("stopped"), ended=True)
    assert cluster.status("stopped") == "STOPPED"
    assert seen.states() == {"tiny": "KILLED", "first": "KILLED"}
    cluster.wait_for("stopped", lambda: not cluster.workers(), ended=True)
    cluster.wait_for(
        "stopped", lambda: "0.0/2.0 CPU" in cluster.ray("status", "--address", cluster.given.gcs), ended=True
    )
    assert not cluster.workers()

    cluster.submit("struck", tmp_path / "study.yaml")
    cluster.wait_for("struck", lambda: seen.steps("second") > 20)
    for worker in cluster.workers():
        worker.kill()
    cluster.wait_for("struck", lambda: not cluster.active("struck"), ended=True)
    assert cluster.status("struck") == "FAILED"
    said = cluster.jobs.get_job_info("struck").message
    assert "exit code 2" in said
    assert "run second: a worker was lost" in said
    assert seen.states() == {"tiny": "FAILED", "base": "FINISHED", "first": "FINISHED", "second": "FAILED"}
    store = raygeo.open(str(tmp_path / "store-1.5"))
    assert store.table("runs")["status"].to_pylist() == ["finished", "failed"]
    assert "a worker was lost" in (tmp_path / "store-1.5" / "report.html").read_text()
    assert sorted(seen.curve("first")) == list(range(1, 401))
    assert seen.runs()["first"].data.tags["raygeo.ray_job"] == "struck"

    swept = "--store", str(tmp_path / "store"), "--over", "training.cpus=[64, 1.5]"
    cluster.submit("swept", tmp_path / "study.yaml", *swept, job="sweep")
    cluster.wait_for("swept", lambda: not cluster.active("swept"), ended=True)
    assert cluster.status("swept") == "FAILED"
    said = cluster.jobs.get_job_info("swept").message
    assert f"1 of 2 studies failed: {tmp_path / 'store-64'}." in said
    assert store.table("runs")["status"].to_pylist() == ["finished", "finished"], "the other was taken up where it was"
    assert seen.states() == dict.fromkeys(("tiny", "base", "first", "second"), "FINISHED")


def test_a_job_that_is_refused_says_why(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(trainning={})))
    command = [sys.executable, str(REPOSITORY / "jobs" / "study.py"), str(tmp_path / "study.yaml")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "did you mean 'training'" in refused.stderr
