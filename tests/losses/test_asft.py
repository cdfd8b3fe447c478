from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, make_inputs, rollouts, weights_of
from torch.distributions import Categorical, kl_divergence

from raygeo.errors import TrainingError
from raygeo.losses import ASFT, DFT
from raygeo.models.likelihood import TokenLogits


def tokens(seed: int, count: int = 40, scale: float = 2.0) -> TokenLogits:
    generator = torch.Generator().manual_seed(seed)
    logits, base = scale * torch.randn(2, count, 13, generator=generator, dtype=torch.float64)
    return TokenLogits(logits.requires_grad_(), torch.zeros(count, dtype=torch.int64), None, base)


def test_learns_from_the_rows_asked_for():
    table = rollouts(a="cw", b="w")
    assert weights_of(ASFT().select(table)) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert weights_of(ASFT(rows="correct").select(table)) == {0: 1.0}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_is_that_of_torch(direction):
    given = tokens(seed=0)
    base, student = Categorical(logits=given.reference_logits), Categorical(logits=given.logits)
    expected = kl_divergence(base, student) if direction == "forward" else kl_divergence(student, base)
    torch.testing.assert_close(ASFT(direction=direction).token_terms(given)["kl"], expected, rtol=1e-12, atol=1e-14)


def test_gradient_in_the_logits_is_the_difference_of_probabilities():
    given = tokens(seed=1)
    [slope] = torch.autograd.grad(ASFT().token_terms(given)["kl"].sum(), given.logits)
    expected = given.logits.softmax(-1) - given.reference_logits.softmax(-1)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_and_its_gradient_vanish_at_the_base(direction):
    given = tokens(seed=2)
    given = replace(given, reference_logits=given.logits.detach() + 3.0)
    kl = ASFT(direction=direction).token_terms(given)["kl"]
    assert kl.abs().max() < 1e-14
    assert torch.autograd.grad(kl.sum(), given.logits)[0].abs().max() < 1e-14


def test_no_gradient_reaches_the_base():
    given = tokens(seed=3)
    base = given.reference_logits.clone().requires_grad_()
    kl = ASFT().token_terms(replace(given, reference_logits=base))["kl"]
    assert torch.autograd.grad(kl.sum(), base, allow_unused=True) == (None,)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_is_dft_plus_the_weighted_divergence(case):
    loss = ASFT(kl_weight=0.7)
    inputs = make_inputs(loss, **case)
    divergence = inputs.terms["kl"][inputs.mask].sum()
    output = loss(inputs)
    torch.testing.assert_close(output.total, DFT()(inputs).total + 0.7 * divergence)
    assert output.metrics["kl"][1] == "token"
    torch.testing.assert_close(output.metrics["kl"][0], divergence)
    torch.testing.assert_close(output.metrics["probability"][0], DFT()(inputs).metrics["probability"][0])


def test_needs_the_logits_of_the_base():
    assert ASFT().needs == {"reference_logits"}
    with pytest.raises(TrainingError, match="no logits of the base"):
        ASFT().token_terms(replace(tokens(seed=0), reference_logits=None))
    with pytest.raises(TrainingError, match="no divergence"):
        ASFT()(replace(make_inputs(ASFT(), seed=0, lengths=[2, 2]), terms={}))


@pytest.mark.parametrize("wrong", [{"kl_weight": 0.0}, {"direction": "both"}, {"rows": "wrong"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        ASFT(**wrong)
