from dataclasses import dataclass

from ray.tune.search import Searcher

from raygeo.training.queue import RunQueue


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


def test_known_runs_come_first_and_then_what_is_proposed():
    script = Script("a", "b")
    queue = RunQueue([{"key": "k"}], script, lambda spec: {"spec": spec})
    assert queue.suggest("t0") == {"choice": {"key": "k"}}
    assert queue.suggest("t1") == {"choice": {"spec": "spec of a"}}
    assert queue.suggest("t2") == {"choice": {"spec": "spec of b"}}
    assert queue.suggest("t3") == Searcher.FINISHED
    queue.on_trial_complete("t0", {"measured/accuracy": 1.0})
    queue.on_trial_complete("t2", {"step": 3, "measured/accuracy": 0.5, "measured/heldout_nll": 2.0})
    queue.on_trial_complete("t1", {"step": 1, "curves/nll": 1.0})
    assert script.told == {"b": {"accuracy": 0.5, "heldout_nll": 2.0}, "a": None}


def test_a_failed_trial_came_to_nothing():
    script = Script("a")
    queue = RunQueue([], script, lambda spec: {})
    queue.suggest("t0")
    queue.on_trial_complete("t0", error=True)
    assert script.told == {"a": None}


def test_without_a_search_the_known_runs_are_all():
    queue = RunQueue([{"key": "k"}], None, lambda spec: {})
    assert [queue.suggest("t0"), queue.suggest("t1")] == [{"choice": {"key": "k"}}, Searcher.FINISHED]
