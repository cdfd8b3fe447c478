"""A study from beginning to end in a bucket of a real S3 server, with a key in its URIs that is written nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pyarrow import fs
from s3_cases import s3_server
from study_cases import draw_rollouts, tiny_study
from tiny import save_tiny_student
from typer.testing import CliRunner

from raygeo.analyses.registry import analyses
from raygeo.cli import app
from raygeo.store import Store
from raygeo.store.lease import find_lease
from raygeo.store.location import extended

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


SECRET = "hush-hush"


def holding(store, *folders):
    """Which files of a store, and of folders on this machine, hold the key."""
    kept = store.filesystem.get_file_info(fs.FileSelector(store.root, recursive=True))
    remote = {info.path: store.filesystem.open_input_stream(info.path).read() for info in kept if info.is_file}
    local = {str(path): path.read_bytes() for folder in folders for path in Path(folder).rglob("*") if path.is_file()}
    assert len(remote) > 20
    assert local
    return [path for path, held in (remote | local).items() if SECRET.encode() in held]


def test_a_study_runs_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    few = {name: None for name in analyses() if name != "norms"}
    student = {"model": str(save_tiny_student(tmp_path / "student"))}
    with s3_server(monkeypatch) as s3:
        location, data = (s3.uri(name).replace("s3://", f"s3://key:{SECRET}@") for name in ("study", "data"))
        rows = draw_rollouts(12).to_pandas().to_json(orient="records", lines=True)
        Store(data).write_bytes("rollouts.jsonl", f"{rows}[]\n".encode())
        read = [{"type": "jsonl", "path": extended(data, "/rollouts.jsonl")}]
        study = tiny_study(geometry=few, rollouts={"read": read}, student=student)
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
        command = [sys.executable, "-m", "raygeo", "run", str(tmp_path / "study.yaml"), "--store", location]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        store = Store(location, create=False)
        assert store.table("runs")["status"].to_pylist() == ["finished"]
        assert store.table("runs")["delta"].to_pylist()[0].endswith(location.partition("?")[2])
        assert store.table("set_aside")["source"].to_pylist() == [extended(s3.uri("data"), "/rollouts.jsonl")]
        assert SECRET not in done.stdout + done.stderr
        assert store.table("deltas").num_rows > 0
        assert b"<html" in store.read_bytes("report.html")
        assert find_lease(store) is None
        assert store.folders("ray") == []
        assert store.folders("checkpoints") == []
        assert list((tmp_path / "mlartifacts").rglob("report.html"))
        assert CliRunner().invoke(app, ["store", "verify", location]).exit_code == 0
        copied = CliRunner().invoke(app, ["store", "copy", location, str(tmp_path / "copy")])
        assert copied.exit_code == 0, copied.output
        (tmp_path / "study.yaml").unlink()
        assert holding(store, tmp_path) == []
    assert Store(tmp_path / "copy").table("deltas").num_rows > 0
