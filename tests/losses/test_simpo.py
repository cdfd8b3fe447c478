from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import NormalizedDPO, SimPO


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value(case):
    loss = SimPO(beta=2.5, simpo_gamma=1.4)
    inputs = make_inputs(loss, **case)
    rows = zip(inputs.logprobs.detach(), inputs.mask, strict=True)
    means = torch.stack([row[mask].mean() for row, mask in rows])
    rewards = 2.5 * (means[0::2] - means[1::2])
    output = loss(inputs)
    torch.testing.assert_close(output.total, torch.log1p(torch.exp(1.4 - rewards)).sum())
    torch.testing.assert_close(output.metrics["margin"][0], rewards.sum())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_without_target_it_is_normalised_dpo_with_a_uniform_reference(case):
    simpo, normalised = SimPO(beta=3.0, simpo_gamma=0.0), NormalizedDPO(beta=3.0)
    inputs = make_inputs(simpo, **case)
    uniform = replace(inputs, reference_logprobs=torch.full_like(inputs.logprobs, -5.0))
    torch.testing.assert_close(simpo(inputs).total, normalised(uniform).total)
    torch.testing.assert_close(gradient(simpo, inputs), gradient(normalised, uniform))


def test_a_reference_has_no_influence():
    inputs = make_inputs(SimPO(), seed=1, lengths=[4, 2])
    given_one = replace(inputs, reference_logprobs=torch.full_like(inputs.logprobs, torch.nan))
    assert torch.equal(SimPO()(given_one).total, SimPO()(inputs).total)


@pytest.mark.parametrize("wrong", [{"simpo_gamma": -0.1}, {"gamma": 0.1}, {"beta": 0.0}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        SimPO(**wrong)
