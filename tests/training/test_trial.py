"""What a trial makes of its coordinator's messages, and what the tracker makes of that, without Ray."""

from types import SimpleNamespace

import pytest

from raygeo.tracking import TrialLogger
from raygeo.training.sweep import Trial

pytestmark = pytest.mark.cluster


def trial_with(*messages):
    """A trial whose workers have these messages for it."""
    left = list(messages)
    trial = Trial.__new__(Trial)
    trial.workers, trial.reached, trial.note = SimpleNamespace(message=lambda: dict(left.pop(0))), 0, ""
    return trial


def test_messages_become_results():
    trial = trial_with(
        {"kind": "report", "step": 3, "metrics": {"nll": 1.0}},
        {"kind": "note", "text": "a worker was lost"},
        {"kind": "done", "status": "finished", "reason": None, "steps": 9, "measured": {"accuracy": 0.5}},
    )
    assert [trial.step() for _ in range(3)] == [
        {"step": 3, "metrics": {"nll": 1.0}},
        {"step": 3, "text": "a worker was lost"},
        {"step": 9, "done": True, "status": "finished", "reason": None, "measured": {"accuracy": 0.5}},
    ]


def test_a_failure_is_the_end_at_the_step_that_was_reached():
    trial = trial_with({"kind": "report", "step": 3, "metrics": {}}, {"kind": "failed", "reason": "why", "full": True})
    trial.step()
    assert trial.step() == {"step": 3, "done": True, "status": "failed", "reason": "why", "full": True}


class Tracked:
    """The side of ``Tracking`` that a logger sees."""

    def __init__(self):
        self.begun, self.logged, self.ended = [], [], {}

    def child(self, key, name, params):
        assert name == f"run {key}"

    def begin(self, key):
        self.begun.append(key)

    def step(self, key, step, values):
        self.logged.append((key, step, values))

    def end(self, key, status):
        self.ended[key] = status


@pytest.fixture
def tracked():
    return Tracked()


@pytest.fixture
def said():
    return []


@pytest.fixture
def logger(tracked, said):
    bar = SimpleNamespace(done=[], update=lambda done, note: bar.done.append(done))
    return TrialLogger(tracked, {"a": {}, "b": {}}, bar, said.append)


def start(logger, key):
    trial = SimpleNamespace(config={"choice": {"key": key, "run": f"run {key}"}}, last_result=None)
    logger.on_trial_start(0, [], trial)
    return trial


def test_every_step_is_logged_once_and_moves_the_bar(logger, tracked, said):
    a, b = start(logger, "a"), start(logger, "b")
    for trial, step in ((a, 2), (b, 3), (a, 4), (a, 2), (a, 4)):  # after a lost worker, steps are taken again
        logger.on_trial_result(0, [], trial, {"step": step, "metrics": {"nll": float(step)}})
    logger.on_trial_result(0, [], a, {"step": 4, "text": "out of [memory]"})
    assert tracked.logged == [(key, step, {"nll": float(step)}) for key, step in (("a", 2), ("b", 3), ("a", 4))]
    assert logger.bar.done == [2, 5, 7]
    assert len(said) == 1
    assert "run a" in said[0]


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        ("finished", ["FINISHED"]),
        ("diverged", ["FAILED"]),
        ("failed", ["FAILED"]),
        ("stopped", ["KILLED"]),
        ("interrupted", []),
        (None, []),
    ],
)
def test_a_trial_ends_its_run_unless_that_was_interrupted(logger, tracked, status, ended):
    trial = start(logger, "a")
    assert tracked.begun == ["a"]
    trial.last_result = {"status": status}
    logger.on_trial_complete(0, [], trial)
    assert list(tracked.ended.values()) == ended
