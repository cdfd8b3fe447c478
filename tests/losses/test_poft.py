import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.errors import TrainingError
from raygeo.losses import SFT, PoFT


def at_base(inputs):
    return replace(inputs, reference_logprobs=inputs.logprobs.detach())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value_and_metrics(case):
    loss = PoFT(beta=1.5, gamma=0.2)
    inputs = make_inputs(loss, **case)
    rows = zip(inputs.logprobs.detach(), inputs.reference_logprobs, inputs.mask, strict=True)
    margins = torch.stack([1.5 * (p[m].mean() - q[m].mean()) + 0.2 for p, q, m in rows])
    output = loss(inputs)
    assert output.unit == "sequence"
    torch.testing.assert_close(output.total, torch.log1p(torch.exp(-margins)).sum())
    for key, expected in (("margin", margins), ("gate", torch.sigmoid(-margins))):
        value, unit = output.metrics[key]
        torch.testing.assert_close(value, expected.sum())
        assert unit == "sequence"


def test_is_log_two_and_half_of_sft_at_the_base():
    inputs = at_base(make_inputs(PoFT(), seed=0, lengths=[4, 2, 7]))
    assert PoFT()(inputs).total.item() == pytest.approx(3 * math.log(2), rel=1e-15)
    half = gradient(SFT(normalization="sequence"), inputs) / 2
    torch.testing.assert_close(gradient(PoFT(), inputs), half)


def test_is_sft_while_the_base_is_far_ahead():
    inputs = make_inputs(PoFT(), seed=0, lengths=[4, 2, 7])
    sft = gradient(SFT(normalization="sequence"), inputs)
    torch.testing.assert_close(gradient(PoFT(gamma=-60.0), inputs), sft)


@pytest.mark.parametrize("normalization", ["sequence", "token"])
def test_finite_differences(normalization):
    loss = PoFT(normalization=normalization, beta=2.0, gamma=-0.3)
    inputs = make_inputs(loss, seed=4, lengths=[3, 5])
    assert torch.autograd.gradcheck(lambda x: loss(replace(inputs, logprobs=x)).total, inputs.logprobs)


def test_large_margins_do_not_overflow():
    inputs = make_inputs(PoFT(), seed=0, lengths=[7, 7])
    logprobs = torch.stack([torch.full((7,), -1e4), torch.zeros(7)]).requires_grad_()
    extreme = replace(inputs, logprobs=logprobs, reference_logprobs=logprobs.detach().flip(0))
    assert PoFT()(extreme).total.item() == pytest.approx(1e4)
    torch.testing.assert_close(gradient(PoFT(), extreme), torch.tensor([[-1 / 7], [0.0]]).expand(2, 7))


def test_needs_the_base():
    assert PoFT().needs == {"reference"}
    with pytest.raises(TrainingError, match="of the base"):
        PoFT()(make_inputs(SFT(), seed=0, lengths=[2, 2]))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"gamma": float("nan")}, {"normalization": "batch"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        PoFT(**wrong)
