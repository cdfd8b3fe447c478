from types import SimpleNamespace

import pytest

from raygeo.training import overhead
from raygeo.training.overhead import Overhead


def test_a_trials_overhead_is_what_is_not_between_its_reports(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(overhead.time, "monotonic", lambda: now[0])
    clock, one, two = Overhead(), SimpleNamespace(trial_id="1"), SimpleNamespace(trial_id="2")
    for at, event, trial, result in [
        (0, "start", one, None), (10, "result", one, {"curves": {}}), (11, "result", one, {"text": "a note"}),
        (30, "result", one, {"curves": {}}), (32, "complete", one, None),
        (33, "start", two, None), (33.5, "result", two, {"curves": {}}), (43.5, "result", two, {"curves": {}}),
        (43.75, "complete", two, None),
    ]:  # fmt: skip
        now[0] = float(at)
        if event == "result":
            clock.on_trial_result(0, [], trial, result)
        else:
            getattr(clock, f"on_trial_{event}")(0, [], trial)
    assert clock.seconds == pytest.approx([12, 0.75])
    told = clock.describe()
    assert "12.0 s where workers are started" in told
    assert "0.8 s for each of 1 on workers already running" in told


def test_nothing_is_said_of_no_trials():
    assert Overhead().describe() is None
