import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import DPO, DPOWithNLL


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_adds_the_mean_nll_of_each_chosen_rollout(case):
    loss = DPOWithNLL(beta=0.4, alpha=0.7)
    inputs = make_inputs(loss, **case)
    rows = zip(inputs.logprobs.detach(), inputs.mask, strict=True)
    chosen = sum(-row[mask].mean() for i, (row, mask) in enumerate(rows) if i % 2 == 0)
    output = loss(inputs)
    torch.testing.assert_close(output.total, DPO(beta=0.4)(inputs).total + 0.7 * chosen)
    torch.testing.assert_close(output.metrics["chosen_nll"][0], chosen)
    assert output.metrics["chosen_nll"][1] == "pair"


def test_at_the_base():
    loss = DPOWithNLL(alpha=0.3)
    inputs = make_inputs(loss, seed=0, lengths=[4, 2])
    total = loss(replace(inputs, reference_logprobs=inputs.logprobs.detach())).total
    nll = -inputs.logprobs[0][inputs.mask[0]].mean().item()
    assert total.item() == pytest.approx(math.log(2) + 0.3 * nll, rel=1e-14)


def test_without_likelihood_it_is_dpo():
    inputs = make_inputs(DPO(), seed=1, lengths=[4, 2, 7, 1])
    loss = DPOWithNLL(alpha=0.0)
    assert torch.equal(loss(inputs).total, DPO()(inputs).total)
    assert torch.equal(gradient(loss, inputs), gradient(DPO(), inputs))


def test_large_margins_leave_the_likelihood():
    loss = DPOWithNLL(beta=1.0, alpha=2.0)
    inputs = make_inputs(loss, seed=2, lengths=[4, 2])
    reference = inputs.reference_logprobs.clone()
    reference[0] -= 1e3
    slope = gradient(loss, replace(inputs, reference_logprobs=reference))
    torch.testing.assert_close(slope[0], -inputs.mask[0].double() * 2.0 / 4)
    assert not slope[1].any()


@pytest.mark.parametrize("wrong", [{"alpha": -0.1}, {"alpha": float("inf")}, {"beta": 0.0}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        DPOWithNLL(**wrong)
