"""Per-token coefficients -d total / d log p of every loss against their closed forms."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import EVERY_LOSS, VARIANTS, any_inputs, gradient, make_inputs, name

from raygeo.losses import (
    ASFT,
    DFT,
    DPO,
    IPO,
    KTO,
    OTR,
    RIFT,
    ConservativeDPO,
    DPOWithNLL,
    NormalizedDPO,
    OfflineGRPO,
    RobustDPO,
    SimPO,
)


def contrast(rows):
    """[B, 1] -> [P, 1]: rows alternate between chosen and rejected."""
    return rows[0::2] - rows[1::2]


def opposite(size):
    """[P, 1] -> [B, 1]: ``size`` on chosen rows, minus it on rejected ones."""
    return torch.stack([size, -size], dim=1).view(-1, 1)


def closed_form(loss, inputs):
    p = inputs.logprobs.detach().exp()
    w = inputs.weights[:, None]
    length = inputs.mask.sum(-1, keepdim=True)
    log_sequence = (inputs.logprobs.detach() * inputs.mask).sum(-1, keepdim=True)
    if inputs.reference_logprobs is not None:
        log_ratio = ((inputs.logprobs.detach() - inputs.reference_logprobs) * inputs.mask).sum(-1, keepdim=True)
    match loss:
        case DPO():
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio)).exp()))
        case ConservativeDPO():
            a = opposite(loss.beta * (1 / (1 + (loss.beta * contrast(log_ratio)).exp()) - loss.label_smoothing))
        case RobustDPO():
            excess = loss.flip_rate / (1 - 2 * loss.flip_rate)
            a = opposite(loss.beta * (1 / (1 + (loss.beta * contrast(log_ratio)).exp()) + excess))
        case NormalizedDPO():
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio / length)).exp())) / length
        case DPOWithNLL():
            chosen = torch.tensor([[1.0], [0.0]], dtype=p.dtype).repeat(len(inputs.pairs), 1)
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_ratio)).exp())) + loss.alpha * chosen / length
        case IPO():
            a = opposite(2 * (1 / (2 * loss.tau) - contrast(log_ratio / length))) / length
        case SimPO():
            a = opposite(loss.beta / (1 + (loss.beta * contrast(log_sequence / length) - loss.gamma).exp())) / length
        case KTO():
            s = torch.sigmoid(loss.beta * (log_ratio - inputs.kl_baseline))
            a = w * loss.beta * s * (1 - s)
        case DFT() | ASFT():
            a = p
        case OTR():
            a = inputs.terms["hits"]
        case RIFT(negative="token"):
            a = torch.where(w > 0, torch.ones_like(p), w * p)
        case RIFT(negative="sequence"):
            a = torch.where(w > 0, torch.ones_like(p), w * log_sequence.exp())
        case RIFT(negative="geometric"):
            a = torch.where(w > 0, torch.ones_like(p), w * (log_sequence / length).exp())
        case OfflineGRPO(surrogate="p"):
            a = w * p
        case OfflineGRPO(surrogate="ppo"):
            ratio = p / inputs.reference_logprobs.exp()
            inside = torch.where(w > 0, ratio < 1 + loss.clip, ratio > 1 - loss.clip)
            a = w * ratio * inside
        case _:
            a = w * torch.ones_like(p)
    return a * inputs.mask / (length if getattr(loss, "normalization", "token") == "sequence" else 1)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_autograd_gives_the_closed_form(loss, case):
    inputs = make_inputs(loss, **case)
    torch.testing.assert_close(-gradient(loss, inputs), closed_form(loss, inputs), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", VARIANTS, ids=name)
def test_coefficients_are_those_of_the_total(loss):
    inputs = make_inputs(loss, seed=3, lengths=[2, 7, 1, 4])
    with torch.no_grad():
        coefficients = loss.coefficients(inputs)
    torch.testing.assert_close(coefficients, -gradient(loss, inputs))
    assert not coefficients.requires_grad


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name)
def test_masked_positions_may_hold_anything(loss):
    inputs = make_inputs(loss, seed=5, lengths=[2, 6, 3, 1])
    clean = loss(inputs)
    clean_gradient = gradient(loss, inputs)
    for junk in (float("nan"), float("inf"), -float("inf"), 1e30):
        logprobs = inputs.logprobs.detach().masked_fill(~inputs.mask, junk).requires_grad_()
        reference = inputs.reference_logprobs
        reference = None if reference is None else reference.masked_fill(~inputs.mask, junk)
        terms = {key: values.masked_fill(~inputs.mask, junk) for key, values in inputs.terms.items()}
        dirty = replace(inputs, logprobs=logprobs, reference_logprobs=reference, terms=terms)
        output = loss(dirty)
        torch.testing.assert_close(output.total, clean.total, rtol=0, atol=0)
        for key, (value, unit) in output.metrics.items():
            torch.testing.assert_close(value, clean.metrics[key][0], rtol=0, atol=0)
            assert unit == clean.metrics[key][1]
        torch.testing.assert_close(torch.autograd.grad(output.total, logprobs)[0], clean_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name)
def test_long_unlikely_completions_stay_finite_in_fp32(loss):
    inputs = make_inputs(loss, seed=6, lengths=[400, 399], width=400, scale=40.0)
    logprobs = inputs.logprobs.detach().float().requires_grad_()
    reference = None if inputs.reference_logprobs is None else inputs.reference_logprobs.float()
    baseline = None if inputs.kl_baseline is None else inputs.kl_baseline.float()
    single = replace(
        inputs,
        logprobs=logprobs,
        weights=inputs.weights.float(),
        reference_logprobs=reference,
        kl_baseline=baseline,
        terms={key: values.float() for key, values in inputs.terms.items()},
    )
    output = loss(single)
    assert output.total.dtype == torch.float32
    assert torch.isfinite(output.total)
    assert torch.isfinite(torch.autograd.grad(output.total, logprobs)[0]).all()
    torch.testing.assert_close(output.total.double(), loss(inputs).total, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name)
def test_nll_metric_is_the_plain_token_sum(loss):
    inputs = make_inputs(loss, seed=8, lengths=[3, 5, 1, 2])
    value, unit = loss(inputs).metrics["nll"]
    assert unit == "token"
    assert not value.requires_grad
    torch.testing.assert_close(value, -inputs.logprobs[inputs.mask].sum().detach())
