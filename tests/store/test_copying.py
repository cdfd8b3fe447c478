"""A copied store is the same store in another place."""

import os
import shutil
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from s3_cases import s3_server
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import BusyStoreError, StoreError
from raygeo.records import RunRecord
from raygeo.store import Store, copying
from raygeo.store.copying import copy_store
from raygeo.store.lease import find_lease, held
from raygeo.tables import to_arrow

ROWS = [{"stage": "s", "name": "n", "value": 1}]


@pytest.fixture
def source(store, tmp_path):
    """A store with something of every kind, its student linked."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "weights").write_text("weights")
    with store.making("students", "x") as folder:
        os.symlink(tmp_path / "hub" / "weights", folder / "weights")
    for number in range(3):
        with store.making("deltas", f"k{number}") as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(f"delta {number}")
    store.write_units({key: {"counts": to_arrow("counts", ROWS)} for key in "ab"})
    store.publish("counts", ["b"], revisions={"w": 4})
    runs = [RunRecord("sft", "k1", "finished", delta=store.uri("deltas", "k1")), RunRecord("lost", "k9", "failed")]
    store.publish_rows("runs", to_arrow("runs", [run.row() for run in runs]), {"w": 2})
    store.write_bytes("report.html", b"page")
    store.write_bytes("mlartifacts/1/figure.png", b"png")
    store.scratch()
    store.write_bytes("ray/x/y", b"z")
    return store


def check_same(source, target):
    for key in ("a", "b"):
        assert target.read_unit("counts", key).equals(source.read_unit("counts", key))
    assert target.table("counts").equals(source.table("counts"))
    assert (target.revisions("counts"), target.revisions("runs")) == ({"w": 4}, {"w": 2})
    for kind in ("students", "deltas"):
        assert target.folders(kind) == source.folders(kind)
        for key in source.folders(kind):
            assert content(target.folder(kind, key)) == content(source.folder(kind, key))
    assert target.read_bytes("report.html") == b"page"
    assert target.read_bytes("mlartifacts/1/figure.png") == b"png"
    assert target.table("runs")["delta"].to_pylist() == [target.uri("deltas", "k1"), None]
    for name in ("ray/x/y", "lease.json", "copying.json"):
        assert target.read_bytes(name) is None


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.name != "_COMPLETE"
    }


def test_a_copy_is_the_same_store(source, tmp_path):
    done = CliRunner().invoke(app, ["store", "copy", source.location, str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    shutil.rmtree(tmp_path / "hub")
    target = Store(tmp_path / "copy")
    assert not Path(target.folder("students", "x"), "weights").is_symlink()
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "weights").write_text("weights")
    check_same(source, target)


@pytest.mark.slow
def test_a_store_goes_to_s3_and_back(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("raygeo.store.lease.SETTLING", 0.1)
    with s3_server(monkeypatch) as s3:
        remote, again = Store(s3.uri("copy")), Store(tmp_path / "again")
        assert copy_store(source, remote) == []
        check_same(source, remote)
        assert copy_store(remote, again) == []
        check_same(source, again)


class Killed(Exception):
    pass


def test_an_interrupted_copy_is_taken_up(source, tmp_path, monkeypatch):
    target = Store(tmp_path / "copy")
    copied = []

    def tick(item):
        copied.append(item.path)
        if len(copied) == 4:
            raise Killed

    with pytest.raises(Killed):
        copy_store(source, target, tick=tick)
    assert target.read_bytes("report.html") is None
    with pytest.raises(StoreError, match="that was begun"):
        copy_store(Store(tmp_path / "other"), target)
    saved = []
    monkeypatch.setattr(
        Store, "save_folder", lambda self, kind, key, made: saved.append(key) or save(self, kind, key, made)
    )
    assert copy_store(source, target) == []
    assert len(saved) == 4 - len([path for path in copied if path.startswith(("deltas/", "students/"))])
    check_same(source, target)


def test_a_folder_that_was_made_again_meanwhile_is_copied_again(source, tmp_path):
    target = Store(tmp_path / "copy")

    def tick(item):
        if item.kind == "deltas":
            raise Killed

    with pytest.raises(Killed):
        copy_store(source, target, tick=tick)
    [key] = target.folders("deltas")
    source.delete_folder("deltas", key)
    with source.making("deltas", key) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("DELTA 0")
    assert copy_store(source, target) == []
    assert content(target.folder("deltas", key)) == {"sub/file": "DELTA 0"}


save = Store.save_folder


def test_what_is_damaged_is_not_passed_on_as_whole(source, tmp_path):
    Path(source.path("deltas", "k1", "sub", "file")).write_text("delta X")
    found = copy_store(source, Store(tmp_path / "copy"))
    assert [one.path for one in found] == ["deltas/k1"]
    assert not Store(tmp_path / "copy").has_folder("deltas", "k1")


def test_places_that_cannot_be_copied_to_are_refused(source, tmp_path):
    Store(tmp_path / "full").write_bytes("x", b"x")
    with pytest.raises(StoreError, match="already holds something"):
        copy_store(source, Store(tmp_path / "full"))
    for place in (source.location, source.path("copy"), str(tmp_path)):
        with pytest.raises(StoreError, match="in each other"):
            copy_store(source, Store(place))
    with held(source, "a study"), pytest.raises(BusyStoreError, match="a study by"):
        copy_store(source, Store(tmp_path / "copy"))


def test_a_place_that_is_refused_is_left_as_it_was(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "note").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    refusals = {
        "store": "in each other",
        "store/inner": "in each other",
        "store/deltas/inner": "in each other",
        ".": "in each other",
        "foreign": "already holds something",
        "foreign/note": "cannot be opened",
        "": "a path is empty",
    }
    for place, said in refusals.items():
        refused = CliRunner().invoke(app, ["store", "copy", "store", place]).exception
        assert isinstance(refused, StoreError)
        assert said in str(refused)
    assert sorted(tmp_path.rglob("*")) == before
    with held(source, "a study"):
        assert isinstance(CliRunner().invoke(app, ["store", "copy", "store", "new"]).exception, BusyStoreError)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_store_in_a_bucket_is_not_copied_into_itself(store, monkeypatch):
    with s3_server(monkeypatch) as s3:
        remote = Store(s3.uri("study"))
        remote.write_bytes("report.html", b"page")
        with pytest.raises(StoreError, match="in each other"):
            copying.check_copyable(remote, s3.uri("study/inner"))
        copying.check_copyable(remote, s3.uri("study-2"))
        copying.check_copyable(remote, store.location)
        copying.check_copyable(remote, s3.uri("study").replace("127.0.0.1", "127.0.0.2"))


def test_a_store_that_was_written_to_meanwhile_is_not_copied_whole(source, tmp_path):
    target = Store(tmp_path / "copy")

    def work(item):
        with held(source, "a study"):
            source.write_units({"later": {"counts": to_arrow("counts", ROWS)}})
            source.publish("counts", ["b", "later"], revisions={"w": 4})

    with pytest.raises(BusyStoreError, match="was written to while it was copied"):
        copy_store(source, target, tick=work)
    assert copy_store(source, target) == []
    assert target.table("counts").equals(source.table("counts"))
    check_same(source, target)


def test_a_store_that_is_at_work_when_its_copy_ends_is_not_copied_whole(source, tmp_path):
    with ExitStack() as stack, pytest.raises(BusyStoreError, match="a study by"):
        copy_store(
            source,
            Store(tmp_path / "copy"),
            tick=lambda item: None if find_lease(source) else stack.enter_context(held(source, "a study")),
        )
    assert copy_store(source, Store(tmp_path / "copy")) == []


def test_locations_in_a_database_move_with_it(tmp_path):
    target = Store(tmp_path / "new")
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE experiments (artifact_location)")
        database.execute("CREATE TABLE runs (artifact_uri)")
        database.execute("CREATE TABLE tags (key, value)")
        given = [
            "file:///old/store/mlartifacts",
            "/moved/mlartifacts",
            "s3://b/mlartifacts",
            "mlflow-artifacts:/1",
            None,
        ]
        database.executemany("INSERT INTO experiments VALUES (?)", [[one] for one in given])
        database.execute("INSERT INTO runs VALUES ('file:///old/store/mlartifacts/r1/artifacts')")
        tags = [("raygeo.key", "study:/old/store"), ("raygeo.key", "k:base"), ("other", "study:/old/store")]
        database.executemany("INSERT INTO tags VALUES (?, ?)", tags)
        copying.relocate(database, "/old/store", target)
        here = f"file://{target.root}/mlartifacts"
        assert [row[0] for row in database.execute("SELECT * FROM experiments")] == [here, here, *given[2:]]
        assert database.execute("SELECT * FROM runs").fetchall() == [(f"{here}/r1/artifacts",)]
        moved = [row[0] for row in database.execute("SELECT value FROM tags")]
        assert moved == [f"study:{target.location}", "k:base", "study:/old/store"]


def test_locations_of_a_store_below_a_folder_of_artifacts_stay_where_they_belong(tmp_path):
    store = Store(tmp_path / "mlartifacts" / "store")
    here = f"file://{store.root}/mlartifacts/r1/artifacts"
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE runs (artifact_uri)")
        database.execute("INSERT INTO runs VALUES ('/old/mlartifacts/store/mlartifacts/r1/artifacts')")
        for _ in range(2):
            copying.relocate(database, store.location, store)
            assert database.execute("SELECT * FROM runs").fetchall() == [(here,)]
