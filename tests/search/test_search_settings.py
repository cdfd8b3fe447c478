import pytest
from pydantic import ValidationError

from raygeo.analyses.registry import metrics
from raygeo.search.settings import REPORTED, Asha, Constraint, Objective, SweepSettings


def test_the_earlier_name_of_an_objective_is_refused_with_its_present_one():
    with pytest.raises(ValidationError, match="sharpness is now geometry/top_eigenvalue"):
        Objective(metric="sharpness")


@pytest.mark.parametrize(
    ("bound", "said"), [({}, "needs at_most, at_least, or both"), ({"at_most": 1, "at_least": 2}, "is more than")]
)
def test_a_constraint_that_bounds_nothing_or_everything_is_refused(bound, said):
    with pytest.raises(ValidationError, match=said):
        Constraint(metric="x", **bound)


@pytest.mark.parametrize(
    ("bound", "value", "excess"),
    [({"at_most": 2.0}, 3.0, 0.5), ({"at_most": 2.0}, 1.0, -0.5), ({"at_least": 4.0}, 1.0, 0.75),
     ({"at_most": 0.0}, 0.3, 0.3), ({"at_most": -2.0}, -1.0, 0.5), ({"at_least": 1.0, "at_most": 2.0}, 2.0, 0.0),
     ({"at_least": 1.0, "at_most": 2.0}, 0.5, 0.5)],
)  # fmt: skip
def test_how_far_a_value_is_beyond_a_bound_is_relative_to_it(bound, value, excess):
    assert Constraint(metric="x", **bound).excess(value) == pytest.approx(excess)


def test_a_run_is_stopped_only_by_what_it_reports_while_it_trains():
    assert {name for name, known in metrics().items() if known.metric.among == "training"} == set(REPORTED)
    assert Asha(metric="train/nll").metric == "train/nll"
    with pytest.raises(ValidationError, match=r"eval/heldout/nll or train/nll.*may be an objective"):
        Asha(metric="geometry/kl_to_base")


def test_a_metric_stands_once_among_the_objectives_and_may_be_bounded_besides():
    accuracy = {"metric": "eval/accuracy"}
    SweepSettings(objectives=(accuracy,), constraints=({**accuracy, "at_least": 0.5},))
    with pytest.raises(ValidationError, match="every objective needs a metric of its own"):
        SweepSettings(objectives=(accuracy, accuracy))
