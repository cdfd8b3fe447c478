import os
import pickle
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass

import pytest
from ray.tune.search import Searcher

from raygeo.interrupts import asked, deferred
from raygeo.training.queue import RunQueue

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Run:
    name: str

    @property
    def spec(self):
        return f"spec of {self.name}"


class Script:
    def __init__(self, *names):
        self.names, self.told = list(names), {}

    def next(self):
        return Run(self.names.pop(0)) if self.names else None

    def record(self, name, results):
        self.told[name] = results


def test_tune_may_pickle_it_whatever_its_search_holds():
    script = Script()
    script.lock = threading.RLock()
    assert isinstance(pickle.loads(pickle.dumps(RunQueue([], script, str))), Searcher)


def test_known_runs_come_first_and_then_what_is_proposed():
    script = Script("a", "b")
    queue = RunQueue([{"key": "k"}], script, lambda spec: {"spec": spec})
    assert queue.suggest("t0") == {"choice": {"key": "k"}}
    assert queue.suggest("t1") == {"choice": {"spec": "spec of a"}}
    assert queue.suggest("t2") == {"choice": {"spec": "spec of b"}}
    assert queue.suggest("t3") == Searcher.FINISHED
    queue.on_trial_complete("t0", {"measured/accuracy": 1.0})
    queue.on_trial_complete("t2", {"step": 3, "measured/accuracy": 0.5, "measured/heldout_nll": 2.0})
    queue.on_trial_complete("t1", {"step": 1, "metrics/nll": 1.0})
    assert script.told == {"b": {"accuracy": 0.5, "heldout_nll": 2.0}, "a": None}


def test_a_failed_trial_came_to_nothing():
    script = Script("a")
    queue = RunQueue([], script, lambda spec: {})
    queue.suggest("t0")
    queue.on_trial_complete("t0", error=True)
    assert script.told == {"a": None}


def test_an_interrupted_run_tells_the_search_nothing():
    script = Script("a")
    queue = RunQueue([], script, lambda spec: {})
    queue.suggest("t0")
    queue.on_trial_complete("t0", {"step": 3, "status": "interrupted"})
    assert script.told == {}


def test_there_are_no_more_runs_once_the_process_is_asked_to_stop():
    queue = RunQueue([{"key": "k"}], Script("a"), lambda spec: {})
    with suppress(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        while not asked():
            pass
        assert queue.suggest("t0") == Searcher.FINISHED
    assert queue.suggest("t0") == {"choice": {"key": "k"}}


def test_there_are_no_more_runs_once_the_disk_is_full():
    queue = RunQueue([{"key": "k"}, {"key": "l"}], Script("a"), lambda spec: {})
    queue.suggest("t0")
    queue.on_trial_complete("t0", {"step": 3, "status": "failed", "reason": "full", "full": True})
    assert queue.suggest("t1") == Searcher.FINISHED
    assert queue.full == "full"


def test_as_many_runs_are_given_at_once_as_there_is_room_for():
    room = [1]
    queue = RunQueue([{"key": key} for key in "klm"], None, lambda spec: {}, lambda: room[0])
    assert [queue.suggest("t0"), queue.suggest("t1")] == [{"choice": {"key": "k"}}, None]
    room[0] = 2  # a node has joined
    assert [queue.suggest("t1"), queue.suggest("t2")] == [{"choice": {"key": "l"}}, None]
    queue.on_trial_complete("t0", {"step": 3})
    assert [queue.suggest("t2"), queue.suggest("t3")] == [{"choice": {"key": "m"}}, None]
    queue.on_trial_complete("t1", {"step": 3})
    assert queue.suggest("t3") == Searcher.FINISHED


def test_without_a_search_the_known_runs_are_all():
    queue = RunQueue([{"key": "k"}], None, lambda spec: {})
    assert [queue.suggest("t0"), queue.suggest("t1")] == [{"choice": {"key": "k"}}, Searcher.FINISHED]
