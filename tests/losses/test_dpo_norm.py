import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.losses import DPO, NormalizedDPO


def test_is_log_two_at_the_base():
    inputs = make_inputs(NormalizedDPO(), seed=0, lengths=[4, 2, 7, 1])
    total = NormalizedDPO()(replace(inputs, reference_logprobs=inputs.logprobs.detach())).total
    assert total.item() / 2 == pytest.approx(math.log(2), rel=1e-15)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value(case):
    loss = NormalizedDPO(beta=3.0)
    inputs = make_inputs(loss, **case)
    ratios = (inputs.logprobs - inputs.reference_logprobs).detach()
    means = torch.stack([row[mask].mean() for row, mask in zip(ratios, inputs.mask, strict=True)])
    margins = 3.0 * (means[0::2] - means[1::2])
    output = loss(inputs)
    torch.testing.assert_close(output.total, torch.log1p(torch.exp(-margins)).sum())
    torch.testing.assert_close(output.metrics["margin"][0], margins.sum())


def test_is_dpo_where_lengths_are_equal():
    inputs = make_inputs(DPO(), seed=1, lengths=[5, 5, 5, 5])
    loss = NormalizedDPO(beta=0.5)
    torch.testing.assert_close(loss(inputs).total, DPO(beta=0.1)(inputs).total)
    torch.testing.assert_close(gradient(loss, inputs), gradient(DPO(beta=0.1), inputs))


def test_repeating_every_token_changes_nothing():
    loss = NormalizedDPO()
    inputs = make_inputs(loss, seed=2, lengths=[3, 6])
    twice = replace(
        inputs,
        logprobs=inputs.logprobs.repeat(1, 2),
        mask=inputs.mask.repeat(1, 2),
        reference_logprobs=inputs.reference_logprobs.repeat(1, 2),
    )
    torch.testing.assert_close(loss(twice).total, loss(inputs).total)
