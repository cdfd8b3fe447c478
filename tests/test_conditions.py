import numpy as np

from raygeo.geometry.weights.noise_floors import noise_floors
from raygeo.geometry.weights.separation import separation
from raygeo.losses.rft import RFT
from raygeo.losses.sft import SFT
from raygeo.records import EXECUTION, FINISHED, Condition, configurations
from raygeo.training.settings import Optimisation, RunSpec, TrainingSettings
from raygeo.training.worker import run_record


def condition(loss=None, **training):
    spec = RunSpec(name="run", loss=loss or SFT(), training=TrainingSettings(steps=4, **training))
    return run_record(spec, "key", FINISHED).condition


def test_seeds_that_differ_are_told_apart():
    one = Condition("sft", "lr 1", 0, 0)
    others = [Condition("dpo", "lr 2", 0, 0), Condition("", "", 1, 0), Condition("", "", 0, 1), Condition("", "", 1, 1)]
    assert [one.seeds(other) for other in others] == ["same", "order", "init", "both"]


def test_a_configuration_is_a_loss_with_its_settings():
    conditions = [
        Condition(*c, None) for c in [("a", "x", 0), ("b", "x", 0), ("a", "y", 0), ("a", "x", 1), ("b", "x", 2)]
    ]
    assert configurations(conditions) == [[0, 3], [1, 4], [2]]


def test_what_is_not_of_the_optimisation_is_not_of_the_condition():
    assert TrainingSettings.model_fields.keys() - Optimisation.model_fields.keys() == EXECUTION
    assert condition(micro_batch_size=4, workers=2, zero_stage=1, offload=True, cpus=2, snapshots=0) == condition()
    for change in ({"lr": 1e-3}, {"batch_size": 8}, {"max_grad_norm": 0.0}, {"precision": "bf16"}):
        assert condition(**change).configuration != condition().configuration


def test_a_run_with_a_halved_micro_batch_stays_among_its_seeds():
    """One that ran out of memory is recorded with the micro-batch it ended with."""
    conditions = [
        condition(loss, seed=seed, micro_batch_size=16 if (seed, loss.type) == (1, "sft") else 32)
        for loss in (SFT(), RFT())
        for seed in range(3)
    ]
    assert configurations(conditions) == [[0, 1, 2], [3, 4, 5]]
    cosines = np.full((6, 6), 0.5)
    floors = {
        (floor.configuration_a, floor.configuration_b, floor.seeds): floor.n
        for floor in noise_floors(cosines, conditions)
    }
    assert floors == {(0, 0, "order"): 3, (3, 3, "order"): 3, (0, 3, "same"): 3, (0, 3, "order"): 6}
    test = separation(cosines, conditions, 99, 0)
    assert (test.runs, test.within_n, test.between_n) == (6, 6, 6)
