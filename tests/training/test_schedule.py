import math

import pytest

from raygeo.training.schedule import lr_factor
from raygeo.training.settings import TrainingSettings


def test_a_run_may_end_before_its_schedule():
    settings = TrainingSettings(schedule_steps=1500, warmup_ratio=0.05)
    whole = TrainingSettings(warmup_ratio=0.05)
    assert [lr_factor(settings, 1000, s) for s in range(1000)] == [lr_factor(whole, 1500, s) for s in range(1000)]
    assert lr_factor(settings, 1000, 74) == 1.0
    assert lr_factor(settings, 1000, 999) == pytest.approx(0.5 * (1 + math.cos(math.pi * (999 - 75) / (1499 - 75))))
