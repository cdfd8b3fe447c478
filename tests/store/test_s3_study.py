"""A study from beginning to end in a bucket of a real S3 server."""

import os
import subprocess
import sys

import pytest
import yaml
from s3_cases import s3_server
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student
from typer.testing import CliRunner

from raygeo.analyses.registry import analyses
from raygeo.cli import app
from raygeo.store import Store
from raygeo.store.lease import find_lease

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


def test_a_study_runs_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with (tmp_path / "rollouts.jsonl").open("w") as file:
        draw_rollouts(12).to_pandas().to_json(file, orient="records", lines=True)
    few = {name: None for name in analyses() if name != "norms"}
    read = [{"type": "jsonl", "path": str(tmp_path / "rollouts.jsonl")}]
    student = {"model": str(save_tiny_student(tmp_path / "student"))}
    study = tiny_study(geometry=few, rollouts={"read": read}, student=student)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with s3_server(monkeypatch) as s3:
        location = s3.uri("study")
        command = [sys.executable, "-m", "raygeo", "run", str(tmp_path / "study.yaml"), "--store", location]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        store = Store(location, create=False)
        assert store.table("runs")["status"].to_pylist() == ["finished"]
        assert store.table("runs")["delta"].to_pylist()[0].endswith(location.partition("?")[2])
        assert store.table("deltas").num_rows > 0
        assert b"<html" in store.read_bytes("report.html")
        assert find_lease(store) is None
        assert store.folders("ray") == []
        assert store.folders("checkpoints") == []
        assert list((tmp_path / "mlartifacts").rglob("report.html"))
        assert CliRunner().invoke(app, ["store", "verify", location]).exit_code == 0
        copied = CliRunner().invoke(app, ["store", "copy", location, str(tmp_path / "copy")])
        assert copied.exit_code == 0, copied.output
    assert Store(tmp_path / "copy").table("deltas").num_rows > 0
