"""What a study tells MLflow, and what is seen of it there."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tracking_cases import free_port, open_run, wait_for

from raygeo.errors import ConfigError
from raygeo.paths import without_credentials
from raygeo.store import Store
from raygeo.store.lease import find_lease, held
from raygeo.tracking import Data, Tracking, check_tracking, origin, send_queued, tracking_uri
from raygeo.tracking.outbox import FOLDER, Outbox
from raygeo.tracking.pages import CONFIGURATION_TAG, pages_of
from raygeo.tracking.server import open_client

pytestmark = pytest.mark.cluster

CHROMIUM = shutil.which("chromium")


def test_a_study_that_resumes_finds_its_own_runs(store):
    first = Tracking(store, "study", {"student": "s"})
    child = first.child("k1", "sft", {"loss": "sft", "lr": 0.1})
    first.metrics(child, {"nll": 1.0, "missing": None})
    first.flush()
    again = Tracking(store, "study", {"student": "s"})
    again.child("k1", "sft", {"loss": "sft", "lr": 0.1, "seed": 0})
    again.child("k2", "dpo", {})
    again.flush()
    assert again.trouble is None
    assert again.run_id(again.parent) == first.run_id(first.parent)
    assert again.run_id("k1") == first.run_id("k1")
    assert again.run_id("k2") != first.run_id("k1")
    data = again.remote.client.get_run(again.run_id("k1")).data
    assert data.metrics == {"nll": 1.0}
    assert data.params == {"loss": "sft", "lr": "0.1", "seed": "0"}
    assert data.tags["mlflow.parentRunId"] == first.run_id(first.parent)


def test_an_mlflow_that_cannot_be_told_of_a_study_is_known_before_it(store, monkeypatch):
    check_tracking(store, "study")
    before = sorted(Path(store.path()).rglob("*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    with pytest.raises(ConfigError, match=r"MLflow at foo://bar cannot be used: .* Correct what it says"):
        check_tracking(store, "study")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its queue
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        with pytest.raises(ConfigError, match=r"cannot be used: no answer in 0\.2 seconds\. Start the server"):
            check_tracking(store, "study", seconds=0.2)
        assert sorted(Path(store.path()).rglob("*")) == before
        Outbox(store).note(server=server)
        check_tracking(store, "study", seconds=0.2)  # the study would go on without it


def test_a_run_that_was_created_twice_is_the_one_that_has_something(store):
    first = Tracking(store, "study", {"student": "s"})
    first.child("k", "sft", {"lr": 0.1})
    first.flush()
    client, ids = first.remote.client, {first.run_id(first.parent), first.run_id("k")}
    for made in map(client.get_run, ids):
        client.create_run(first.remote.experiment, made.info.start_time - 1, made.data.tags)
    again = Tracking(store, "study", {"student": "s"})
    again.child("k", "sft", {"lr": 0.1})
    again.flush()
    assert {again.run_id(again.parent), again.run_id("k")} == ids
    assert {run.info.run_id for run in client.search_runs([again.remote.experiment])} == ids


def test_a_finished_study_that_is_run_again_changes_nothing(store):
    seen = []
    for _ in range(2):
        tracking = Tracking(store, "study", {})
        child = tracking.child("k", "sft", {})
        tracking.metrics(child, {"accuracy": float("nan"), "norm": 2.0})
        tracking.histories(child, [("cosine", 3, 0.5)])
        tracking.end(child, "FINISHED")
        tracking.close("FINISHED")
        client, run_id = tracking.remote.client, tracking.run_id(child)
        histories = [client.get_metric_history(run_id, name) for name in ("accuracy", "norm", "cosine")]
        seen.append((client.get_run(run_id).info.end_time, [len(history) for history in histories]))
    assert seen[0] == seen[1]
    assert seen[0][1] == [1, 1, 1]


def test_a_run_began_and_ended_when_it_was_trained(store):
    began, ended = "2026-01-01T10:00:00+00:00", "2026-01-01T10:05:00.250+00:00"
    tracking = Tracking(store, "study", {})
    tracking.child("k", "sft", {}, began)
    tracking.begin("k")
    tracking.end("k", "FINISHED")  # seen later than it was
    tracking.end("k", "FINISHED", ended)
    tracking.close("FINISHED")
    info = tracking.remote.client.get_run(tracking.run_id("k")).info
    moments = [int(datetime.fromisoformat(moment).timestamp() * 1000) for moment in (began, ended)]
    assert [info.start_time, info.end_time] == moments


def log_whole_run(store, weights, say=print):
    tracking = Tracking(store, "study", {}, say=say, note="What it is.")
    key = tracking.child("k", "sft-lr0.1", {"lr": 0.1})
    tracking.inputs(key, "training", [Data("rollouts", "0f-r2.1", str(store.location), {"rows": 8})])
    tracking.model(key, weights)
    tracking.inputs(key, "evaluation", [Data("hard", "1e", str(store.location), {"problems": 4})])
    tracking.metrics(key, {"eval/hard/accuracy": 0.5, "eval/accuracy": 0.5, "geometry/delta_norm": 2.0})
    tracking.close("FINISHED")
    assert tracking.trouble is None
    return tracking


def test_a_run_has_its_data_and_its_weights_as_one_model_with_its_numbers(store):
    for _ in range(2):
        tracking = log_whole_run(store, "http://u:p@h/deltas/k")
    client, experiment = tracking.remote.client, tracking.remote.experiment
    run = client.get_run(tracking.run_id("k"))
    used = {(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in run.inputs.dataset_inputs}
    assert used == {("rollouts", "0f-r2.1", "training"), ("hard", "1e", "evaluation")}
    [model] = client.search_logged_models([experiment])
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert (model.status, model.source_run_id, model.params) == ("READY", run.info.run_id, {"lr": "0.1"})
    assert model.tags["raygeo.weights"] == "http://h/deltas/k"
    assert {(metric.key, metric.value, metric.dataset_name) for metric in model.metrics} == {
        ("eval/hard/accuracy", 0.5, "hard"), ("eval/accuracy", 0.5, None), ("geometry/delta_norm", 2.0, None),
    }  # fmt: skip
    assert not list(Path(store.root).rglob("models"))  # the weights are where they were, and nowhere else


def test_a_benchmark_called_as_the_data_of_training_is_data_of_its_own(store):
    tracking = Tracking(store, "study", {})
    key = tracking.child("k", "sft", {})
    tracking.model(key, "k")
    for _ in range(2):
        tracking.inputs(key, "training", [Data("rollouts", "0f", store.location, {})])
        tracking.metrics(key, {"eval/rollouts/drop": 0.25})
        tracking.inputs(key, "evaluation", [Data("rollouts", "1e", store.location, {})])
        tracking.metrics(key, {"eval/rollouts/accuracy": 0.5})
        tracking.flush()
        assert tracking.remote.runs[key].data == {("training", "rollouts"): "0f", ("evaluation", "rollouts"): "1e"}
        tracking.remote.runs.clear()
    [model] = tracking.remote.client.search_logged_models([tracking.remote.experiment])
    assert {(metric.key, metric.dataset_digest) for metric in model.metrics} == {
        ("eval/rollouts/drop", None), ("eval/rollouts/accuracy", "1e"),
    }  # fmt: skip


def test_an_experiment_is_described_once_and_opens_at_its_runs(store):
    tracking = log_whole_run(store, "k")
    client, experiment = tracking.remote.client, tracking.remote.experiment
    tags = {"mlflow.note.content": "What it is.", "mlflow.experimentKind": "custom_model_development"}
    assert tags.items() <= client.get_experiment(experiment).tags.items()
    assert client.get_run(tracking.run_id(tracking.parent)).data.tags["mlflow.note.content"] == "What it is."
    client.set_experiment_tag(experiment, "mlflow.note.content", "What a colleague wrote.")
    log_whole_run(store, "k")
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == "What a colleague wrote."


@pytest.fixture
def renamed(store):
    """A study that a killed driver left running under other names, and a colleague's run below its own."""
    before = log_whole_run(store, "k")
    client, parent = before.remote.client, before.run_id(before.parent)
    for run in (parent, before.run_id("k")):
        client.update_run(run, "RUNNING")
    client.delete_tag(parent, "raygeo.names")
    nested = client.create_run(before.remote.experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    Outbox(store).note(**(Outbox(store).noted() | {"names": "dotted"}))
    return before, nested


def as_left_by_a_killed_driver(store):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    with held(store, "the study"):
        gone = replace(find_lease(store).holder, pid=int(done.stdout))
    store.write_bytes("lease.json", json.dumps(asdict(gone)).encode())


@pytest.mark.parametrize("may_tag", [True, False])
def test_runs_that_were_logged_under_other_names_stay_beside_those_logged_anew(store, renamed, monkeypatch, may_tag):
    before, nested = renamed
    client, old = before.remote.client, {before.run_id(before.parent), before.run_id("k"), nested}

    def refuse(*arguments):
        raise MlflowException("permission denied")

    if not may_tag:
        monkeypatch.setattr(MlflowClient, "set_tag", refuse)
    monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    said = []
    for _ in range(2):
        after = log_whole_run(store, "k", said.append)
    runs = {run.info.run_id: run for run in client.search_runs([before.remote.experiment])}
    new = {after.run_id(after.parent), after.run_id("k")}
    assert (set(runs), len(new - old)) == (old | new, 2)
    by = runs[before.run_id(before.parent)].data.tags.get("raygeo.replaced_by")
    assert by == (after.run_id(after.parent) if may_tag else None)
    [told] = said
    assert "stay beside the new ones" in told
    states = [runs[run].info.status for run in (before.run_id("k"), nested)]
    assert states == ["KILLED", "RUNNING"]


def test_runs_under_other_names_are_marked_by_a_report_and_nothing_more_is_sent(store, renamed):
    before, _ = renamed
    assert send_queued(store) is None
    as_left_by_a_killed_driver(store)
    assert "entries" not in (told := send_queued(store))
    assert "marked so" in told
    client = before.remote.client
    states = [client.get_run(before.run_id(key)).info.status for key in ("k", before.parent)]
    assert states == ["KILLED", "KILLED"]
    Outbox(store).append([{"call": "metrics", "key": "k", "values": {"delta_norm": 2.0}, "time": 0}])
    assert "1 entries for MLflow have names of an earlier version" in send_queued(store)
    assert "delta_norm" not in client.get_run(before.run_id("k")).data.metrics
    assert len(client.search_runs([before.remote.experiment])) == 3


@pytest.mark.parametrize(("told", "most"), [(None, 300), (signal.SIGINT, 10), (signal.SIGTERM, 2)])
def test_a_study_that_was_told_to_stop_does_not_wait_long(store, monkeypatch, told, most):
    tracking, waited = Tracking(store, "study", {}), []
    close = tracking.sender.close
    monkeypatch.setattr(tracking.sender, "close", lambda seconds: waited.append(seconds) or close(30))
    monkeypatch.setattr("raygeo.tracking.tracking.asked", lambda: told)
    assert tracking.close("KILLED") == 0
    assert 1 <= waited[0] <= most
    assert (waited[0] > 2) == (told is not signal.SIGTERM)


def test_closing_marks_what_is_open_and_nothing_else(store):
    tracking = Tracking(store, "study", {})
    done, left = open_run(tracking, "k1"), open_run(tracking, "k2")
    tracking.end(done, "FINISHED")
    tracking.close("KILLED")
    states = [tracking.remote.client.get_run(tracking.run_id(k)).info.status for k in (done, left, tracking.parent)]
    assert states == ["FINISHED", "KILLED", "KILLED"]


def test_runs_of_a_driver_that_was_killed_are_marked_by_the_next_one(store):
    killed = Tracking(store, "study", {})
    open_run(killed, "k1"), open_run(killed, "k2")
    killed.flush()
    again = Tracking(store, "study", {})
    open_run(again, "k2")
    again.flush()
    states = [again.remote.client.get_run(killed.run_id(k)).info.status for k in ("k1", "k2", again.parent)]
    assert states == ["KILLED", "RUNNING", "RUNNING"]


def test_runs_of_a_driver_that_was_killed_are_marked_by_a_report_unless_another_is_at_work(store):
    killed = Tracking(store, "study", {})
    open_run(killed, "k")
    killed.flush()
    with held(store, "the study"):
        assert send_queued(store) is None
    assert send_queued(store) is None
    as_left_by_a_killed_driver(store)
    assert "marked so" in (told := send_queued(store))
    assert "entries" not in told
    states = [killed.remote.client.get_run(killed.run_id(key)).info.status for key in ("k", killed.parent)]
    assert states == ["KILLED", "KILLED"]


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
            loss, f"{loss}-lr0.0005-s0", {"loss": loss, "lr": 5e-4, "seed": seed, "training/steps": 4}
        )
        accuracy = 0.3 + 0.2 * seed
        found = {"eval/accuracy": accuracy, "eval/heldout/accuracy": accuracy, "geometry/delta_norm": 2.0 + seed}
        tracking.metrics(child, found)
        tracking.tags(child, {CONFIGURATION_TAG: f"{loss} 1"})
        tracking.end(child, "FINISHED")
        ids.append(child)
    tracking.close("FINISHED")
    ids = [tracking.run_id(child) for child in ids]
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "raygeo", "ui", store.location, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        runs, experiments = (urllib.parse.quote(json.dumps(x)) for x in (ids, [tracking.remote.experiment]))
        landing = dump(pages_of(store, tracking.uri, f"http://127.0.0.1:{port}"), tmp_path)
        page = dump(f"http://127.0.0.1:{port}/#/compare-runs?runs={runs}&experiments={experiments}", tmp_path)
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
    assert "Comparing 3 Runs" in page
    assert "Parallel Coordinates Plot" in page
    assert "shared view" in landing
    assert "Group: sft 1" in landing
    for text in ("eval/accuracy", "rift-lr0.0005-s0", "Model training"):
        assert text in landing
    for text in ("sft-lr0.0005-s0", "rift", "eval/heldout/accuracy", "geometry/delta_norm", "training/steps"):
        assert text in page


