"""A store on a real S3 server of this machine, at a URI with a query."""

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from s3_cases import s3_server

from raygeo.cluster.execution import run_workload
from raygeo.data.tokens import RolloutTokens, write_tokens
from raygeo.errors import FullStoreError, StoreError
from raygeo.store import Store
from raygeo.store.location import extended
from raygeo.tables import SCHEMAS, to_arrow
from raygeo.workload import Task, Workload

pytestmark = pytest.mark.slow
ROWS = [{"stage": "s", "name": "n", "value": 1}]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        with s3_server(patch) as server:
            yield server


@pytest.fixture
def remote(s3, request):
    return Store(s3.uri(re.sub(r"\W", "-", request.node.name)))


def folder_of(store, content, name="file"):
    folder = store.scratch()
    (folder / "sub").mkdir()
    (folder / "sub" / name).write_text(content)
    return folder


def test_paths_go_before_the_query(s3):
    location = s3.uri("study")
    assert extended(location, "-0.5") == s3.uri("study-0.5")
    assert extended(f"{location}", "") == location
    assert Store(location).uri("ray", "x") == s3.uri("study/ray/x")
    assert Store(s3.uri("study/")).location == location
    assert extended("/a?b/", "/c") == "/a?b/c"
    assert pickle.loads(pickle.dumps(Store(location))).location == location
    with pytest.raises(StoreError) as refused:
        Store("s3://key:secret@bucket/[x]")
    assert "secret" not in str(refused.value)


def test_units_tables_and_files(remote):
    remote.write_unit("a", {"counts": ROWS})
    remote.write_units({name: {"counts": to_arrow("counts", ROWS)} for name in "bc"})
    assert remote.units("counts") == {"a", "b", "c"}
    remote.publish_large("counts", ["c", "a"], {"w": 3})
    opened = Store(remote.location, create=False)
    assert opened.table("counts").to_pylist() == ROWS * 2
    assert opened.revisions("counts") == {"w": 3}
    assert opened.read_bytes("nothing") is None
    opened.write_bytes("x/y", b"z")
    assert remote.read_bytes("x/y") == b"z"


def test_folders_appear_whole_and_are_fetched_once(remote, tmp_path):
    source = folder_of(remote, "hello")
    (tmp_path / "elsewhere").write_text("linked")
    os.symlink(tmp_path / "elsewhere", source / "link")
    remote.save_folder("students", "k", source)
    path = remote.folder("students", "k")
    assert sorted(str(p.relative_to(path)) for p in Path(path).rglob("*") if p.is_file()) == ["link", "sub/file"]
    assert remote.folder("students", "k") == path
    assert Path(path).name == "k"
    remote.delete_folder("students", "k")
    assert not remote.has_folder("students", "k")
    assert remote.folders("students") == []
    remote.save_folder("students", "k", folder_of(remote, "other"))
    assert Path(remote.folder("students", "k"), "sub", "file").read_text() == "other"


def test_a_folder_that_was_filled_again_is_fetched_again(remote):
    for text in ("first", "again"):
        remote.delete_folder("deltas", "k")
        remote.add_to_folder("deltas", "k", folder_of(remote, text))
        remote.complete_folder("deltas", "k")
        assert Path(remote.folder("deltas", "k"), "sub", "file").read_text() == text


def test_two_that_save_one_folder_never_mix(remote):
    def save(name):
        store = Store(remote.location)
        for number in range(3):
            store.save_folder("kind", f"{number}", folder_of(store, name, name))

    threads = [threading.Thread(target=save, args=[name]) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        [file] = Path(remote.folder("kind", f"{number}"), "sub").iterdir()
        assert file.read_text() == file.name


def test_a_folder_that_lacks_a_file_is_not_taken_for_whole(remote):
    remote.save_folder("kind", "k", folder_of(remote, "hello"))
    version = remote.manifest("kind", "k").version
    remote.filesystem.delete_file(remote.path("kind", "k", version, "sub", "file"))
    with pytest.raises(StoreError, match="lacks sub/file"):
        remote.folder("kind", "k")


KILLED = """
import os, signal, sys
from pathlib import Path
from raygeo.store import Store
store = Store(sys.argv[1])
die = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "folder":
    folder = store.scratch()
    (folder / "file").write_text("x")
    store._write = die
    store.save_folder("kind", "k", folder)
stream = store.filesystem.open_output_stream(store.path("units/counts/k.parquet"))
stream.write(b"PAR1" + bytes(6 << 20))
die()
"""


@pytest.mark.parametrize("what", ["unit", "folder"])
def test_what_a_killed_writer_left_does_not_look_finished(remote, what):
    killed = subprocess.run([sys.executable, "-c", KILLED, remote.location, what], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert remote.units("counts") == set()
    assert not remote.has_folder("kind", "k")
    with pytest.raises(StoreError, match="missing or incomplete"):
        remote.folder("kind", "k")


def test_a_quota_is_one_error_and_loses_nothing(s3, remote):
    remote.write_unit("k", {"counts": ROWS})
    s3.full = True
    try:
        with pytest.raises(FullStoreError, match="StorageFull"):
            remote.write_bytes("big", bytes(100))
        with pytest.raises(FullStoreError), remote.making("kind", "k") as folder:
            (folder / "file").write_text("x")
        assert not folder.exists()
    finally:
        s3.full = False
    assert remote.read_bytes("big") is None
    assert not remote.has_folder("kind", "k")
    assert remote.read_unit("counts", "k").to_pylist() == ROWS


def test_a_table_is_read_whole_while_it_is_replaced(remote):
    def table(n):
        return to_arrow("counts", [{"stage": str(n), "name": "n" * 99, "value": n}] * 100 * n)

    remote.publish_rows("counts", table(1))
    ended = threading.Event()

    def replace():
        store = Store(remote.location)
        for n in count(2):
            if ended.is_set():
                return
            store.publish_rows("counts", table(n))

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(10):
            values = remote.table("counts")["value"].to_pylist()
            assert values == [values[0]] * 100 * values[0]
    finally:
        ended.set()
        thread.join()


class Lengths(Workload):
    name = "lengths"
    tables: ClassVar = {"counts": SCHEMAS["counts"]}

    def __init__(self, tokens):
        self.tokens = tokens

    def tasks(self):
        return [Task(f"row{row}-r1", 1.0, row, f"row {row}") for row in range(3)]

    def setup(self):
        return RolloutTokens.open(self.tokens)

    def compute(self, state, payload):
        return {"counts": [{"stage": "lengths", "name": str(payload), "value": int(state.lengths[payload])}]}


def test_a_workload_reads_tokens_and_writes_its_units(remote):
    lengths = np.array([3, 5, 4])
    with remote.making("tokens", "t") as folder:
        write_tokens(folder, lengths, np.ones(3), [np.arange(12)])
    workload = Lengths(pickle.loads(pickle.dumps(remote.stored("tokens", "t"))))
    result = run_workload(workload, remote)
    assert remote.publish("counts", result.keys)["value"].to_pylist() == lengths.tolist()
    assert run_workload(workload, Store(remote.location)).reused == 3
