"""What is reported has one name, and that name is of nothing else."""

import pytest

from raygeo.errors import ConfigError
from raygeo.naming import refuse_one_name_for_two, reported_as, training_metric


def test_a_reported_metric_is_found_by_its_name():
    for reported in ("objective", "nll", "heldout_nll", "rewards/accuracies", "grad_norm"):
        assert reported_as(training_metric(reported)) == reported


@pytest.mark.parametrize(
    ("own", "of"), [("loss", "objective"), ("train/nll", "nll"), ("eval/heldout/nll", "heldout_nll")]
)
def test_a_loss_cannot_report_under_a_name_that_is_taken(own, of):
    refuse_one_name_for_two(["objective", "nll", "heldout_nll", "mine"])
    with pytest.raises(ConfigError, match=f"reports '{own}' beside '{of}'"):
        refuse_one_name_for_two([of, own])
