import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import fs
from safetensors.torch import save_file

from raygeo.errors import FullStoreError, StoreError
from raygeo.settings import split_key, unit_key
from raygeo.store import Store, StoredPath, is_full, outdated_units
from raygeo.tables import SCHEMAS, about, schema, to_arrow

ROWS = [{"stage": "s", "name": "n", "value": 1}]


@pytest.fixture(params=["local", "remote"])
def any_store(request, tmp_path, monkeypatch):
    """A local store, and one reached as a URI is: not local, opened through a filesystem without rename."""
    if request.param == "local":
        return Store(tmp_path / "store")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "bucket").mkdir()
    bucket = fs.SubTreeFileSystem(str(tmp_path / "bucket"), fs.LocalFileSystem())
    monkeypatch.setattr("raygeo.store.location.open_uri", lambda uri: (bucket, "study"))
    return Store("s3://bucket/study")


def test_units_are_published_in_order(any_store):
    any_store.write_unit("b", {"counts": [{"stage": "s", "name": "b", "value": 2}]})
    any_store.write_unit("a", {"counts": ROWS})
    assert any_store.units("counts") == {"a", "b"}
    any_store.publish("counts", ["b", "a"])
    assert any_store.table("counts")["name"].to_pylist() == ["b", "n"]


def unit(*names):
    return {"counts": to_arrow("counts", [{"stage": "s", "name": name, "value": 1} for name in names])}


def test_units_that_were_stored_together_are_read_and_published_like_others(any_store):
    any_store.write_units({"b": unit("b1", "b2"), "none": unit(), "a": unit("a1")})
    any_store.write_units({"c": unit("c1"), "d": unit("d1")})
    any_store.write_unit("alone", unit("alone"))
    again = Store(any_store.location)
    for store in (any_store, again):
        assert store.units("counts") == {"a", "b", "c", "d", "none", "alone"}
        assert store.read_unit("counts", "b")["name"].to_pylist() == ["b1", "b2"]
        assert store.read_unit("counts", "none").num_rows == 0
        published = store.publish("counts", ["a", "alone", "d", "none", "b"])
        assert published["name"].to_pylist() == ["a1", "alone", "d1", "b1", "b2"]
        assert store.table("counts").equals(published)
        store.publish_large("counts", ["d", "alone", "b"], {"w": 2})
        assert store.table("counts")["name"].to_pylist() == ["d1", "alone", "b1", "b2"]
        assert store.revisions("counts") == {"w": 2}
    assert again.unversioned() == 1


def test_units_that_another_process_stored_are_found(any_store):
    assert any_store.units("counts") == set()
    other = Store(any_store.location)
    other.write_units({"a": unit("a1"), "b": unit("b1")})
    assert any_store.read_unit("counts", "b")["name"].to_pylist() == ["b1"]
    with pytest.raises(StoreError, match=r"c\.parquet cannot be read"):
        any_store.read_unit("counts", "c")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-9])


def rewrite(file):
    pq.write_table(pq.read_table(file).replace_schema_metadata(), file)


@pytest.mark.parametrize("damage", [truncate, rewrite])
def test_a_damaged_file_of_units_is_named_and_holds_none(store, caplog, damage):
    store.write_units({"a": unit("a1"), "b": unit("b1")})
    [file] = Path(store.path("units", "counts")).iterdir()
    store.write_unit("c", unit("c1"))
    damage(file)
    again = Store(store.location)
    assert again.units("counts") == {"c"}
    assert f"{file} is damaged" in caplog.text
    again.write_units({"a": unit("a1"), "b": unit("b1")})
    assert Store(store.location).units("counts") == {"a", "b", "c"}


def test_units_of_earlier_versions_are_read(store):
    folder = Path(store.path("units", "rollouts"))
    folder.mkdir(parents=True)
    logprobs = pa.array([[-0.5], None], pa.list_(pa.float32()))
    old = pa.table({"prompt": pa.array(["p", "q"], pa.string()), "logprobs": logprobs, "other": [1, 2]})
    pq.write_table(old, folder / "old.parquet")
    read = store.read_unit("rollouts", "old")
    assert read.schema == SCHEMAS["rollouts"]
    assert read.select(["prompt", "logprobs", "gold"]).to_pylist() == [
        {"prompt": "p", "logprobs": [-0.5], "gold": None},
        {"prompt": "q", "logprobs": None, "gold": None},
    ]
    store.publish_large("rollouts", ["old"])
    assert store.table("rollouts").equals(read)
    assert about(store.table("rollouts").schema) == about(SCHEMAS["rollouts"])
    rows = store.read_rows("rollouts", "old", ["prompt"], {"prompt": "q"})
    assert rows.to_pylist() == [{"prompt": "q"}]


