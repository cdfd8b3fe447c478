from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import IPO


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_at_the_base(beta):
    loss = IPO(beta=beta)
    inputs = make_inputs(loss, seed=0, lengths=[4, 2, 7, 1])
    total = loss(replace(inputs, reference_logprobs=inputs.logprobs.detach())).total
    assert total.item() / 2 == pytest.approx((1 / (2 * beta)) ** 2, rel=1e-14)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value(case):
    loss = IPO(beta=0.25)
    inputs = make_inputs(loss, **case)
    ratios = (inputs.logprobs - inputs.reference_logprobs).detach()
    means = torch.stack([row[mask].mean() for row, mask in zip(ratios, inputs.mask, strict=True)])
    margins = means[0::2] - means[1::2]
    output = loss(inputs)
    torch.testing.assert_close(output.total, (margins**2 - 4 * margins + 4).sum())
    torch.testing.assert_close(output.metrics["margin"][0], margins.sum())


def test_pulls_back_beyond_its_target():
    loss = IPO(beta=0.5)
    inputs = make_inputs(loss, seed=1, lengths=[4, 2])
    slopes = []
    for margin in (0.5, 1.0, 1.5):
        reference = inputs.logprobs.detach().clone()
        reference[0, inputs.mask[0]] -= margin
        slopes.append(gradient(loss, replace(inputs, reference_logprobs=reference))[0, inputs.mask[0]])
    expected = torch.tensor([[-0.25], [0.0], [0.25]], dtype=torch.float64).expand(3, 4)
    torch.testing.assert_close(torch.stack(slopes), expected)


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -0.1}, {"tau": 0.1}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        IPO(**wrong)
