"""A real MLflow server that is killed, stopped, emptied, or at another address, and what a study then tells it."""

import json
import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from tracking_cases import Server, open_run

from raygeo.errors import ConfigError
from raygeo.tables import to_arrow
from raygeo.tracking import Tracking, send_queued, sender, tracking_uri
from raygeo.tracking.outbox import FOLDER, Outbox

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.kill()


@pytest.fixture
def serving(server, monkeypatch, request):
    """The server as the environment names it, with a client that gives up soon; and a name for a study."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(sender, "SETTLE_SECONDS", 0.1)
    with patch.dict(os.environ):
        yield server, request.node.name


def steps_of(client, run_id, name="train/nll"):
    return [m.step for m in client.get_metric_history(run_id, name)]


def keep_curves(store, key, steps):
    rows = [
        {"run": "run", "step": step, "metric": name, "value": 1.0 / step}
        for step in steps
        for name in ("nll", "objective")
    ]
    store.write_unit(key, {"training_curves": to_arrow("training_curves", rows)})


def until(there, seconds=30):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_curves_of_a_server_that_goes_away_have_every_step_once(serving, store, fault):
    server, study = serving
    said = []
    tracking = Tracking(store, study, {}, say=said.append)
    key = open_run(tracking)
    for step in range(1, 4):
        tracking.step(key, step, {"nll": 1.0 / step, "objective": 1.0})
    tracking.flush()
    server.kill() if fault == "killed" else server.tell(signal.SIGSTOP)
    for step in range(4, 7):
        tracking.step(key, step, {"nll": 1.0 / step, "objective": 1.0})
    open_run(tracking, "other")
    until(lambda: Outbox(store).files())
    tracking.step(key, 7, {"nll": 0.1, "objective": 1.0})
    server.start() if fault == "killed" else server.tell(signal.SIGCONT)
    until(lambda: tracking.sender.away is None)
    tracking.end(key, "FINISHED")
    assert tracking.close("FINISHED") == 0
    assert "does not answer" in said[0]
    assert "answers again" in said[-1]
    assert tracking.trouble is None
    assert server.states(study) == {study: "FINISHED", "run k": "FINISHED", "run other": "FINISHED"}
    for name in ("train/nll", "train/loss"):
        assert steps_of(server.client, tracking.run_id(key), name) == list(range(1, 8))
    assert not Outbox(store).files()


def test_what_is_left_when_a_study_ends_is_sent_by_the_next_command(serving, store, monkeypatch):
    server, study = serving
    tracking = Tracking(store, study, {}, say=lambda text: None)
    key = open_run(tracking)
    tracking.step(key, 1, {"nll": 1.0})
    tracking.flush()
    server.tell(signal.SIGSTOP)
    tracking.step(key, 2, {"nll": 0.5})
    tracking.text("report.html", "<p>")
    tracking.end(key, "FAILED")
    assert tracking.close("FAILED") >= 3
    assert "does not answer" in send_queued(store)
    server.tell(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert f"MLflow at {server.uri} has yet to be told" in send_queued(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert "were sent" in send_queued(store)
    assert send_queued(store) is None
    assert server.states(study) == {study: "FAILED", "run k": "FAILED"}
    assert steps_of(server.client, tracking.run_id(key)) == [1, 2]
    assert [item.path for item in server.client.list_artifacts(tracking.run_id(tracking.parent))] == ["report.html"]


def test_a_resumed_run_repeats_no_step_and_its_gaps_are_filled_from_the_store(serving, store):
    server, study = serving
    killed = Tracking(store, study, {})
    key = open_run(killed)
    for step in (1, 2, 5, 6):  # what it queued of 3 and 4 was lost with it
        killed.step(key, step, {"nll": 1.0 / step, "objective": 1.0 / step})
    killed.flush()
    again = Tracking(store, study, {})
    open_run(again)
    for step in range(5, 10):  # from the checkpoint after step 4
        again.step(key, step, {"nll": 1.0 / step, "objective": 1.0 / step})
    again.flush()
    assert steps_of(server.client, again.run_id(key)) == [1, 2, 5, 6, 7, 8, 9]
    keep_curves(store, key, range(1, 10))
    again.curves(key)
    again.end(key, "FINISHED")
    again.close("FINISHED")
    for name in ("train/nll", "train/loss"):
        assert sorted(steps_of(server.client, again.run_id(key), name)) == list(range(1, 10))
    assert set(server.states(study)) == {study, "run k"}


def test_a_server_with_a_new_database_is_told_everything_that_follows(serving, store):
    server, study = serving
    tracking = Tracking(store, study, {})
    key = open_run(tracking)
    tracking.step(key, 1, {"nll": 1.0})
    tracking.flush()
    experiment = server.client.get_experiment_by_name(study).experiment_id
    server.client.rename_experiment(experiment, f"{study} of before")
    for run in server.client.search_runs([experiment]):
        server.client.delete_run(run.info.run_id)
    tracking.remote.runs[key].id = "0" * 32  # as that of a database which is gone
    tracking.step(key, 2, {"nll": 0.5})
    keep_curves(store, key, (1, 2))
    tracking.curves(key)
    tracking.close("FINISHED")
    assert sorted(steps_of(server.client, tracking.run_id(key))) == [1, 2]
    assert set(server.states(study)) == {study, "k"}


def test_an_entry_that_is_refused_is_noted_and_does_not_hold_up_the_others(serving, store):
    server, study = serving
    tracking = Tracking(store, study, {})
    key = open_run(tracking)
    tracking.metrics(key, {"no good #!": 1.0})
    tracking.metrics(key, {"good": 1.0})
    tracking.flush()
    assert "no good #!" in str(tracking.trouble)
    assert server.runs(study)["run k"].data.metrics == {"good": 1.0}


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://user:secret@127.0.0.1:1", r"cannot be used: Connection refused\. Start the server"),
        ("http://user:secret@localhost:{port}", "--allowed-hosts"),
    ],
)
def test_a_wrong_address_is_refused_at_once(serving, store, monkeypatch, uri, told):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=serving[0].port))
    with pytest.raises(ConfigError, match=told) as refused:
        Tracking(store, "study", {})
    assert "secret" not in str(refused.value)
    assert not Path(store.path(FOLDER)).exists()


def test_a_password_in_the_address_is_written_nowhere(serving, store, monkeypatch, capfd):
    server, study = serving
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//user:se%3Acret@"))
    tracking = Tracking(store, study, {"student": tracking_uri(store)}, say=print)
    tracking.end(open_run(tracking), "FINISHED")
    server.tell(signal.SIGSTOP)
    tracking.text("page", "text")
    tracking.close("FINISHED")
    server.tell(signal.SIGCONT)
    print(send_queued(store))
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "se:cret"
    assert "were sent" in (said := "".join(capfd.readouterr()))
    runs = [run.to_dictionary() for run in server.runs(study).values()]
    kept = [file.read_bytes().decode() for file in Path(store.location).rglob("*") if file.is_file()]
    assert "cret@" not in said + json.dumps(runs) + "".join(kept)


def test_a_study_that_was_logged_before_resumes_without_its_server(serving, store, monkeypatch):
    server, study = serving
    Tracking(store, study, {}).close("FINISHED")
    server.tell(signal.SIGSTOP)
    said = []
    tracking = Tracking(store, study, {}, say=said.append)
    assert "the study goes on" in said[0]
    key = open_run(tracking)
    tracking.step(key, 1, {"nll": 1.0})
    assert tracking.run_id(key) is None
    tracking.close("KILLED")
    server.tell(signal.SIGCONT)
    last = Tracking(store, study, {})
    last.close("FINISHED")
    assert server.states(study) == {study: "FINISHED", "run k": "KILLED"}
    assert steps_of(server.client, last.run_id(key) or server.runs(study)["run k"].info.run_id) == [1]


def test_a_run_is_created_once_though_the_server_stood_still_when_it_was_asked(serving, store):
    server, study = serving
    tracking = Tracking(store, study, {}, say=lambda text: None)
    tracking.flush()
    tracking.child("warm", "warm", {})
    server.tell(signal.SIGSTOP)
    tracking.child("k", "run k", {})
    until(lambda: Outbox(store).files())
    server.tell(signal.SIGCONT)
    tracking.close("FINISHED")
    assert set(server.states(study)) == {study, "warm", "run k"}
