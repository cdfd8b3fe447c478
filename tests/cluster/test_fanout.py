import errno
import io
import os
import signal
import sys
from typing import ClassVar

import pytest
import torch
from ray import cloudpickle
from rich.console import Console

from raygeo.cluster.execution import in_process, run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import ClusterError, DataError, FullStoreError, LostProcessError, WorkloadError
from raygeo.progress import Progress
from raygeo.settings import Settings
from raygeo.tables import schema
from raygeo.workload import Task, Workload

pytestmark = pytest.mark.cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules


class Squares(Workload):
    """Counts squares; ``trouble`` maps a number to what happens when it is met."""

    name = "squares"
    tables: ClassVar = {"squares": schema("Squares of numbers.", "name: text; value: int")}

    def __init__(self, numbers, folder=None, trouble=None):
        self.numbers, self.folder, self.trouble = numbers, folder, trouble or {}

    def tasks(self):
        return [Task(self.key(n), float(n), n, f"square of {n}") for n in self.numbers]

    def setup(self):
        if "setup" in self.trouble:
            raise DataError("the state cannot be built")
        return {"calls": 0}

    def compute(self, state, payload):
        trouble = self.trouble.get(payload)
        if trouble == "error":
            raise DataError("seven is unlucky")
        if trouble == "bug":
            raise ZeroDivisionError("a bug")
        if trouble == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if trouble == "die":
            marker = os.path.join(self.folder, f"died-{payload}")
            if not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        if trouble in ("lose", "always-lose"):
            marker = os.path.join(self.folder, f"lost-{payload}")
            if trouble == "always-lose" or not os.path.exists(marker):
                open(marker, "w").close()
                raise LostProcessError("another process was lost")
        if trouble == "always-die":
            os.kill(os.getpid(), signal.SIGKILL)
        state["calls"] += 1
        return {"squares": [{"name": str(payload), "value": payload**2}]}


@pytest.fixture(scope="module")
def pool(ray_session):
    with ActorPool() as pool:
        yield pool


def values(store, result):
    return {
        row["name"]: row["value"]
        for row in store.publish("squares", result.keys, Squares.tables["squares"]).to_pylist()
    }


@pytest.mark.parametrize("over_actors", [False, True])
def test_rows_are_stored_and_never_computed_again(store, pool, over_actors):
    numbers = list(range(1, 30))
    result = run_workload(Squares(numbers), store, pool if over_actors else in_process)
    assert (result.made, result.reused) == (29, 0)
    assert values(store, result) == {str(n): n**2 for n in numbers}
    again = run_workload(Squares([*numbers, 40]), store, pool if over_actors else in_process)
    assert (again.made, again.reused) == (1, 29)
    assert values(store, again)["40"] == 1600


@pytest.mark.parametrize("over_actors", [False, True])
def test_a_failing_task_is_named_and_the_others_are_kept(store, pool, over_actors):
    with pytest.raises(WorkloadError, match=r"2 of 9 tasks failed(.|\n)*seven is unlucky"):
        run_workload(Squares(range(1, 10), trouble={7: "error", 3: "bug"}), store, pool if over_actors else in_process)
    result = run_workload(Squares(range(1, 10)), store, pool if over_actors else in_process)
    assert (result.made, result.reused) == (2, 7)


def test_a_lost_actor_is_replaced(store, pool, tmp_path):
    result = run_workload(Squares(range(1, 20), str(tmp_path), {5: "die", 17: "die"}), store, pool)
    assert values(store, result) == {str(n): n**2 for n in range(1, 20)}


def test_a_task_that_lost_another_process_begins_again(store, tmp_path, ray_session):
    said = []
    with (
        ActorPool(ActorSettings(max_actors=1), said.append) as pool,
        pytest.raises(WorkloadError, match=r"1 of 5 tasks failed(.|\n)*square of 2: another process was lost"),
    ):
        run_workload(Squares(range(1, 6), str(tmp_path), {4: "lose", 2: "always-lose"}), store, pool)
    assert len(store.units("squares")) == 4
    assert said.count("  squares: square of 4 begins again: another process was lost") == 1
    assert len(said) == 4


def test_a_task_that_kills_every_actor_is_named(store, pool):
    with pytest.raises(WorkloadError, match="square of 2 was lost"):
        run_workload(Squares([2], trouble={2: "always-die"}), store, pool)


def test_setup_errors_reach_the_user(store, pool):
    with pytest.raises(WorkloadError, match="the state cannot be built"):
        run_workload(Squares([1], trouble={"setup": "error"}), store, pool)


def test_an_actor_that_fits_nowhere_is_refused(store, pool):
    with pytest.raises(ClusterError, match="99 CPU"):
        run_workload(Squares([1]), store, ActorPool(ActorSettings(cpus=99)))


def test_a_full_disk_ends_the_workload_at_once(store):
    with pytest.raises(FullStoreError, match=r"square of 2: a disk is full(.|\n)*No space left"):
        run_workload(Squares([1, 2, 3], trouble={2: "full"}), store)
    assert len(store.units("squares")) == 1


