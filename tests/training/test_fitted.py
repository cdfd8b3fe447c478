"""A micro-batch that fitted is where later runs of the same memory begin."""

import asyncio
from types import SimpleNamespace

import pytest

from raygeo.losses import DPO, SFT
from raygeo.store import Store
from raygeo.training import sweep
from raygeo.training.coordinator import Coordinator, Failure
from raygeo.training.fitted import Fitted
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.sweep import Trial, run_choice
from raygeo.training.workers import Common

pytestmark = pytest.mark.cluster

INPUTS = RunInputs("rollouts", "student", "student key", "tokens", 0)


def spec(loss=None, **training):
    return RunSpec(name="run", loss=loss or SFT(), training=TrainingSettings(steps=9, **training))


def test_the_smallest_that_fitted_is_recalled_whenever_the_store_is_opened(store):
    fitted = Fitted(store, spec(), INPUTS)
    assert fitted.recall() == 32
    for size in (8, 16, 4):
        fitted.remember(size)
    again = Fitted(Store(store.location), spec(lr=1.0, seed=3, init_seed=2, eval_every=5), INPUTS)
    assert again.recall() == 4


def test_runs_of_other_memory_begin_as_asked(store):
    Fitted(store, spec(), INPUTS).remember(4)
    others = [spec(DPO()), spec(micro_batch_size=16), spec(gradient_checkpointing=True), spec(precision="bf16")]
    assert [Fitted(store, other, INPUTS).recall() for other in others] == [32, 16, 32, 32]


def test_a_coordinator_says_what_fitted_once_it_was_halved():
    async def story():
        coordinator = Coordinator()
        await coordinator.submit({"key": "run", "micro_batch_size": 8, "restarts": 0})
        await coordinator.report(1, {})
        await coordinator.take("a", 0)
        await coordinator.failed("run", 1, Failure("no memory", out_of_memory=True))
        assert (await coordinator.take("b", 0))["micro_batch_size"] == 4
        await coordinator.report(1, {})
        messages = [await coordinator.message() for _ in range(3)]
        return [message.get("fitted") for message in messages if message["kind"] == "report"]

    assert asyncio.run(story()) == [None, 4]


def test_the_next_trial_begins_there_and_says_so_once(store, monkeypatch):
    begun, news = [], [{"kind": "report", "step": 1, "metrics": {}, "fitted": 2}]

    class Held:
        alive = True

        def __init__(self, shape, common, storage):
            self.shape = shape

        def begin(self, job):
            begun.append(job["micro_batch_size"])

        def message(self):
            return dict(news[0])

    monkeypatch.setattr(sweep, "Workers", Held)
    config = {"choice": run_choice("key", spec(micro_batch_size=8))}
    trial = Trial.__new__(Trial)
    trial.setup(config, Common(INPUTS, store, SimpleNamespace()), "")
    assert trial.step() == {"step": 1, "metrics": {}}
    said = []
    for _ in range(2):
        trial.reset_config(config)
        said.append(trial.step().get("text"))
    assert begun == [8, 2, 2]
    assert said == ["begins at micro_batch_size 2: it fitted before, 8 did not; same batch_size", None]
