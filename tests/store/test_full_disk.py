"""A disk that gets full while tasks are spread over actors: one error at once, and everything finished is there."""

import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from ray import cloudpickle

from raygeo.cluster.execution import in_process, run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.errors import FullStoreError
from raygeo.store import Store
from raygeo.store.contents import Contents
from raygeo.store.lease import find_lease, held
from raygeo.store.verification import broken
from raygeo.tables import schema
from raygeo.workload import Task, Workload

pytestmark = [pytest.mark.cluster, pytest.mark.long]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules

TASKS = 12
COLUMNS = schema("Noise.", "noise: floats")


class Noise(Workload):
    """Rows of numbers that no writer can make smaller, 200 kB a task; says in ``asked`` which task was begun."""

    name = "noise"
    tables: ClassVar = {"noise": COLUMNS}

    def __init__(self, asked, folder=None):
        self.asked, self.folder = str(asked), folder

    def tasks(self):
        return [Task(self.key(n), 1.0, n, f"noise {n}") for n in range(TASKS)]

    def setup(self):
        if self.folder is not None:
            with self.folder.making("folders", "large") as folder:
                torch.save(torch.rand(2**20), folder / "file")

    def compute(self, state, payload):
        with open(self.asked, "a") as file:
            file.write(f"{payload}\n")
        time.sleep(0.5)  # a call, of a second or so, then holds few of them
        return {"noise": [{"noise": torch.rand(50_000, generator=torch.Generator().manual_seed(payload)).numpy()}]}


@pytest.fixture(scope="module")
def pool(ray_session):
    with ActorPool() as pool:
        yield pool


@pytest.mark.parametrize("over_actors", [False, True])
def test_tasks_end_with_one_error_at_once(small_disk, tmp_path, pool, over_actors):
    store, asked = Store(small_disk / "store"), tmp_path / "asked"
    with held(store, "a study"), pytest.raises(FullStoreError, match=r"noise \d+: a disk is full(.|\n)*1 MiB are free"):
        run_workload(Noise(asked), store, pool if over_actors else in_process)
    begun = asked.read_text().split()
    assert len(begun) == len(set(begun)) < TASKS
    finished = store.units("noise")
    assert 1 <= len(finished) < len(begun)
    assert all(unit.num_rows == 1 for unit in store.read_units("noise", finished, COLUMNS))
    assert find_lease(store) is None
    await_clear(Path(store.path("scratch")))  # the other actor ends its call
    assert list(broken(Contents(store))) == []


def await_clear(folder):
    deadline = time.monotonic() + 20
    while list(folder.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_full_disk_met_in_setting_up_is_the_same_error(small_disk, tmp_path, pool):
    store = Store(small_disk / "store")
    with pytest.raises(FullStoreError, match="because a disk is full"):
        run_workload(Noise(tmp_path / "asked", store), store, pool)
    await_clear(Path(store.path("scratch")))
    assert not store.has_folder("folders", "large")
