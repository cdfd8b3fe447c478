import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import DPO, RobustDPO


def test_is_log_two_at_the_base():
    inputs = make_inputs(RobustDPO(), seed=0, lengths=[4, 2, 7, 1])
    total = RobustDPO()(replace(inputs, reference_logprobs=inputs.logprobs.detach())).total
    assert total.item() / 2 == pytest.approx(math.log(2), rel=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_its_mean_over_flipped_labels_is_dpo(epsilon, case):
    loss = RobustDPO(label_smoothing=epsilon)
    inputs = make_inputs(loss, **case)
    flipped = replace(inputs, pairs=inputs.pairs.flip(-1))
    mean = (1 - epsilon) * loss(inputs).total + epsilon * loss(flipped).total
    slope = (1 - epsilon) * gradient(loss, inputs) + epsilon * gradient(loss, flipped)
    torch.testing.assert_close(mean, DPO()(inputs).total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, gradient(DPO(), inputs), rtol=1e-11, atol=1e-14)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_is_dpo_less_a_multiple_of_the_margin(case):
    dpo, loss = DPO(beta=0.7), RobustDPO(beta=0.7, label_smoothing=0.2)
    inputs = make_inputs(dpo, **case)
    expected = dpo(inputs).total - 0.2 / 0.6 * dpo.margins(inputs).sum()
    torch.testing.assert_close(loss(inputs).total, expected, rtol=1e-12, atol=1e-12)


def test_without_flips_it_is_dpo():
    inputs = make_inputs(DPO(), seed=1, lengths=[4, 2, 7, 1])
    loss = RobustDPO(label_smoothing=0.0)
    assert torch.equal(loss(inputs).total, DPO()(inputs).total)
    assert torch.equal(gradient(loss, inputs), gradient(DPO(), inputs))


@pytest.mark.parametrize("wrong", [{"label_smoothing": 0.5}, {"label_smoothing": -0.1}, {"flip_rate": 0.1}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        RobustDPO(**wrong)
