"""Real faults on real Ray: the cases of ``checks/faults/training.py`` that no other test covers."""

import os
import signal
import sys
import threading
from dataclasses import replace

import psutil
import pytest
from process_cases import listening
from ray import cloudpickle

from checks.faults.training import (
    CASES,
    Witness,
    ask_too_much,
    break_run,
    make_store,
    specification,
    train,
    worker_processes,
)
from raygeo.training.sweep import run_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]


def test_a_killed_worker_of_a_sharded_run_costs_nothing_but_time(ray_session, tmp_path, monkeypatch):
    case, seen = CASES["kill-zero3-lora"], []

    def strike(step):
        seen.append(listening(worker_processes()))
        return case.strike(step)

    monkeypatch.setitem(CASES, "kill-zero3-lora", replace(case, strike=strike))
    result = break_run("kill-zero3-lora", tmp_path)
    assert {address for found in seen for address in found} == {"127.0.0.1"}, "the ranks meet on this machine alone"
    assert max(map(len, seen)) >= 5, "two workers of Ray's, two of gloo's and the store"
    assert result.status == "finished"
    assert result.gap == 0
    assert 1 <= result.redone <= 20
    assert any("resumes from its last checkpoint" in note for note in result.notes)
    assert_cpus_are_free(ray_session)


def test_a_killed_coordinator_costs_nothing_but_time(ray_session, tmp_path):
    store, inputs = make_store(tmp_path)
    seen = train(store, inputs, {}, strike=CASES["kill-coordinator"].strike)["run"]
    assert seen.end["status"] == "finished"
    [key] = store.units("runs")
    curve = store.read_unit("training_curves", key)
    kept = sorted(row["step"] for row in curve.to_pylist() if row["metric"] == "nll")
    assert kept == list(range(1, 51)), "reports may be lost with a coordinator, and no step of the curve is"
    assert "its coordinator was lost; resumes from its last checkpoint" in seen.notes
    assert_cpus_are_free(ray_session)


def test_lack_of_memory_halves_the_micro_batch(ray_session, tmp_path):
    result = break_run("memory", tmp_path)
    assert result.status == "finished"
    assert result.notes == ["out of memory at micro_batch_size 8; halved, same batch_size"]
    assert result.gap == pytest.approx(0, abs=1e-5)
    assert_cpus_are_free(ray_session)


def test_what_cannot_be_placed_is_refused_at_once(ray_session, tmp_path):
    assert "64 x (1 CPU)" in ask_too_much(tmp_path).fault


class Faulty:
    """Inputs that break the loss of SFT in every process they come to: it raises in its third micro-batch."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __getattr__(self, name):
        return getattr(self.inputs, name)

    def __reduce__(self):
        return (break_loss, (self.inputs,))


def break_loss(inputs):
    from raygeo.losses import SFT

    whole, calls = SFT.__call__, []

    def broken(self, given):
        calls.append(given)
        if len(calls) > 2:
            raise RuntimeError("the loss fell over")
        return whole(self, given)

    SFT.__call__ = broken
    return Faulty(inputs)


def test_an_error_in_a_loss_ends_the_run_at_once_and_is_shown(ray_session, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store, inputs = make_store(tmp_path)
    seen = train(store, Faulty(inputs), {})["run"]
    assert seen.steps == [1]
    assert seen.end["status"] == "failed"
    assert seen.end["reason"].startswith("RuntimeError: the loss fell over (")
    assert seen.end["reason"].endswith(" in broken)")
    assert seen.notes == ["Traceback (most recent call last):"]
    assert not store.units("runs")
    assert_cpus_are_free(ray_session)


def test_a_worker_that_is_lost_while_it_measures_a_run_does_not_train_it_again(ray_session, tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store, inputs = make_store(tmp_path)
    measured = []

    class Told(Witness):
        def on_trial_result(self, iteration, trials, trial, result, **info):
            super().on_trial_result(iteration, trials, trial, result, **info)
            measured.append(result.get("measured"))

    def measure(key, name, mark=str(tmp_path / "measured")):
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"moved": 1.0}

    seen = Told()
    spec = specification("run", {"steps": 3})
    assert run_sweep({"run": spec}, inputs, store, "measured", [seen], measure=measure) == {}
    assert seen.seen["run"].steps == [1, 2, 3]
    assert seen.seen["run"].end["status"] == "finished"
    assert measured[-1] == {"moved": 1.0}
    assert_cpus_are_free(ray_session)


class Fatal(Faulty):
    """Inputs that kill the first worker that comes to them with its work, before it asks for a run."""

    def __init__(self, inputs, mark):
        self.inputs, self.mark = inputs, mark

    def __reduce__(self):
        return (kill_first, (self.inputs, self.mark))


def kill_first(inputs, mark):
    if "run_train_fn" in " ".join(psutil.Process().cmdline()) and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return Fatal(inputs, mark)


@pytest.mark.parametrize("moment", ["while its group is set up", "thereafter"])
def test_a_worker_that_is_lost_before_it_asks_for_a_run_costs_a_restart_and_no_place(ray_session, tmp_path, moment):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store, inputs = make_store(tmp_path)
    struck = threading.Event()

    def strike():
        while not struck.is_set():
            for process in worker_processes("execute._load"):
                process.kill()
                struck.set()

    if moment == "thereafter":
        inputs = Fatal(inputs, str(tmp_path / "mark"))
    else:
        threading.Thread(target=strike, daemon=True).start()
    seen = train(store, inputs, {"steps": 3, "restarts": 1})["run"]
    struck.set()
    assert seen.end["status"] == "finished"
    [note] = [note for note in seen.notes if not note.startswith("waiting")]
    assert note.startswith("workers could not be started: ")
    assert_cpus_are_free(ray_session)


def assert_cpus_are_free(ray):
    from time import monotonic, sleep

    deadline = monotonic() + 30
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert monotonic() < deadline, ray.available_resources()
        sleep(0.2)