def dump(url: str, folder) -> str:
    """The page's document after its scripts have run."""
    quiet = "no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update disable-sync"
    command = [CHROMIUM, "--headless=new", *(f"--{flag}" for flag in quiet.split())]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1400"]
    command += ["--virtual-time-budget=30000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_damaged_database_is_told_before_anything_starts(store):
    Path(store.path("mlflow.db")).write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="move it away"):
        Tracking(store, "study", {})


def test_damaged_lines_of_the_outbox_are_left_out(store):
    outbox = Outbox(store)
    outbox.append([{"call": "begin", "key": "k"}])
    [name] = outbox.files()
    file = Path(store.path(FOLDER, name))
    file.write_bytes(b"{\n[1]\n" + file.read_bytes())
    assert outbox.read(name) == [{"call": "begin", "key": "k"}]
    store.write_bytes(f"{FOLDER}/study.json", b"[]")
    assert outbox.noted() == {}


# -- what is told of a study ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("http://u:p@h:1/x", "http://h:1/x"),
        ("see https://token@h/x and s3://id:se@cret@bucket/a", "see https://h/x and s3://bucket/a"),
        ("abfs://container@account.net/a: no", "abfs://container@account.net/a: no"),
        ("s3://b/a?secret_key=abc&region=eu", "s3://b/a?secret_key=***&region=eu"),
        ("hf://datasets/a@main b:c@d", "hf://datasets/a@main b:c@d"),
    ],
)
def test_credentials_are_taken_out_of_texts(text, plain):
    assert without_credentials(text) == plain


