from dataclasses import replace

import pytest
import torch
from loss_cases import gradient, make_inputs, rollouts

from raygeo.errors import TrainingError
from raygeo.losses import OfflineGRPO, OffPolicyGRPO

TABLE = rollouts(a="cwww", b="cc", c="ww", d=[("c", 0.7), ("w", -2.0), ("t", 9.0)])
RATIOS = ["clipped", "truncated", "sequence"]
ADVANTAGES = [{}, {"bias": 0.0}, {"bias_on": "all_correct"}, {"scale_rewards": True, "bias": 0.3}, {"prompts": "mixed"}]


@pytest.mark.parametrize("options", ADVANTAGES)
def test_advantages_are_those_of_offline_grpo(options):
    assert OffPolicyGRPO(**options).select(TABLE) == OfflineGRPO(**options).select(TABLE)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_has_the_gradient_of_logp_on_policy(ratio, normalization):
    loss, logp = (kind(normalization=normalization) for kind in (OffPolicyGRPO, OfflineGRPO))
    loss = loss.model_copy(update={"ratio": ratio})
    inputs = make_inputs(loss, seed=2, lengths=[3, 5, 1, 7])
    inputs = replace(inputs, behaviour_logprobs=inputs.logprobs.detach())
    torch.testing.assert_close(gradient(loss, inputs), gradient(logp, inputs))
    metrics = loss(inputs).metrics
    assert metrics["clipped"][0].item() == metrics["log_ratio"][0].item() == 0


def test_clipped_is_the_surrogate_of_ppo_with_an_asymmetric_range():
    loss = OffPolicyGRPO(epsilon=0.3, epsilon_high=0.6)
    inputs = make_inputs(loss, seed=7, lengths=[7, 6, 5, 4], scale=3.0)
    ratio = (inputs.logprobs - inputs.behaviour_logprobs).exp()
    advantage = inputs.weights[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.6) * advantage)
    output = loss(inputs)
    torch.testing.assert_close(output.total, -surrogate[inputs.mask].sum())
    outside = (((advantage > 0) & (ratio > 1.6)) | ((advantage < 0) & (ratio < 0.7)))[inputs.mask]
    slope = gradient(loss, inputs)[inputs.mask]
    assert 0 < outside.sum() < outside.numel()
    assert torch.equal(slope == 0, outside)
    assert output.metrics["clipped"][0].item() == outside.sum().item()


def test_truncated_caps_the_weight_and_never_loses_a_token():
    loss = OffPolicyGRPO(ratio="truncated", cap=1.5)
    inputs = make_inputs(loss, seed=7, lengths=[7, 6, 5, 4], scale=3.0)
    weight = (inputs.logprobs - inputs.behaviour_logprobs).detach().exp().clamp(max=1.5)
    value = -(weight * inputs.weights[:, None] * inputs.logprobs)[inputs.mask].sum()
    output = loss(inputs)
    torch.testing.assert_close(output.total, value)
    torch.testing.assert_close(gradient(loss, inputs), torch.autograd.grad(value, inputs.logprobs)[0])
    assert (gradient(loss, inputs)[inputs.mask] != 0).all()
    assert output.metrics["clipped"][0].item() == (weight[inputs.mask] == 1.5).sum().item() > 0


def test_sequence_is_the_clipped_geometric_mean_of_ratios():
    loss = OffPolicyGRPO(ratio="sequence", normalization="sequence", epsilon=0.1, epsilon_high=0.2)
    inputs = make_inputs(loss, seed=8, lengths=[7, 6, 5, 4])
    rows = zip(inputs.logprobs, inputs.behaviour_logprobs, inputs.mask, strict=True)
    ratios = torch.stack([(p[m] - q[m]).mean().exp() for p, q, m in rows])
    surrogate = torch.minimum(ratios * inputs.weights, ratios.clamp(0.9, 1.2) * inputs.weights)
    torch.testing.assert_close(loss(inputs).total, -surrogate.sum())


@pytest.mark.parametrize("ratio", ["clipped", "sequence"])
def test_finite_differences(ratio):
    loss = OffPolicyGRPO(ratio=ratio, epsilon=0.05, epsilon_high=0.1)
    inputs = make_inputs(loss, seed=7, lengths=[7, 6, 5, 4], scale=3.0)
    assert 0 < loss(inputs).metrics["clipped"][0] < 22
    assert torch.autograd.gradcheck(lambda x: loss(replace(inputs, logprobs=x)).total, inputs.logprobs)


