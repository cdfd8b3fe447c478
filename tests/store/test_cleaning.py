"""What goes by `raygeo store rm` and `gc`, and what stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from s3_cases import s3_server
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import BusyStoreError, ConfigError
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.store.cleaning import clear_scratch, left_overs, named, unneeded
from raygeo.store.contents import Contents
from raygeo.store.lease import held
from raygeo.store.process import machine
from raygeo.tables import to_arrow

ROWS = [{"stage": "s", "name": "n", "value": 1}]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def any_store(request, tmp_path, monkeypatch):
    if request.param == "local":
        yield Store(tmp_path / "store")
        return
    monkeypatch.setattr("raygeo.store.lease.SETTLING", 0.1)
    with s3_server(monkeypatch) as s3:
        yield Store(s3.uri("study"))


def put_folder(store, kind, key):
    with store.making(kind, key) as folder:
        (folder / "file").write_text(f"{kind} {key}")


def put_run(store, key):
    put_folder(store, "deltas", key)
    for table in ("runs", "training_curves"):
        store.write_unit(key, {table: []})


def study(store, name, *, units=(), folders=(), whole=True):
    """What a study leaves that needs these units of ``counts`` and these students."""
    with store.noting(name) as ledger:
        for key in units:
            store.write_unit(key, {"counts": ROWS})
        for key in folders:
            put_folder(store, "students", key)
        ledger.whole = whole


def paths(removals):
    return {removal.item.path for removal in removals}


def gone(store):
    return {item.path for item in Contents(store).items.values() if item.files}


def run(*arguments):
    return CliRunner().invoke(app, ["store", *arguments])


def test_units_and_folders_that_no_study_needs_go(any_store):
    study(any_store, "one", units=["a", "b"], folders=["x", "y"])
    study(any_store, "two", units=["b", "c"], folders=["y"])
    any_store.write_units({key: {"counts": to_arrow("counts", ROWS)} for key in ("d", "b")})
    study(any_store, "one", units=["b"], folders=["y"])
    found, why = unneeded(Contents(any_store))
    assert why == ""
    assert paths(found) == {"units/counts/a.parquet", "students/x"}
    assert run("gc", any_store.location, "--yes").exit_code == 0
    assert any_store.units("counts") == {"b", "c", "d"}
    assert any_store.folders("students") == ["y"]
    assert paths(unneeded(Contents(any_store))[0]) == set()


def test_nothing_goes_of_what_may_be_needed(store):
    store.write_unit("a", {"counts": ROWS})
    assert unneeded(Contents(store)) == ([], unneeded(Contents(store))[1])
    assert "was not noted" in unneeded(Contents(store))[1]
    study(store, "killed", units=["b"], whole=False)
    study(store, "one", units=["c"])
    found, why = unneeded(Contents(store))
    assert found == []
    assert "killed did not come to an end" in why


def test_what_is_read_is_needed_as_what_is_made_is(store):
    for key in "abc":
        store.write_unit(key, {"counts": ROWS})
        put_folder(store, "students", key)
    with store.noting("study") as ledger:
        store.publish("counts", ["a"])
        store.refer(["counts"], ["b"])
        store.has_folder("students", "a")
        store.stored("students", "b")
        ledger.whole = True
    assert paths(unneeded(Contents(store))[0]) == {"units/counts/c.parquet", "students/c"}


def test_what_killed_writers_left_goes(any_store):
    put_run(any_store, "done")
    for key in ("done-00000004", "begun-00000002", "begun-00000006"):
        put_folder(any_store, "checkpoints", key)
    any_store.write_bytes("checkpoints/begun-00000008/part", b"x")
    any_store.write_unit("k-r1", {"counts": ROWS})
    for key in ("k-r1", "l-r1"):
        any_store.write_bytes(f"journals/{key}/000000.safetensors", b"x")
    any_store.write_bytes("ray/abc/note", b"x")
    expected = {"checkpoints/done-00000004", "checkpoints/begun-00000002", "journals/k-r1", "ray/abc"}
    if any_store.is_local:
        any_store.write_bytes("scratch/0000-1-0", b"x")
        expected.add("scratch/0000-1-0")
    else:
        version = any_store.manifest("deltas", "done").version
        any_store.write_bytes("deltas/done/0000/file", b"lost")
        expected.add("deltas/done")
    assert paths(left_overs(Contents(any_store))) == expected
    assert run("gc", any_store.location, "--yes").exit_code == 0
    assert left_overs(Contents(any_store)) == []
    assert Path(any_store.folder("deltas", "done"), "file").read_text() == "deltas done"
    assert any_store.has_folder("checkpoints", "begun-00000006")
    assert any_store.is_local or any_store.manifest("deltas", "done").version == version


KILLED = """
import os, signal, sys
from raygeo.store import Store
store = Store(sys.argv[1])
os.rename = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
with store.making("deltas", "k") as folder:
    (folder / "file").write_text("x")
