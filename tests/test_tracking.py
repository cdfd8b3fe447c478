import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raygeo.errors import ConfigError
from raygeo.store import Store
from raygeo.tracking import Tracking, tracking_uri

pytestmark = pytest.mark.cluster

CHROMIUM = shutil.which("chromium")


def test_a_study_that_resumes_finds_its_own_runs(store):
    first = Tracking(store, "study", {"student": "s"})
    child = first.child("k1", "sft", {"loss": "sft", "lr": 0.1})
    first.metrics(child, {"nll": 1.0, "missing": None}, step=3)
    again = Tracking(store, "study", {"student": "s"})
    assert again.parent == first.parent
    assert again.child("k1", "sft", {"loss": "sft", "lr": 0.1}) == child
    assert again.child("k2", "dpo", {}) != child
    data = again.client.get_run(child).data
    assert data.metrics == {"nll": 1.0}
    assert data.params == {"loss": "sft", "lr": "0.1"}
    assert data.tags["mlflow.parentRunId"] == first.parent


def test_curves_are_written_once(store):
    tracking = Tracking(store, "study", {})
    child = tracking.child("k", "sft", {})
    rows = [{"metric": "nll", "value": 1.0 / step, "step": step} for step in range(1, 4)]
    tracking.curves(child, rows)
    tracking.curves(child, rows)
    assert [m.step for m in tracking.client.get_metric_history(child, "nll")] == [1, 2, 3]


def test_closing_marks_what_is_open_and_nothing_else(store):
    tracking = Tracking(store, "study", {})
    done, open_ = tracking.child("k1", "sft", {}), tracking.child("k2", "dpo", {})
    tracking.end(done)
    tracking.close("KILLED")
    states = [tracking.client.get_run(run).info.status for run in (done, open_, tracking.parent)]
    assert states == ["FINISHED", "KILLED", "KILLED"]


def test_a_remote_store_needs_a_server(store, monkeypatch):
    monkeypatch.setattr(store, "is_local", False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_uri(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(store) == "http://127.0.0.1:5000"


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_comparison_page_shows_losses_side_by_side(store: Store, tmp_path):
    tracking = Tracking(store, "study", {})
    ids = []
    for seed, loss in enumerate(("sft", "rift", "dpo")):
        child = tracking.child(
            loss, f"{loss}-lr0.0005-s0", {"loss": loss, "lr": 5e-4, "seed": seed, "training.steps": 4}
        )
        tracking.metrics(child, {"accuracy.heldout": 0.3 + 0.2 * seed, "delta_norm": 2.0 + seed})
        tracking.end(child)
        ids.append(child)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "raygeo", "ui", store.location, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        runs, experiments = (urllib.parse.quote(json.dumps(x)) for x in (ids, [tracking.experiment]))
        page = dump(f"http://127.0.0.1:{port}/#/compare-runs?runs={runs}&experiments={experiments}", tmp_path)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    assert "Comparing 3 Runs" in page
    assert "Parallel Coordinates Plot" in page
    for text in ("sft-lr0.0005-s0", "rift", "accuracy.heldout", "delta_norm", "training.steps"):
        assert text in page


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError("the server never answered")


def dump(url: str, folder) -> str:
    """The page's document after its scripts have run."""
    quiet = "no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"
    command = [CHROMIUM, "--headless=new", *(f"--{flag}" for flag in quiet.split())]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1400"]
    command += ["--virtual-time-budget=30000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def unreachable() -> str:
    """The address of a server that is gone."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def test_mlflow_that_fails_while_a_study_runs_is_noted_and_left_alone_for_a_while(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = Tracking(store, "study", {})
    child, reached = tracking.child("k", "sft", {}), tracking.client
    tracking.client = MlflowClient(unreachable())
    tracking.metrics(child, {"nll": 1.0})
    assert "127.0.0.1" in str(tracking.trouble)
    assert tracking.child("k2", "dpo", {}) is None
    tracking.client, left_alone_until = reached, tracking.paused_until
    tracking.metrics(child, {"nll": 2.0})
    assert tracking.paused_until == left_alone_until
    assert tracking.client.get_run(child).data.metrics == {}
    tracking.again(forgive=True)
    tracking.metrics(child, {"nll": 3.0})
    tracking.metrics(None, {"nll": 4.0})
    assert tracking.client.get_run(child).data.metrics == {"nll": 3.0}
    assert tracking.trouble is None


def test_curves_of_which_a_part_was_logged_are_completed(store):
    tracking = Tracking(store, "study", {})
    child = tracking.child("k", "sft", {})
    rows = [{"metric": name, "value": 1.0 / step, "step": step} for step in range(1, 4) for name in ("nll", "loss")]
    tracking.metrics(child, {"nll": 1.0, "loss": 1.0}, step=1)
    assert [m.step for m in tracking.client.get_metric_history(child, "nll")] == [1]
    tracking.curves(child, rows)
    for name in ("nll", "loss"):
        assert [m.step for m in tracking.client.get_metric_history(child, name)] == [1, 2, 3]


def test_what_mlflow_did_not_take_of_curves_is_logged_when_training_is_over(store):
    tracking = Tracking(store, "study", {})
    child = tracking.child("k", "sft", {})
    rows = [{"metric": "nll", "value": 1.0 / step, "step": step} for step in range(1, 5)]
    for row in rows[::2]:
        tracking.metrics(child, {"nll": row["value"]}, step=row["step"])
        tracking.paused_until = float("inf") if row["step"] == 1 else 0.0
    tracking.again()
    tracking.metrics(child, {"nll": 0.25}, step=4)
    tracking.curves(child, rows)
    assert {m.step for m in tracking.client.get_metric_history(child, "nll")} == {1, 2, 3, 4}
    other = Tracking(store, "study", {}).child("k2", "dpo", {})
    for step in (2, 4):
        tracking.metrics(other, {"nll": 1.0}, step=step)
    tracking.curves(other, rows)
    assert [m.step for m in tracking.client.get_metric_history(other, "nll")] == [2, 4]


def test_params_that_were_not_logged_are_logged_by_the_next_call(store):
    first = Tracking(store, "study", {})
    child = first.child("k", "sft", {"loss": "sft"})
    again = Tracking(store, "study", {})
    again.child("k", "sft", {"loss": "sft", "lr": 0.1})
    assert again.client.get_run(child).data.params == {"loss": "sft", "lr": "0.1"}


def test_mlflow_that_cannot_be_used_at_all_is_told_before_anything_starts(store, monkeypatch):
    Path(store.path("mlflow.db")).write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="move it away"):
        Tracking(store, "study", {})
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable().replace("//", "//user:secret@"))
    with pytest.raises(ConfigError, match="Start the server") as told:
        Tracking(store, "study", {})
    assert "secret" not in str(told.value)