@pytest.mark.parametrize("ratio", RATIOS)
def test_survives_a_token_the_behaviour_policy_all_but_excludes(ratio):
    loss = OffPolicyGRPO(ratio=ratio)
    inputs = make_inputs(loss, seed=2, lengths=[3, 3], width=3)
    behaviour = inputs.behaviour_logprobs.clone()
    behaviour[0] = -2000.0
    slope = gradient(loss, replace(inputs, behaviour_logprobs=behaviour))
    assert slope[0].tolist() == pytest.approx([-0.6 * 5] * 3 if ratio == "truncated" else [0.0] * 3)


def test_needs_behaviour_logprobs():
    assert OffPolicyGRPO().needs == {"behaviour"}
    with pytest.raises(TrainingError, match="that wrote the rollouts"):
        OffPolicyGRPO()(make_inputs(OfflineGRPO(), seed=0, lengths=[2, 2]))


@pytest.mark.parametrize(
    "wrong", [{"ratio": "ppo"}, {"epsilon": 0.0}, {"epsilon": 1.0}, {"epsilon_high": 0.0}, {"cap": 0.0}]
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        OffPolicyGRPO(**wrong)


def extreme(loss, log_ratio, dtype=torch.float32):
    """A row whose tokens are far likelier than under the behaviour policy, with a negative advantage, and another."""
    inputs = make_inputs(loss, seed=2, lengths=[3, 3], width=3)
    logprobs = inputs.logprobs.detach().to(dtype).requires_grad_()
    behaviour = logprobs.detach().clone()
    behaviour[0] -= log_ratio
    weights = torch.tensor([-0.65, 0.35], dtype=dtype)
    return replace(inputs, logprobs=logprobs, behaviour_logprobs=behaviour, weights=weights)


@pytest.mark.parametrize("ratio", ["clipped", "sequence"])
@pytest.mark.parametrize("log_ratio", [60.0, 100.0, 1000.0])
def test_negative_advantages_stay_finite_in_fp32_at_extreme_ratios(ratio, log_ratio):
    loss = OffPolicyGRPO(ratio=ratio)
    inputs = extreme(loss, log_ratio)
    output = loss(inputs)
    assert torch.isfinite(output.total)
    assert output.metrics["clipped"][0].item() == 3
    slope = gradient(loss, inputs)
    assert torch.isfinite(slope.norm())
    assert torch.equal(slope[0], torch.zeros(3))
    below = extreme(loss, 19.0, torch.float64)
    torch.testing.assert_close(loss(below).total, 0.65 * 3 * torch.tensor(19.0).double().exp() - 0.35 * 3)


@pytest.mark.parametrize("ratio", ["clipped", "sequence"])
@pytest.mark.parametrize(("log_ratio", "multiplied"), [(0.5, 1.6487212707), (1.2, 3.0), (50.0, 3.0), (-1.0, 0.8)])
def test_a_dual_clip_bounds_the_loss_of_negative_advantages(ratio, log_ratio, multiplied):
    # max(min(ratio A, clip(ratio) A), c A) for A < 0 (Ye et al. 2020).
    loss = OffPolicyGRPO(ratio=ratio, dual_clip=3.0)
    inputs = extreme(loss, log_ratio, torch.float64)
    output = loss(inputs)
    torch.testing.assert_close(output.total.item(), 3 * (0.65 * multiplied - 0.35))
    inside = log_ratio == 0.5
    assert output.metrics["clipped"][0].item() == (0 if inside else 3)
    assert bool((gradient(loss, inputs)[0] == 0).all()) != inside
    upward = replace(inputs, weights=-inputs.weights)  # positive advantages are clipped as ever
    torch.testing.assert_close(loss(upward).total, OffPolicyGRPO(ratio=ratio)(upward).total)


def test_the_ppo_surrogate_of_offline_grpo_has_the_same_dual_clip():
    inputs = extreme(OffPolicyGRPO(), 5.0, torch.float64)
    against_base = replace(inputs, reference_logprobs=inputs.behaviour_logprobs, behaviour_logprobs=None)
    offline, off_policy = OfflineGRPO(surrogate="ppo", dual_clip=2.0), OffPolicyGRPO(dual_clip=2.0)
    torch.testing.assert_close(offline(against_base).total, off_policy(inputs).total)
    with pytest.raises(ValueError):
        OfflineGRPO(dual_clip=1.0)
