"""Commands that open a store or ask Ray; those that only tell are in ``test_cli``."""

import json
import socket
import sqlite3

import pytest
import torch
import yaml
from safetensors.torch import load_file
from study_cases import save_parts, tiny_study
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import ClusterError, ConfigError, DataError, NoStoreError, StoreError, StudentError
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.tables import to_arrow

pytestmark = pytest.mark.cluster


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("run", "nothing.yaml"), ConfigError, "cannot be read"),
        (("report", "no-such-store"), StoreError, "no store"),
        (("ui", "no-such-store"), StoreError, "no store"),
    ],
)
def test_what_is_not_there_is_named(arguments, error, said):
    result = run(*arguments)
    assert isinstance(result.exception, error)
    assert said in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "PLACE"),
        ("report", "PLACE"),
        ("ui", "PLACE"),
        ("export", "sft", "--store", "PLACE", "--out", "out"),
        ("store", "ls", "PLACE"),
        ("store", "rm", "PLACE", "sft", "--yes"),
        ("store", "gc", "PLACE", "--yes"),
        ("store", "verify", "PLACE"),
        ("store", "copy", "PLACE", "out"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
@pytest.mark.parametrize("kind", ["empty", "foreign"])
def test_a_folder_that_is_no_store_is_refused_and_left_as_it_is(arguments, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / kind).mkdir()
    if kind == "foreign":
        (tmp_path / kind / "checkpoints" / "last.tmp").mkdir(parents=True)
        (tmp_path / kind / "studies").mkdir()
        (tmp_path / kind / "studies" / "mine.yaml").write_text("name: mine")
        (tmp_path / kind / "study.yaml").write_text("name: mine")
    before = sorted(tmp_path.rglob("*"))
    refused = run(*(argument.replace("PLACE", kind) for argument in arguments)).exception
    assert isinstance(refused, NoStoreError)
    assert str(refused).endswith(f"{kind} holds neither a study nor a comparison; make one with `raygeo run`.")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_is_looked_for_where_studies_put_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Store(tmp_path / "store" / "mine").publish_rows("runs", to_arrow("runs", []))
    (tmp_path / "study.yaml").write_text("name: mine")
    assert str(run("show", "mine").exception) == "there is no store at 'mine'; did you mean 'store/mine'?"
    assert str(run("report", "study.yaml").exception) == "'study.yaml' is a file; give the folder of a store."


def test_a_report_says_what_its_page_lacks(store, no_figures):
    store.publish_rows("runs", to_arrow("runs", []))
    store.write_bytes("tables/accuracy.parquet", b"PAR1")
    done = run("report", store.location)
    assert done.exit_code == 0
    assert store.path("report.html") in done.output
    assert "the table accuracy failed and was left out" in done.output


def test_ui_says_that_nothing_was_logged(store):
    store.publish_rows("runs", to_arrow("runs", []))
    refused = run("ui", store.location).exception
    assert isinstance(refused, StoreError)
    assert "a comparison is not" in str(refused)
    assert store.read_bytes("mlflow.db") is None


def test_ui_says_that_its_port_is_taken(store):
    store.publish_rows("runs", to_arrow("runs", []))
    sqlite3.connect(store.path("mlflow.db")).close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = run("ui", store.location, "--port", str(port)).exception
    assert isinstance(refused, ConfigError)
    assert f"port {port} cannot be used: Address already in use" in str(refused)


def test_ui_names_the_tracking_server(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    store.publish_rows("runs", to_arrow("runs", []))
    assert "http://127.0.0.1:9" in run("ui", store.location).output


def test_a_stage_that_does_not_exist_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    result = run("run", str(tmp_path / "study.yaml"), "--until", "dinner")
    assert isinstance(result.exception, ConfigError)
    assert "the stages are student, rollouts" in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_a_dry_run_checks_and_plans_and_makes_nothing(ray_session, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "deep" / "store"))))
    result = run("run", str(file), "--dry-run")
    assert result.exit_code == 0, result.output
    assert "train" in result.output
    assert "geometry" in result.output
    assert "in all: " in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
    refused = run("run", str(file), "--dry-run", "--set", "actors.cpus=999")
    assert isinstance(refused.exception, ClusterError)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_a_dry_run_says_where_no_store_can_be_made(ray_session, tmp_path):
    (tmp_path / "file").write_text("")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tiny_study()))
    for place in (tmp_path / "file" / "store", tmp_path / "file"):
        result = run("run", str(file), "--dry-run", "--store", str(place))
        assert isinstance(result.exception, StoreError)
        assert "Not a directory" in str(result.exception)
        plan = json.loads(run("plan", str(file), "--store", str(place), "--json").output)
        assert "Not a directory" in plan["here"][0]


