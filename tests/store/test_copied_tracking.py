"""MLflow over a copied store: its own artifacts, and the same runs when the study goes on there."""

import json
import os
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from s3_cases import s3_server
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import StoreError
from raygeo.store import Store
from raygeo.store.copying import copy_store, point_artifacts
from raygeo.tracking import Data, Tracking

pytestmark = pytest.mark.cluster


@pytest.fixture
def logged(store):
    """A store with a database of MLflow in which its study has a run with a figure, data and weights."""
    tracking = Tracking(store, "study", {})
    tracking.text("report.html", "<html>")
    tracking.metrics(tracking.parent, {"value": 1.0})
    tracking.inputs(tracking.parent, "training", [Data("rollouts", "0f", store.location, {})])
    tracking.model(tracking.parent, store.uri("deltas", "k"))
    tracking.close("FINISHED")
    return store


def copied_through_s3(store, target, monkeypatch):
    """Copy a store to S3 and from there, by a URI with another query: neither the key in the first is kept anywhere."""
    with s3_server(monkeypatch) as s3:
        plain = s3.uri("copy")
        remote = Store(plain.replace("s3://", "s3://key:secret-of-mine@"))
        assert copy_store(store, remote) == []
        database = remote.read_bytes("mlflow.db")
        assert f"study:{plain}".encode() in database
        assert b"secret-of-mine" not in database
        again = Store(plain.replace("&region=us-east-1", ""), create=False)
        assert copy_store(again, target) == []


@pytest.mark.parametrize("through_s3", [False, True])
def test_a_copy_serves_its_own_artifacts_and_continues_its_runs(logged, tmp_path, monkeypatch, through_s3):
    target = Store(tmp_path / "copy")
    if through_s3:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr("raygeo.store.lease.SETTLING", 0.1)
        copied_through_s3(logged, target, monkeypatch)
    else:
        assert copy_store(logged, target) == []
    shutil.rmtree(logged.root)
    client = MlflowClient(f"sqlite:///{target.path('mlflow.db')}")
    experiment = client.get_experiment_by_name("study")
    [run] = client.search_runs(
        [experiment.experiment_id], f"tags.`raygeo.key` = 'study:{target.location}' and metrics.value = 1"
    )
    assert Path(client.download_artifacts(run.info.run_id, "report.html")).read_text() == "<html>"
    assert run.info.artifact_uri.startswith(f"file://{target.path('mlartifacts')}/")
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source) == {"uri": target.location}
    [model] = client.search_logged_models([experiment.experiment_id])
    assert model.tags["raygeo.weights"] == target.uri("deltas", "k")
    new = client.create_run(experiment.experiment_id).info.run_id
    client.log_text(new, "new", "new.html")
    found = {path.name for path in Path(target.path("mlartifacts")).rglob("*.html")}
    assert found == {"report.html", "new.html"}
    assert not Path(logged.root).exists()


def test_a_store_that_was_moved_serves_its_own_artifacts_once_its_pages_are_opened(logged, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(os, "execv", lambda program, command: served.append(command))
    moved = Path(shutil.move(logged.root, tmp_path / "moved"))
    assert CliRunner().invoke(app, ["ui", str(moved)]).exit_code == 0
    assert f"sqlite:///{moved}/mlflow.db" in served[0]
    client = MlflowClient(f"sqlite:///{moved}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert Path(client.download_artifacts(run.info.run_id, "report.html")).read_text() == "<html>"


def test_a_damaged_database_is_told_before_pages_are_opened(logged):
    Path(logged.path("mlflow.db")).write_bytes(b"SQLite no more" * 100)
    with pytest.raises(StoreError, match=r"cannot be used.*move it away"):
        point_artifacts(logged)
