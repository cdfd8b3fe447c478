import os
import signal
import sys

import pytest
from ray import cloudpickle

from raygeo.cluster.fanout import ActorPool, in_process, run_workload
from raygeo.cluster.settings import ActorSettings
from raygeo.errors import ClusterError, DataError, WorkloadError
from raygeo.settings import content_key
from raygeo.workload import Task, Workload

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules


class Squares(Workload):
    """Counts squares; ``trouble`` maps a number to what happens when it is met."""

    name = "squares"
    tables = ("counts",)

    def __init__(self, numbers, folder=None, trouble=None):
        self.numbers, self.folder, self.trouble = numbers, folder, trouble or {}

    def tasks(self):
        return [Task(content_key("square", n), float(n), n, f"square of {n}") for n in self.numbers]

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
        if trouble == "die":
            marker = os.path.join(self.folder, f"died-{payload}")
            if not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "always-die":
            os.kill(os.getpid(), signal.SIGKILL)
        state["calls"] += 1
        return {"counts": [{"stage": "test", "name": str(payload), "value": payload**2}]}


@pytest.fixture(scope="module")
def pool(ray_session):
    with ActorPool() as pool:
        yield pool


def values(store, result):
    return {row["name"]: row["value"] for row in store.publish("counts", result.keys).to_pylist()}


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


def test_a_task_that_kills_every_actor_is_named(store, pool):
    with pytest.raises(WorkloadError, match="square of 2 was lost"):
        run_workload(Squares([2], trouble={2: "always-die"}), store, pool)


def test_setup_errors_reach_the_user(store, pool):
    with pytest.raises(WorkloadError, match="the state cannot be built"):
        run_workload(Squares([1], trouble={"setup": "error"}), store, pool)


def test_an_actor_that_fits_nowhere_is_refused(store, pool):
    with pytest.raises(ClusterError, match="99 CPU"):
        run_workload(Squares([1]), store, ActorPool(ActorSettings(cpus=99)))
