from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from raygeo.search.settings import Asha
from raygeo.training.halving import HalvingByLoss

pytestmark = pytest.mark.cluster

GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


@pytest.fixture
def stopped():
    return []


@pytest.fixture
def race(stopped):
    return HalvingByLoss(Asha(grace=2, reduction_factor=2), stopped.append)


def enter(race, loss, number):
    trial = SimpleNamespace(
        trial_id=f"{loss}{number}", config={"choice": {"loss": loss, "key": f"key of {loss}{number}"}}
    )
    race.on_trial_add(None, trial)
    return trial


def reach(race, trial, step, nll):
    return race.on_trial_result(None, trial, {"step": step, "metrics/heldout_nll": nll})


def test_the_worse_half_stops_at_each_rung(race, stopped):
    a, b, c = (enter(race, "sft", i) for i in range(3))
    assert reach(race, a, 1, 9.0) == GO  # not yet at a rung
    assert reach(race, a, 2, 1.0) == GO
    assert reach(race, b, 2, 2.0) == STOP
    assert reach(race, c, 2, 0.5) == GO
    assert reach(race, a, 4, 0.9) == GO
    assert reach(race, c, 4, 1.2) == STOP
    assert stopped == ["key of sft1", "key of sft2"]


def test_losses_do_not_compete(race):
    assert reach(race, enter(race, "sft", 0), 2, 1.0) == GO
    assert reach(race, enter(race, "dpo", 0), 2, 5.0) == GO
    assert reach(race, enter(race, "dpo", 1), 2, 6.0) == STOP


def test_reports_without_the_metric_decide_nothing(race):
    trial = enter(race, "sft", 0)
    assert race.on_trial_result(None, trial, {"step": 2, "metrics/nll": 1.0}) == GO
    assert race.on_trial_result(None, trial, {"step": 2, "text": "resumes"}) == GO


def test_a_trial_that_ends_leaves_its_mark(race):
    a, b = (enter(race, "sft", i) for i in range(2))
    race.on_trial_complete(None, a, {"step": 3, "metrics/heldout_nll": 1.0})
    race.on_trial_remove(None, enter(race, "sft", 2))
    assert reach(race, b, 3, 2.0) == STOP
