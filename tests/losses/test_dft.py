import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs, rollouts, weights_of

from raygeo.losses import DFT, SFT


def test_learns_from_the_rows_asked_for():
    table = rollouts(a="cw", b="w")
    assert weights_of(DFT().select(table)) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert weights_of(DFT(rows="correct").select(table)) == {0: 1.0}


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_gradient_is_that_of_minus_the_sum_of_probabilities(case):
    inputs = make_inputs(DFT(), **case)
    probabilities = -inputs.logprobs.exp()[inputs.mask].sum()
    torch.testing.assert_close(gradient(DFT(), inputs), torch.autograd.grad(probabilities, inputs.logprobs)[0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value_is_at_most_that_of_sft(case):
    inputs = make_inputs(DFT(), **case)
    assert 0 <= DFT()(inputs).total <= SFT()(inputs).total


def test_reports_the_mean_probability():
    inputs = make_inputs(DFT(), seed=1, lengths=[2, 3])
    value, unit = DFT()(inputs).metrics["probability"]
    assert unit == "token"
    torch.testing.assert_close(value / 5, inputs.logprobs.exp()[inputs.mask].mean())


def test_refuses_other_rows():
    with pytest.raises(ValueError, match="rows"):
        DFT(rows="wrong")