def test_a_dry_run_that_is_quiet_prints_what_is_wrong_alone(ray_session, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    result = run("run", str(file), "--dry-run", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_what_a_run_would_refuse_of_its_rollouts_and_adapters_is_planned_and_rehearsed(ray_session, tmp_path):
    file, refused = tmp_path / "study.yaml", "cannot hold out 0.999 of 30 prompts"
    file.write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    many = ("--set", "rollouts.heldout=0.999")
    result = run("run", str(file), "--dry-run", *many)
    assert isinstance(result.exception, DataError)
    assert refused in str(result.exception)
    planned = run("plan", str(file), *many)
    assert planned.exit_code == 1
    assert f"a run would refuse it: {refused}" in planned.output
    plan = json.loads(run("plan", str(file), *many, "--json").output)
    assert refused in plan["refused"][0]
    assert run("plan", str(file), *many, "--data", "100:10:20").exit_code == 0
    unfit = run("run", str(file), "--dry-run", "--set", "training.lora={target_modules: [qproj]}")
    assert isinstance(unfit.exception, StudentError)
    assert "did you mean 'q_proj'" in str(unfit.exception)


def test_models_without_weights_that_are_read_are_planned_and_not_run(ray_session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = tiny_study(store=str(tmp_path / "store"), **save_parts(tmp_path))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    assert run("run", "study.yaml", "--dry-run").exit_code == 0
    weights = tmp_path / "student" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    refused = run("run", "study.yaml", "--dry-run").exception
    assert isinstance(refused, StudentError)
    assert "holds no model.safetensors" in str(refused)
    assert json.loads(run("plan", "study.yaml", "--json").output)["here"] == [str(refused)]
    loss = ("--set", "runs=[{loss: {type: kd-forward}}]")
    teacher = run(
        "run",
        "study.yaml",
        "--dry-run",
        "--set",
        "student.model=builtin:word-problems",
        *loss,
        "--set",
        "teacher.model=nope",
    )
    assert "the model 'nope' is neither a folder nor a hub id" in str(teacher.exception)
    assert json.loads(run("plan", "study.yaml", "--json", "--shapes", "student").output)["here"] == []


def test_a_plan_says_that_this_machine_has_too_few_cores(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    plan = json.loads(run("plan", str(file), "--json", "--set", "training.workers=999").output)
    assert "asks for 999 x (1 CPU), and this machine has" in plan["here"][0]
    assert json.loads(run("plan", str(file), "--json").output)["here"] == []


def test_a_plan_as_json_is_one_object(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    plan = json.loads(run("plan", str(tmp_path / "study.yaml"), "--device", "h100", "--json").output)
    assert (plan["study"], plan["fits"]) == ("tiny", True)
    training = next(need for need in plan["needs"] if need["what"].startswith("train "))
    assert training["units"] == 1
    assert training["device"]
    assert training["problem"] is None


def test_a_store_is_listed_as_json(store):
    store.save_folder("deltas", "key", _folder(store))
    row = RunRecord("sft", "key", "finished").row()
    store.publish_rows("runs", to_arrow("runs", [row]))
    listed = json.loads(run("store", "ls", store.location, "--json").output)
    assert listed["runs"][0]["run"] == "sft"
    assert listed["runs"][0]["deltas"] > 0
    assert {kind["kind"] for kind in listed["kinds"]} == {"deltas", "tables"}
    assert listed["bytes"] == sum(kind["bytes"] for kind in listed["kinds"])
    assert listed["lease"] is None


def _folder(store):
    folder = store.scratch()
    (folder / "delta.safetensors").write_bytes(b"0" * 100)
    return folder


@pytest.mark.parametrize("command", ["run", "plan", "dry-run"])
def test_a_file_that_is_no_stores_is_not_overwritten(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    mine = f"# mine\n{yaml.safe_dump(tiny_study())}"
    (tmp_path / "study.yaml").write_text(mine)
    arguments = {"run": ["run"], "plan": ["plan"], "dry-run": ["run", "--dry-run"]}[command]
    done = CliRunner().invoke(app, [*arguments, "study.yaml", "--store", "."])
    said = " ".join(f"{done.output} {done.exception}".split())
    assert "is no store and holds a file study.yaml, which would be overwritten" in said
    assert (tmp_path / "study.yaml").read_text() == mine
    assert [file.name for file in tmp_path.iterdir()] == ["study.yaml"]