def test_a_table_that_comes_in_pieces_appears_whole_or_not_at_all(any_store):
    pieces = [unit(name)["counts"] for name in "ab"]
    any_store.write_unit("k", {"counts": iter(pieces)})
    assert any_store.read_unit("counts", "k")["name"].to_pylist() == ["a", "b"]

    def broken():
        yield pieces[0]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        any_store.write_unit("half", {"counts": broken()})
    assert any_store.units("counts") == {"k"}


def test_a_unit_is_finished_when_all_its_tables_are(store):
    store.write_unit("x", {"counts": ROWS, "set_aside": []})
    store.write_unit("y", {"counts": ROWS})
    assert store.finished(("counts", "set_aside")) == {"x"}


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


def test_a_folder_that_several_processes_make_at_once_is_of_one_of_them_whenever_it_is_there(store):
    rounds = 40
    for i in range(0, rounds, 2):
        os.makedirs(store.path("kind", str(i), "left"))
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from raygeo.store import Store\n"
        "store = Store(sys.argv[1])\n"
        f"for i in range({rounds}):\n"
        "    if not store.has_folder('kind', str(i)):\n"
        "        with store.making('kind', str(i)) as folder:\n"
        "            for name in 'ab':\n"
        "                (folder / name).write_text(str(os.getpid()))\n"
        "    made = Path(store.folder('kind', str(i)))\n"
        "    assert sorted(os.listdir(made)) == ['_COMPLETE', 'a', 'b']\n"
        "    assert (made / 'a').read_text() == (made / 'b').read_text()\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", script, store.location]) for _ in range(3)]
    assert [process.wait() for process in several] == [0, 0, 0]
    assert len(store.folders("kind")) == rounds
    assert os.listdir(store.path("scratch")) == []


def test_an_incomplete_folder_is_replaced(store):
    os.makedirs(store.path("models", "half", "left"))
    folder = store.scratch()
    (folder / "file").touch()
    store.save_folder("models", "half", folder)
    assert sorted(os.listdir(store.folder("models", "half"))) == ["_COMPLETE", "file"]


def test_an_incomplete_folder_is_refused(store):
    os.makedirs(store.path("models", "half"))
    with pytest.raises(StoreError, match="incomplete"):
        store.folder("models", "half")


