"""MLflow over a copied store: its own artifacts, and the same runs when the study goes on there."""

import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raygeo.store import Store
from raygeo.store.copying import copy_store

pytestmark = pytest.mark.cluster


@pytest.fixture
def logged(store):
    """A store with a database of MLflow in which its study has a run with a figure."""
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    experiment = client.create_experiment("study", f"file://{store.path('mlartifacts')}")
    run = client.create_run(experiment, tags={"raygeo.key": f"study:{store.location}"}).info.run_id
    client.log_text(run, "<html>", "page.html")
    client.log_metric(run, "value", 1.0, step=3)
    return store


def test_a_copy_serves_its_own_artifacts_and_continues_its_runs(logged, tmp_path):
    target = Store(tmp_path / "copy")
    assert copy_store(logged, target) == []
    shutil.rmtree(logged.root)
    client = MlflowClient(f"sqlite:///{target.path('mlflow.db')}")
    experiment = client.get_experiment_by_name("study")
    [run] = client.search_runs(
        [experiment.experiment_id], f"tags.`raygeo.key` = 'study:{target.location}' and metrics.value = 1"
    )
    assert Path(client.download_artifacts(run.info.run_id, "page.html")).read_text() == "<html>"
    assert run.info.artifact_uri.startswith(f"file://{target.path('mlartifacts')}/")
    new = client.create_run(experiment.experiment_id).info.run_id
    client.log_text(new, "new", "new.html")
    found = {path.name for path in Path(target.path("mlartifacts")).rglob("*.html")}
    assert found == {"page.html", "new.html"}
    assert not Path(logged.root).exists()
