from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs

from raygeo.errors import TrainingError
from raygeo.losses import FSFT, SFT

# Generators f of the divergences on u, where their conjugate's supremum over u is searched.
GENERATORS = {
    "chi2": (lambda u: (u - 1) ** 2, torch.linspace(-3, 5, 80_001, dtype=torch.float64)),
    "hellinger": (lambda u: (u.sqrt() - 1) ** 2, torch.linspace(0, 6, 60_001, dtype=torch.float64)),
    "tv": (lambda u: (u - 1).abs() / 2, torch.linspace(0, 4, 40_001, dtype=torch.float64)),
}


def with_reward(loss, reward):
    """One row of four tokens whose implicit reward is ``reward``."""
    inputs = make_inputs(loss, seed=2, lengths=[4], width=4)
    base = inputs.logprobs.detach() - reward / loss.beta / 4
    return replace(inputs, reference_logprobs=base)


@pytest.mark.parametrize("reward", [-0.4, -0.1, 0.0, 0.3, 0.45])
@pytest.mark.parametrize("divergence", GENERATORS)
def test_value_is_the_convex_conjugate(divergence, reward):
    loss = FSFT(divergence=divergence, beta=0.25)
    f, u = GENERATORS[divergence]
    conjugate = (-reward * u - f(u)).max().item()
    assert loss(with_reward(loss, reward)).total.item() == pytest.approx(conjugate / 0.25, abs=1e-7)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("divergence", GENERATORS)
def test_is_sft_at_the_base(divergence, normalization):
    loss = FSFT(divergence=divergence, normalization=normalization, beta=0.7)
    inputs = make_inputs(loss, seed=1, lengths=[4, 7, 1])
    inputs = replace(inputs, reference_logprobs=inputs.logprobs.detach())
    assert loss(inputs).total.item() == 0
    torch.testing.assert_close(gradient(loss, inputs), gradient(SFT(normalization=normalization), inputs))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_total_variation_is_sft_less_the_base(case):
    loss = FSFT(divergence="tv")
    inputs = make_inputs(loss, **case)
    base = SFT()(replace(inputs, logprobs=inputs.reference_logprobs)).total
    torch.testing.assert_close(loss(inputs).total, SFT()(inputs).total - base)
    torch.testing.assert_close(gradient(loss, inputs), gradient(SFT(), inputs))


@pytest.mark.parametrize("divergence", GENERATORS)
def test_is_sft_as_beta_vanishes(divergence):
    inputs = make_inputs(FSFT(), seed=5, lengths=[6, 3])
    torch.testing.assert_close(gradient(FSFT(divergence=divergence, beta=1e-12), inputs), gradient(SFT(), inputs))


@pytest.mark.parametrize(
    ("divergence", "reward", "coefficient"),
    [
        ("chi2", 2.0, 0.0),
        ("chi2", 4.0, -1.0),
        ("hellinger", 1.0, 0.25),
        ("hellinger", -0.5, 4.0),
        ("hellinger", -9.0, 4.0),
    ],
)
def test_coefficients_by_hand(divergence, reward, coefficient):
    loss = FSFT(divergence=divergence)
    slope = -gradient(loss, with_reward(loss, reward))
    torch.testing.assert_close(slope, torch.full_like(slope, coefficient), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reward", [-2.0, -0.6, 1.5])
@pytest.mark.parametrize("divergence", GENERATORS)
def test_finite_differences(divergence, reward):
    loss = FSFT(divergence=divergence)
    inputs = with_reward(loss, reward)
    assert torch.autograd.gradcheck(lambda x: loss(replace(inputs, logprobs=x)).total, inputs.logprobs)


def test_reports_the_implicit_reward():
    loss = FSFT(beta=0.3)
    value, unit = loss(with_reward(loss, 1.25)).metrics["reward"]
    assert (value.item(), unit) == (pytest.approx(1.25), "sequence")


def test_needs_the_base():
    assert FSFT().needs == {"reference"}
    with pytest.raises(TrainingError, match="of the base"):
        FSFT()(make_inputs(SFT(), seed=0, lengths=[2, 2]))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"divergence": "kl"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        FSFT(**wrong)