def test_a_killed_writer_leaves_no_unit(tmp_path):
    script = (
        "import os, signal\n"
        "from raygeo.store import Store\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store({str(tmp_path / 's')!r}).write_unit('k', {{'counts': []}})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert Store(tmp_path / "s").units("counts") == set()


def test_a_writer_killed_between_two_tables_leaves_no_unit(tmp_path):
    script = (
        "import os, signal\n"
        "from raygeo.store import Store\n"
        "from raygeo.tables import to_arrow\n"
        "class Dies(Store):\n"
        "    def _write_parquet(self, table, path):\n"
        "        if 'set_aside' in path: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        super()._write_parquet(table, path)\n"
        "unit = {name: to_arrow(name, []) for name in ('counts', 'set_aside')}\n"
        f"Dies({str(tmp_path / 's')!r}).write_units({{'a': unit, 'b': unit}})\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    store = Store(tmp_path / "s")
    assert store.units("counts") == {"a", "b"}
    assert store.finished(("counts", "set_aside")) == set()
    rows = {"counts": to_arrow("counts", []), "set_aside": to_arrow("set_aside", [])}
    store.write_units({"a": rows})
    assert store.finished(("counts", "set_aside")) == {"a"}


def test_a_damaged_table_is_named(store):
    store.write_unit("k", {"counts": ROWS})
    with open(store.path("units", "counts", "k.parquet"), "wb") as file:
        file.write(b"PAR1 broken")
    with pytest.raises(StoreError, match="k\\.parquet cannot be read"):
        store.publish("counts", ["k"])
    store.publish_rows("counts", to_arrow("counts", ROWS))
    file = Path(store.path("tables", "counts.parquet"))
    file.write_bytes(file.read_bytes().replace(b"stage", b"\x96tage"))
    with pytest.raises(StoreError, match="counts\\.parquet cannot be read"):
        store.columns("counts")


def test_bytes_round_trip(any_store):
    assert any_store.read_bytes("a/b.txt") is None
    any_store.write_bytes("a/b.txt", b"x")
    assert any_store.read_bytes("a/b.txt") == b"x"


def test_open_refuses_what_is_not_there(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        Store(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()


def test_tables_are_arrow_and_unknown_ones_are_refused(store):
    store.write_unit("k", {"counts": ROWS})
    store.publish("counts", ["k"])
    opened = Store(store.location, create=False)
    assert opened.table("counts").to_pandas()["value"].tolist() == [1]
    assert opened.table("runs").num_rows == 0
    with pytest.raises(StoreError, match=r"there is no table 'count' in .*; it has counts"):
        opened.table("count")


def test_tables_that_no_unit_made_say_so_and_what_they_are(store):
    columns = schema("Measured lengths.", "run: text; length: float")
    made = to_arrow("lengths", [{"run": "a", "length": 1.5}], columns)
    store.publish_rows("lengths", made, {"lengths": 2})
    assert store.table("lengths").to_pylist() == [{"run": "a", "length": 1.5}]
    assert about(pq.read_schema(store.path("tables", "lengths.parquet"))) == "Measured lengths."
    assert store.revisions("lengths") == {"lengths": 2}
    assert store.revisions("nothing") is None
    assert not Path(store.path("units")).exists()


def test_units_of_other_revisions_are_counted_in_words():
    assert split_key(unit_key((2, 1), "a"))[1] == "2.1"
    made = {unit_key(1, "a"), unit_key(1, "b"), unit_key(2, "c"), "0123456789abcdef"}
    wanted = [unit_key(2, "a"), unit_key(2, "b"), unit_key(2, "c"), unit_key(2, "d")]
    said = outdated_units(made, (key for key in wanted if key not in made))
    assert said == "2 units of revision 1 made anew by revision 2, which changed the numbers"
    assert outdated_units(made, []) == ""


def test_a_store_travels_as_its_location(store):
    assert pickle.loads(pickle.dumps(store)).root == store.root


def test_a_full_disk_is_told_with_path_and_space_and_loses_nothing(small_disk):
    store = Store(small_disk / "store")
    store.write_unit("k", {"counts": ROWS})
    for _ in range(2):
        with pytest.raises(FullStoreError, match=r"store/big cannot be written(.|\n)* of 1 MiB are free at ") as full:
            store.write_bytes("big", b"0" * 2**21)
    assert is_full(full.value)
    assert [path.name for path in small_disk.rglob("*big*")] == []
    assert store.read_unit("counts", "k").to_pylist() == ROWS
    store.write_bytes("small", b"0")


@pytest.mark.parametrize("how", ["torch", "safetensors", "npy", "npz"])
def test_every_writer_of_tensors_is_understood_when_the_disk_is_full(small_disk, how):
    numbers = torch.zeros(2**20)
    write = {
        "torch": lambda path: torch.save(numbers, path),
        "safetensors": lambda path: save_file({"numbers": numbers}, path),
        "npy": lambda path: np.save(path, numbers.numpy()),
        "npz": lambda path: np.savez(path, numbers.numpy()),
    }[how]
    with pytest.raises(FullStoreError, match="because a disk is full"), Store(small_disk / "store").writing():
        write(str(small_disk / f"file.{how}"))


def test_other_errors_are_not_taken_for_a_full_disk(store):
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    with pytest.raises(ZeroDivisionError), store.writing():
        raise ZeroDivisionError
    with pytest.raises(StoreError, match="there cannot be written: no"), store.writing("there"):
        raise OSError("no")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="it names no bucket"):
        Store("s3://")
    with pytest.raises(StoreError, match="too long for a name"):
        Store(tmp_path).has_folder("deltas", "x" * 300)


def write_file(store, folder):
    store.write_bytes("made/k/file", b"x")


def put_file(store, folder):
    store.put_file(folder / "file", "made/k/file")


def save_folder(store, folder):
    store.save_folder("made", "k", folder)


def add_to_folder(store, folder):
    store.add_to_folder("made", "k", folder)


@pytest.mark.parametrize("write", [write_file, put_file, save_folder, add_to_folder])
def test_what_has_its_name_is_on_its_disk(tmp_path, monkeypatch, write):
    store, synced, sync = Store(tmp_path / "store"), set(), os.fsync

    def see(file):
        synced.add(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "fsync", see)
    with store.scratch_folder() as folder:
        (folder / "file").write_bytes(b"x")
        write(store, folder)
    assert os.stat(store.path("made", "k", "file")).st_ino in synced
