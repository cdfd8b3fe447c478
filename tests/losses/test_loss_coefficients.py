"""Per-token coefficients -d total / d log p of every loss against their closed forms."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import EVERY_LOSS, POINTWISE, any_inputs, gradient, make_inputs

from raygeo.losses import (
    ASFT,
    AWR,
    DFT,
    DPO,
    FSFT,
    IFT,
    IPO,
    IWSFT,
    KDJSD,
    KTO,
    OTR,
    RFT,
    RIFT,
    S3FT,
    SFT,
    UDSSFT,
    ConservativeDPO,
    DPOWithNLL,
    KDForward,
    KDReverse,
    LabelSmoothedSFT,
    NormalizedDPO,
    OfflineGRPO,
    OffPolicyGRPO,
    PoFT,
    RobustDPO,
    SimPO,
)
from raygeo.losses.registry import name_of


def contrast(rows):
    """[B, 1] -> [P, 1]: rows alternate between chosen and rejected."""
    return rows[0::2] - rows[1::2]


def opposite(size):
    """[P, 1] -> [B, 1]: ``size`` on chosen rows, minus it on rejected ones."""
    return torch.stack([size, -size], dim=1).view(-1, 1)


def clipped(ratio, w, low, high):
    """What A is multiplied by in PPO, 0 where the clip holds."""
    return ratio * torch.where(w > 0, ratio < 1 + high, ratio > 1 - low)


def ift(nll, gamma):
    """Of one row, from the dense matrix of discounts."""
    steps = torch.arange(len(nll), dtype=nll.dtype)
    discounts = (gamma ** (steps - steps[:, None]).clamp(min=0)).triu()
    tails, reach = discounts @ nll, discounts.sum(0)
    numerator, denominator = nll @ tails, tails.sum()
    return len(nll) * ((tails + discounts.T @ nll) / denominator - numerator / denominator**2 * reach)


def closed_form(loss, inputs):
    p = inputs.logprobs.detach().exp()
    w = inputs.weights[:, None]
    length = inputs.mask.sum(-1, keepdim=True)
    log_sequence = (inputs.logprobs.detach() * inputs.mask).sum(-1, keepdim=True)
    other = inputs.behaviour_logprobs if inputs.reference_logprobs is None else inputs.reference_logprobs
    if other is not None:
        token_ratio = inputs.logprobs.detach() - other
        log_ratio = (token_ratio * inputs.mask).sum(-1, keepdim=True)
    match loss:
        case DPO():
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio)).exp()))
        case ConservativeDPO():
            a = opposite(loss.beta * (1 / (1 + (loss.beta * contrast(log_ratio)).exp()) - loss.label_smoothing))
        case RobustDPO():
            excess = loss.label_smoothing / (1 - 2 * loss.label_smoothing)
            a = opposite(loss.beta * (1 / (1 + (loss.beta * contrast(log_ratio)).exp()) + excess))
        case NormalizedDPO():
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio / length)).exp())) / length
        case DPOWithNLL():
            chosen = torch.tensor([[1.0], [0.0]], dtype=p.dtype).repeat(len(inputs.pairs), 1)
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio)).exp())) + loss.alpha * chosen / length
        case IPO():
            a = opposite(2 * (1 / (2 * loss.beta) - contrast(log_ratio / length))) / length
        case SimPO():
            margin = loss.beta * contrast(log_sequence / length) - loss.simpo_gamma
            a = opposite(loss.beta / (1 + margin.exp())) / length
        case KTO():
            s = torch.sigmoid(loss.beta * (log_ratio - inputs.kl_baseline))
            a = w * loss.beta * s * (1 - s)
        case DFT() | ASFT():
            a = p
        case OTR():
            a = inputs.terms["hits"]
        case IWSFT(level="sequence"):
            a = (loss.tau * log_ratio / length).exp().clamp(*(loss.bounds or (0, 16)))
        case IWSFT(level="token"):
            a = token_ratio.exp().clamp(0.2, 1.8)
        case IFT() if loss.gamma > 0:
            a = torch.zeros_like(p)
            for row, mask in enumerate(inputs.mask):
                a[row, mask] = ift(-inputs.logprobs.detach()[row, mask], loss.gamma)
        case PoFT():
            a = loss.beta / (1 + (loss.beta * log_ratio / length + loss.gamma).exp())
        case FSFT(divergence="chi2"):
            a = 1 - loss.beta * log_ratio / 2
        case FSFT(divergence="hellinger"):
            a = torch.where(loss.beta * log_ratio > -0.5, (1 + loss.beta * log_ratio) ** -2, 4.0)
        case RIFT(negative="token"):
            a = torch.where(w > 0, torch.ones_like(p), w * p)
        case RIFT(negative="sequence"):
            a = torch.where(w > 0, torch.ones_like(p), w * log_sequence.exp())
        case RIFT(negative="geometric"):
            a = torch.where(w > 0, torch.ones_like(p), w * (log_sequence / length).exp())
        case OfflineGRPO(surrogate="p"):
            a = w * p
        case OfflineGRPO(surrogate="shaped"):
            a = w * loss.shaping * p / (p + loss.shaping) ** 2
        case OfflineGRPO(surrogate="ppo"):
            a = w * clipped(token_ratio.exp(), w, loss.epsilon, loss.epsilon)
        case OffPolicyGRPO(ratio="clipped"):
            a = w * clipped(token_ratio.exp(), w, loss.epsilon, loss.epsilon_high)
        case OffPolicyGRPO(ratio="truncated"):
            a = w * token_ratio.exp().clamp(max=loss.cap)
        case OffPolicyGRPO(ratio="sequence"):
            a = w * clipped((log_ratio / length).exp(), w, loss.epsilon, loss.epsilon_high)
        case KDForward() | KDReverse() | KDJSD():
            a = torch.zeros_like(p)
        case LabelSmoothedSFT():
            a = (1 - loss.label_smoothing) * torch.ones_like(p)
        case SFT() | RFT() | S3FT() | UDSSFT() | AWR() | IFT() | FSFT() | RIFT() | OfflineGRPO():
            a = w * torch.ones_like(p)
        case _:
            pytest.skip(f"the coefficients of {loss.type} are not written here")
    return a * inputs.mask / (length if getattr(loss, "normalization", "token") == "sequence" else 1)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_autograd_gives_the_closed_form(loss, case):
    inputs = make_inputs(loss, **case)
    torch.testing.assert_close(-gradient(loss, inputs), closed_form(loss, inputs), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", POINTWISE, ids=name_of)
def test_coefficients_are_those_of_the_total(loss):
    inputs = make_inputs(loss, seed=3, lengths=[2, 7, 1, 4])
    with torch.no_grad():
        coefficients = loss.coefficients(inputs)
    torch.testing.assert_close(coefficients, -gradient(loss, inputs))
    assert not coefficients.requires_grad


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_masked_positions_may_hold_anything(loss):
    inputs = make_inputs(loss, seed=5, lengths=[2, 6, 3, 1])
    clean = loss(inputs)
    clean_gradient = gradient(loss, inputs)
    for junk in (float("nan"), float("inf"), -float("inf"), 1e30):
        logprobs = inputs.logprobs.detach().masked_fill(~inputs.mask, junk).requires_grad_()
        reference, behaviour = (
            None if given is None else given.masked_fill(~inputs.mask, junk)
            for given in (inputs.reference_logprobs, inputs.behaviour_logprobs)
        )
        terms = {key: values.masked_fill(~inputs.mask, junk) for key, values in inputs.terms.items()}
        dirty = replace(
            inputs, logprobs=logprobs, reference_logprobs=reference, behaviour_logprobs=behaviour, terms=terms
        )
        output = loss(dirty)
        assert torch.equal(output.total, clean.total)
        for key, (value, unit) in output.metrics.items():
            torch.testing.assert_close(value, clean.metrics[key][0], rtol=0, atol=0)
            assert unit == clean.metrics[key][1]
        torch.testing.assert_close(gradient(loss, dirty), clean_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_long_unlikely_completions_stay_finite_in_fp32(loss):
    inputs = make_inputs(loss, seed=6, lengths=[400, 399], width=400, scale=40.0)
    logprobs = inputs.logprobs.detach().float().requires_grad_()
    given = ("reference_logprobs", "behaviour_logprobs", "kl_baseline", "prompt_logprobs")
    floats = {key: value.float() for key in given if (value := getattr(inputs, key)) is not None}
    single = replace(
        inputs,
        logprobs=logprobs,
        weights=inputs.weights.float(),
        terms={key: values.float() for key, values in inputs.terms.items()},
        **floats,
    )
    output = loss(single)
    assert output.total.dtype == torch.float32
    assert torch.isfinite(output.total)
    assert torch.isfinite(gradient(loss, single)).all()
    torch.testing.assert_close(output.total.double(), loss(inputs).total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_nll_metric_is_the_plain_token_sum(loss):
    inputs = make_inputs(loss, seed=8, lengths=[3, 5, 1, 2])
    value, unit = loss(inputs).metrics["nll"]
    assert unit == "token"
    assert not value.requires_grad
    torch.testing.assert_close(value, -inputs.logprobs[inputs.mask].sum().detach())
