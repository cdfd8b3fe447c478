import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import fs

import raygeo
from raygeo.errors import StoreError
from raygeo.store import Store, StoredPath

ROWS = [{"stage": "s", "name": "n", "value": 1}]


@pytest.fixture(params=["local", "remote"])
def any_store(request, tmp_path, monkeypatch):
    """A local store, and one reached as a URI is: not local, opened through a filesystem without rename."""
    if request.param == "local":
        return Store(tmp_path / "store")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "bucket").mkdir()
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    monkeypatch.setattr("raygeo.store.open_uri", lambda uri: (bucket, "study"))
    return Store("s3://bucket/study")


def test_units_are_published_in_order(any_store):
    any_store.write_unit("b", {"counts": [{"stage": "s", "name": "b", "value": 2}]})
    any_store.write_unit("a", {"counts": ROWS})
    assert any_store.units("counts") == {"a", "b"}
    any_store.publish("counts", ["b", "a"])
    assert any_store.table("counts")["name"].to_pylist() == ["b", "n"]


def test_a_unit_is_finished_when_all_its_tables_are(store):
    store.write_unit("x", {"counts": ROWS, "rejected": []})
    store.write_unit("y", {"counts": ROWS})
    assert store.finished(("counts", "rejected")) == {"x"}


def test_folders_appear_whole(any_store, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file.txt").write_text("hello")
    assert not any_store.has_folder("models", "k")
    any_store.save_folder("models", "k", source)
    assert any_store.has_folder("models", "k")
    assert not source.exists()
    path = any_store.folder("models", "k")
    assert Path(path, "sub", "file.txt").read_text() == "hello"
    assert os.fspath(any_store.stored("models", "k")) == path
    assert Path(any_store.stored("models", "k", "sub", "file.txt")).read_text() == "hello"
    assert any_store.is_local or isinstance(any_store.stored("models", "k"), StoredPath)


def test_an_incomplete_folder_is_refused(store):
    os.makedirs(store.path("models", "half"))
    with pytest.raises(StoreError, match="incomplete"):
        store.folder("models", "half")


def test_a_killed_writer_leaves_no_unit(tmp_path):
    script = (
        "import os, signal\n"
        "from raygeo.store import Store\n"
        "import raygeo.store\n"
        "raygeo.store.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store({str(tmp_path / 's')!r}).write_unit('k', {{'counts': []}})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert Store(tmp_path / "s").units("counts") == set()


def test_a_damaged_table_is_named(store):
    store.write_unit("k", {"counts": ROWS})
    with open(store.path("units", "counts", "k.parquet"), "wb") as file:
        file.write(b"PAR1 broken")
    with pytest.raises(StoreError, match="k\\.parquet cannot be read"):
        store.publish("counts", ["k"])


def test_bytes_round_trip(any_store):
    assert any_store.read_bytes("a/b.txt") is None
    any_store.write_bytes("a/b.txt", b"x")
    assert any_store.read_bytes("a/b.txt") == b"x"


def test_open_refuses_what_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        raygeo.open(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_tables_are_arrow_and_unknown_ones_are_refused(store):
    store.write_unit("k", {"counts": ROWS})
    store.publish("counts", ["k"])
    opened = raygeo.open(store.location)
    assert opened.table("counts").to_pandas()["value"].tolist() == [1]
    assert opened.table("paths").num_rows == 0
    with pytest.raises(StoreError, match="there is no table 'count'"):
        opened.table("count")


def test_a_store_travels_as_its_location(store):
    assert pickle.loads(pickle.dumps(store)).root == store.root


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "file" / "store")