def test_tags_say_where_a_study_comes_from(store, monkeypatch, tmp_path):
    def git(*arguments):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, capture_output=True,
            text=True, check=True,
        ).stdout.strip()  # fmt: skip

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "mlflow.source.git.commit" not in origin.code_tags("key")
    git("init", "-q"), (tmp_path / "file").write_text("1"), git("add", "file"), git("commit", "-qm", "one")
    tags = origin.code_tags("key")
    assert (tags["mlflow.source.name"], tags["mlflow.source.git.commit"]) == ("raygeo", git("rev-parse", "HEAD"))
    (tmp_path / "file").write_text("2")
    assert origin.code_tags("key")["mlflow.source.git.commit"].endswith("-dirty")
    nodes = [
        {"Alive": True, "Resources": {"CPU": 48.0, "GPU": 4.0, "accelerator_type:L40S": 1.0}, "Labels": {}},
        {"Alive": True, "Resources": {"CPU": 8.0}, "Labels": {"ray.io/node-group": "cpus"}},
        {"Alive": False, "Resources": {}},
    ]
    monkeypatch.setattr(origin.ray, "nodes", lambda: nodes)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    tags = origin.cluster_tags()
    assert tags == {"raygeo.nodes": "1 x 48 CPU, 4 L40S, 1 x cpus (8 CPU)", "raygeo.ray_job": "raysubmit_1",
                    "mlflow.source.type": "JOB"}  # fmt: skip
    tracking = Tracking(store, "study", {"student": "http://u:p@h/model"}, {"raygeo.study": "key"})
    tracking.mark(tags)
    tracking.child("k", "sft", {})
    tracking.flush()
    parent, child = (tracking.remote.client.get_run(tracking.run_id(key)).data for key in (tracking.parent, "k"))
    assert parent.params == {"student": "http://h/model"}
    for run in (parent, child):
        assert tags.items() <= run.tags.items()
        assert run.tags["raygeo.study"] == "key"


def test_a_database_that_cannot_be_written_prints_no_stack(tmp_path, capfd):
    client = open_client(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.create_run("0")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON runs BEGIN SELECT no_such_function(); END")
        database.commit()
    with pytest.raises(MlflowException, match="no_such_function"):
        client.update_run(run.info.run_id, status="FINISHED")
    assert "Traceback" not in capfd.readouterr().err
