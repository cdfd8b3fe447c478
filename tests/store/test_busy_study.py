"""Studies, comparisons and readers on a store that another process works on."""

import json
import os

import pytest
from study_cases import tiny_study
from tiny import save_tiny_student
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import BusyStoreError, StoreError
from raygeo.pipeline.compare import compare_models
from raygeo.pipeline.comparison import plan_comparison
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import run_study
from raygeo.store import Store
from raygeo.store.lease import held

pytestmark = pytest.mark.cluster


def test_a_second_study_is_refused_before_it_writes(store):
    with held(store, "the study first"), pytest.raises(BusyStoreError, match="the study first by"):
        run_study(parse_study(tiny_study(store=store.location)))
    assert store.read_bytes("study.yaml") is None
    assert store.read_bytes("mlflow.db") is None


def test_a_comparison_is_refused_too(store, tmp_path):
    model = str(save_tiny_student(tmp_path / "model"))
    comparison = plan_comparison(model, [model], names=["same"], store=store.location)
    with held(store, "the study first"), pytest.raises(BusyStoreError, match="the study first by"):
        compare_models(comparison)
    assert store.read_bytes("comparison.yaml") is None


def test_a_page_is_written_while_a_study_runs(store, no_figures):
    store.write_bytes("study.yaml", b"name: first")
    with held(store, "the study first"):
        done = CliRunner().invoke(app, ["report", store.location])
    assert done.exit_code == 0
    assert b"first" in store.read_bytes("report.html")


def test_a_study_without_a_store_is_refused_in_a_job(tmp_path, monkeypatch):
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0f3a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(StoreError, match="--store"):
        run_study(parse_study(tiny_study()))
    assert not (folder / "store" / "tiny" / "mlflow.db").exists()


def test_an_ended_study_says_what_it_needs_and_an_interrupted_one_does_not(store):
    for whole in (False, True):
        with store.noting("tiny") as ledger:
            ledger.whole = whole
        assert json.loads(Store(store.location).read_bytes(ledger.file))["whole"] is whole
    with pytest.raises(ZeroDivisionError), store.noting("tiny"):
        raise ZeroDivisionError
    assert json.loads(store.read_bytes(ledger.file))["whole"] is False
    assert os.listdir(store.path("studies")) == [ledger.file.rpartition("/")[2]]
