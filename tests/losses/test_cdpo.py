import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import DPO, ConservativeDPO


def test_is_log_two_at_the_base():
    inputs = make_inputs(ConservativeDPO(), seed=0, lengths=[4, 2, 7, 1])
    total = ConservativeDPO()(replace(inputs, reference_logprobs=inputs.logprobs.detach())).total
    assert total.item() / 2 == pytest.approx(math.log(2), rel=1e-15)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_is_dpo_plus_epsilon_times_the_margin(case):
    dpo = DPO(beta=0.7)
    inputs = make_inputs(dpo, **case)
    for epsilon in (0.0, 0.1, 0.45):
        loss = ConservativeDPO(beta=0.7, label_smoothing=epsilon)
        expected = dpo(inputs).total + epsilon * dpo.margins(inputs).sum()
        torch.testing.assert_close(loss(inputs).total, expected, rtol=1e-13, atol=1e-13)


def test_without_smoothing_it_is_dpo():
    inputs = make_inputs(DPO(), seed=1, lengths=[4, 2, 7, 1])
    loss = ConservativeDPO(label_smoothing=0.0)
    assert torch.equal(loss(inputs).total, DPO()(inputs).total)
    assert torch.equal(gradient(loss, inputs), gradient(DPO(), inputs))


@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_learning_stops_at_a_finite_margin(epsilon):
    loss = ConservativeDPO(beta=0.5, label_smoothing=epsilon)
    inputs = make_inputs(loss, seed=2, lengths=[3, 4])
    target = math.log((1 - epsilon) / epsilon) / 0.5
    reference = inputs.logprobs.detach().clone()
    reference[0, inputs.mask[0]] -= target / 3
    assert gradient(loss, replace(inputs, reference_logprobs=reference)).abs().max() < 1e-15


@pytest.mark.parametrize("wrong", [{"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"beta": 0.0}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        ConservativeDPO(**wrong)