class Room(Settings):
    size: int = 8
    """Squares made together."""


class Roomy(Squares):
    """Squares that can be made where ``size`` is at most what ``room`` says for the number."""

    batch_settings: ClassVar = ("size",)

    def __init__(self, numbers, room):
        super().__init__(numbers)
        self.settings, self.room = Room(), room

    def setup(self):
        return self.settings.size

    def compute(self, state, payload):
        if state > self.room[payload]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"squares": [{"name": str(payload), "value": state}]}


def test_where_memory_runs_out_batches_are_halved_and_remembered(store):
    room = {1: 8, 2: 3, 3: 8}
    first, said = told(Roomy([1, 2, 3], room), store)
    assert first.made == 3
    made = store.publish("squares", first.keys, Squares.tables["squares"]).to_pylist()
    assert {row["name"]: row["value"] for row in made} == {"1": 8, "2": 2, "3": 2}
    assert said.count("memory ran out") == 1
    assert "squares: memory ran out; continues with size 2" in said
    second, said = told(Roomy([4], {4: 8}), store)
    assert "squares: size 2, for which memory sufficed before" in said
    assert store.read_unit("squares", second.keys[0], Squares.tables["squares"])["value"].to_pylist() == [2]


@pytest.mark.parametrize("bad", [1, 2])
def test_a_task_for_which_memory_never_suffices_costs_the_others_nothing(store, bad):
    workload = Roomy([1, 2], {1: 8, 2: 8} | {bad: 0})
    with pytest.raises(WorkloadError, match=r"1 of 2 tasks(.|\n)*not enough memory, even with size 1: (.|\n)*GiB"):
        run_workload(workload, store)
    [key] = store.units("squares")
    assert store.read_unit("squares", key, Squares.tables["squares"])["value"].to_pylist() == [8]


def test_a_state_that_cannot_be_built_anew_costs_only_its_task(store):
    class Frail(Roomy):
        def setup(self):
            if self.settings.size == 4:
                raise DataError("the file has gone")
            return super().setup()

    with pytest.raises(WorkloadError, match=r"1 of 3 tasks failed(.|\n)*the file has gone"):
        run_workload(Frail([1, 2, 3], {1: 8, 2: 3, 3: 8}), store)
    assert len(store.units("squares")) == 2


def test_what_is_left_behind_takes_no_rows(store, caplog):
    class Untidy(Squares):
        def on_stored(self, task):
            raise OSError("it is in use")

    assert run_workload(Untidy([1, 2]), store).made == 2
    assert "square of 1 left something behind" in caplog.text


def test_actors_halve_their_batches(store, pool):
    result = run_workload(Roomy([1, 2], {1: 1, 2: 4}), store, pool)
    made = store.publish("squares", result.keys, Squares.tables["squares"]).to_pylist()
    assert next(row["value"] for row in made if row["name"] == "1") == 1


class Heavy(Roomy):
    """The kernel kills whoever makes squares for which there is no room."""

    def compute(self, state, payload):
        if state > self.room[payload]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(state, payload)


def test_an_actor_that_follows_a_lost_one_has_smaller_batches(store, pool):
    result = run_workload(Heavy([1, 2], {1: 8, 2: 2}), store, pool)
    made = store.publish("squares", result.keys, Squares.tables["squares"]).to_pylist()
    assert next(row["value"] for row in made if row["name"] == "2") == 2
    assert not store.folders("fitting")


class MoreExactSquares(Squares):
    revision = 2


def told(workload, store):
    """What is said while a workload runs, and its result."""
    said = io.StringIO()
    return run_workload(workload, store, progress=Progress(Console(file=said, width=200))), said.getvalue()


def test_units_of_an_older_revision_are_made_anew_and_told(store):
    first, said = told(Squares([1, 2]), store)
    assert said == ""
    second, said = told(MoreExactSquares([1, 2, 3]), store)
    assert (second.made, second.reused) == (3, 0)
    assert "squares: 2 units of revision 1 made anew by revision 2" in said
    assert not set(first.keys) & set(second.keys)
    assert store.finished(Squares.tables) == {*first.keys, *second.keys}
    third, said = told(MoreExactSquares([1, 2, 3, 4]), store)
    assert (third.made, third.reused, said) == (1, 3, "")


def test_tables_without_rows_are_stored_as_empty_ones(store):
    class Twofold(Squares):
        tables: ClassVar = Squares.tables | {"cubes": schema("None so far.", "value: int")}

    [key] = run_workload(Twofold([2]), store).keys
    assert store.read_unit("cubes", key, Twofold.tables["cubes"]).num_rows == 0
    assert store.finished(Twofold.tables) == {key}


def test_a_column_that_the_schema_lacks_is_refused(store):
    class Misspelt(Squares):
        tables: ClassVar = {"squares": schema("Squares.", "name: text")}

    with pytest.raises(WorkloadError, match="'squares' has no column"):
        run_workload(Misspelt([2]), store)
