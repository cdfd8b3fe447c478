from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs, rollouts

from raygeo.losses import IFT, SFT

TABLE = rollouts(a="cw", b="w")


def with_losses(nll):
    inputs = make_inputs(IFT(), seed=0, lengths=[len(nll)], width=len(nll))
    return replace(inputs, logprobs=-torch.tensor([nll], dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_is_sft_exactly_without_mixing_and_discount(normalization, case):
    ift, sft = IFT(lam=0.0, gamma=0.0, normalization=normalization), SFT(normalization=normalization)
    assert ift.embedding_mix == 0
    assert ift.select(TABLE).examples == sft.select(TABLE).examples
    inputs = make_inputs(sft, **case)
    torch.testing.assert_close(ift(inputs).total, sft(inputs).total, rtol=0, atol=0)
    torch.testing.assert_close(gradient(ift, inputs), gradient(sft, inputs), rtol=0, atol=0)


def test_inputs_are_mixed_as_asked():
    assert IFT().embedding_mix == 0.2
    assert IFT(lam=0.7).embedding_mix == 0.7


def test_value_by_hand():
    tails = [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]
    expected = 3 * (1 * tails[0] + 2 * tails[1] + 4 * tails[2]) / sum(tails)
    assert IFT(gamma=0.5)(with_losses([1.0, 2.0, 4.0])).total.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("gamma", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
def test_value_is_that_of_the_dense_discounts(gamma, length):
    inputs = make_inputs(IFT(), seed=length, lengths=[length, 1], width=100)
    nll = -inputs.logprobs.detach()[0][inputs.mask[0]]
    steps = torch.arange(length, dtype=torch.float64)
    tails = (gamma ** (steps - steps[:, None]).clamp(min=0)).triu() @ nll
    expected = (nll * tails / tails.mean()).sum() - inputs.logprobs.detach()[1][inputs.mask[1]].sum()
    torch.testing.assert_close(IFT(gamma=gamma)(inputs).total, expected, rtol=1e-12, atol=0)


def test_equal_losses_weigh_earlier_tokens_more_and_one_on_average():
    loss = IFT(gamma=1.0)
    output = loss(with_losses([0.5] * 4))
    assert output.total.item() == pytest.approx(0.5 * 4)
    weights = loss.token_objective(with_losses([0.5] * 4)).detach()[0] / -0.5
    torch.testing.assert_close(weights, torch.tensor([1.6, 1.2, 0.8, 0.4], dtype=torch.float64))


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_gradient_passes_through_the_weights(normalization):
    loss = IFT(normalization=normalization)
    inputs = make_inputs(loss, seed=4, lengths=[3, 5, 1])
    assert torch.autograd.gradcheck(lambda x: loss(replace(inputs, logprobs=x)).total, inputs.logprobs)


def test_a_row_without_any_loss_gives_no_gradient():
    slope = gradient(IFT(), with_losses([0.0, 0.0, 0.0]))
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("wrong", [{"lam": -0.1}, {"lam": 1.1}, {"gamma": 1.1}, {"gamma": -0.1}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        IFT(**wrong)