"""


def test_a_writer_that_is_killed_leaves_nothing_to_the_next_owner(store):
    assert subprocess.run([sys.executable, "-c", KILLED, store.location], check=False).returncode == -9
    assert os.listdir(store.path("scratch"))
    assert store.folders("deltas") == []
    with held(store, "again"):
        assert os.listdir(store.path("scratch")) == []


def test_a_living_process_keeps_its_scratch(store):
    mine = store.scratch()
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead = Path(store.path("scratch", f"{machine()}-{process.pid}-00000000"))
    dead.mkdir()
    elsewhere = Path(store.path("scratch", f"00000000-{process.pid}-00000000"))
    elsewhere.mkdir()
    clear_scratch(store)
    assert mine.exists()
    assert not dead.exists()
    assert elsewhere.exists()
    assert paths(left_overs(Contents(store))) == {f"scratch/{elsewhere.name}"}


def test_a_run_goes_with_its_weights_and_its_record(any_store):
    for key in ("k1", "k2"):
        put_run(any_store, key)
        put_folder(any_store, "snapshots", key)
        put_folder(any_store, "checkpoints", f"{key}-00000002")
    rows = [RunRecord(name, key, "finished").row() for name, key in (("sft", "k1"), ("dpo", "k2"))]
    any_store.publish_rows("runs", to_arrow("runs", rows))
    assert run("rm", any_store.location, "sft").exit_code == 1
    assert any_store.has_folder("deltas", "k1")
    done = run("rm", any_store.location, "sft", "--yes")
    assert done.exit_code == 0
    assert "of the run sft" in done.output
    assert [any_store.folders(kind) for kind in ("deltas", "snapshots", "checkpoints")] == [
        ["k2"], ["k2"], ["k2-00000002"]
    ]  # fmt: skip
    assert any_store.finished(("runs", "training_curves")) == {"k2"}


def test_a_study_goes_with_what_only_it_needs(store):
    study(store, "one", units=["a", "b"], folders=["x", "y"])
    study(store, "two", units=["b"], folders=["y"])
    store.write_bytes("study.yaml", yaml.safe_dump({"name": "one"}).encode())
    store.publish("counts", ["a"])
    assert run("rm", store.location, "two", "--yes").exit_code == 0
    assert store.units("counts") == {"a", "b"}
    assert store.names() == ["counts"]
    assert run("rm", store.location, "one", "--yes").exit_code == 0
    assert gone(store) <= {"lease.lock"}


def test_a_kind_goes_and_other_names_are_refused(store):
    put_folder(store, "checkpoints", "k-1")
    store.write_unit("a", {"counts": ROWS})
    with pytest.raises(ConfigError, match="did you mean 'checkpoints'"):
        named(Contents(store), "checkpoint")
    with pytest.raises(ConfigError, match="did you mean 'counts'"):
        named(Contents(store), "Count")
    assert run("rm", store.location, "checkpoints", "counts", "--yes").exit_code == 0
    assert store.folders("checkpoints") == []
    assert store.units("counts") == set()


def test_a_store_in_use_is_left_alone(store, monkeypatch):
    with held(store, "a study"):
        for command in (["gc", store.location], ["rm", store.location, "x"]):
            assert isinstance(run(*command).exception, BusyStoreError)
        listed = run("ls", store.location)
    assert f"in use: a study by {os.environ.get('USER', 'root')}" in " ".join(listed.output.split())


def test_a_listing_names_studies_runs_and_kinds(any_store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    study(any_store, "one", units=["a"], folders=["x"])
    put_run(any_store, "k1")
    any_store.publish_rows("runs", to_arrow("runs", [RunRecord("sft", "k1", "finished").row()]))
    any_store.write_bytes("ray/abc/note", b"x")
    output = run("ls", any_store.location).output
    for part in ("one", "sft", "finished", "units/counts", "students", "nobody is writing", "1 B are left over"):
        assert part in output
