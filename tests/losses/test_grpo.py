import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from loss_cases import any_inputs, gradient, make_inputs, rollouts, weights_of

from raygeo.errors import DataError, TrainingError
from raygeo.losses import SFT, OfflineGRPO


def test_advantages_of_the_target_paper():
    selection = OfflineGRPO().select(rollouts(a="cwww", b="ccww", c="cccw", d="cccc", e="wwww"))
    correct, wrong = [0.85, 0.6, 0.35], [-0.15, -0.4, -0.65]
    expected = [v for g in range(3) for v in [correct[g]] * (g + 1) + [wrong[g]] * (3 - g)] + [0.1] * 8
    assert list(weights_of(selection).values()) == pytest.approx(expected)
    assert selection.counts["negative_rows"] == 6


def test_bias_on_all_correct_prompts_only():
    selection = OfflineGRPO(bias_on="all_correct").select(rollouts(a="cw", b="cc", c="ww"))
    assert weights_of(selection) == pytest.approx({0: 0.5, 1: -0.5, 2: 0.1, 3: 0.1})


def test_prompts_without_signal_are_left_out():
    selection = OfflineGRPO(bias=0.0).select(rollouts(a="cc", b="cw", c=[("w", 0.3), ("c", 0.3)]))
    assert weights_of(selection) == {2: 0.5, 3: -0.5}
    assert selection.counts["rows_seen"] == 6
    assert selection.counts["rows_used"] == 2


def test_truncated_and_ungraded_rows_do_not_enter_the_mean():
    assert weights_of(OfflineGRPO(bias=0.0).select(rollouts(a="cwt?"))) == {0: 0.5, 1: -0.5}


def test_rewards_take_precedence_over_verdicts():
    table = rollouts(a=[("c", 2.0), ("c", 1.0), ("w", -3.0)], b=[("c", float("nan")), ("w", None)])
    assert weights_of(OfflineGRPO(bias=0.0).select(table)) == {0: 2.0, 1: 1.0, 2: -3.0, 3: 0.5, 4: -0.5}


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_refuses_a_prompt_with_some_rewards(missing):
    with pytest.raises(DataError, match=r"rollout rows \[1\] have no finite reward"):
        OfflineGRPO().select(rollouts(a=[("c", 1.0), ("w", missing)]))


def test_scaling_by_the_standard_deviation():
    rewards = [1.0, 0.0, 0.0, 0.25]
    loss = OfflineGRPO(scale_rewards=True, bias=0.2)
    weights = weights_of(loss.select(rollouts(a=[("w", reward) for reward in rewards], b="c")))
    mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
    assert [weights[i] for i in range(4)] == pytest.approx([(r - mean) / (deviation + 1e-4) + 0.2 for r in rewards])
    assert weights[4] == pytest.approx(0.2)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_is_bias_times_sft_on_all_correct_prompts(case):
    loss = OfflineGRPO(bias=0.3)
    assert set(weights_of(loss.select(rollouts(a="ccc", b="c"))).values()) == {0.3}
    inputs = make_inputs(SFT(), **case)
    biased = type(inputs)(inputs.logprobs, inputs.mask, 0.3 * inputs.weights)
    torch.testing.assert_close(gradient(loss, biased), 0.3 * gradient(SFT(), inputs))


def test_ppo_is_clipped_importance_sampling():
    loss = OfflineGRPO(surrogate="ppo", epsilon=0.3)
    inputs = make_inputs(loss, seed=7, lengths=[7, 6, 5, 4])
    ratio = (inputs.logprobs - inputs.reference_logprobs).exp()
    advantage = inputs.weights[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.3) * advantage)
    output = loss(inputs)
    torch.testing.assert_close(output.total, -surrogate[inputs.mask].sum())
    outside = ((advantage > 0) & (ratio > 1.3)) | ((advantage < 0) & (ratio < 0.7))
    assert 0 < output.metrics["clipped"][0].item() == outside[inputs.mask].sum().item()


def test_ppo_at_the_base_has_the_gradient_of_logp():
    ppo, logp = OfflineGRPO(surrogate="ppo"), OfflineGRPO()
    inputs = make_inputs(ppo, seed=2, lengths=[3, 5])
    at_base = type(inputs)(inputs.logprobs, inputs.mask, inputs.weights, inputs.logprobs.detach())
    torch.testing.assert_close(gradient(ppo, at_base), gradient(logp, at_base))


def test_ppo_survives_a_token_the_base_all_but_excludes():
    loss = OfflineGRPO(surrogate="ppo")
    inputs = make_inputs(loss, seed=2, lengths=[3, 3], width=3)
    reference = inputs.reference_logprobs.clone()
    reference[0] = -2000.0
    slope = gradient(loss, type(inputs)(inputs.logprobs, inputs.mask, inputs.weights, reference))
    assert torch.equal(slope[0], torch.zeros(3, dtype=torch.float64))


def test_shaped_is_bounded_and_proportional_to_p_under_wide_shaping():
    inputs = make_inputs(OfflineGRPO(), seed=6, lengths=[7, 4], scale=8.0)
    shaped = OfflineGRPO(surrogate="shaped", shaping=0.1)
    p = inputs.logprobs.exp()
    torch.testing.assert_close(shaped(inputs).total, -(inputs.weights[:, None] * p / (p + 0.1))[inputs.mask].sum())
    wide = gradient(OfflineGRPO(surrogate="shaped", shaping=1e9), inputs) * 1e9
    torch.testing.assert_close(wide, gradient(OfflineGRPO(surrogate="p"), inputs))
    slope = gradient(shaped, inputs)
    assert slope.abs()[inputs.mask].max() <= 0.6 / 4
    assert torch.autograd.gradcheck(lambda x: shaped(replace(inputs, logprobs=x)).total, inputs.logprobs)


def test_reports_what_negative_rows_contribute():
    loss = OfflineGRPO(surrogate="p")
    inputs = make_inputs(loss, seed=1, lengths=[2, 4])
    p = inputs.logprobs.exp() * inputs.mask
    metrics = loss(inputs).metrics
    torch.testing.assert_close(metrics["negative_objective"][0], 0.4 * p[1].sum().detach())
    torch.testing.assert_close(metrics["negative_mass"][0], 0.4 * p[1].sum().detach())
    torch.testing.assert_close(metrics["mass"][0], (0.6 * p[0].sum() + 0.4 * p[1].sum()).detach())


def test_reference_is_needed_by_ppo_alone():
    needs = {s: "reference" in OfflineGRPO(surrogate=s).needs for s in ("logp", "p", "shaped", "ppo")}
    assert needs == {"logp": False, "p": False, "shaped": False, "ppo": True}
    with pytest.raises(TrainingError, match="ppo"):
        OfflineGRPO(surrogate="ppo")(make_inputs(OfflineGRPO(), seed=0, lengths=[2, 2]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"surrogate": "ratio"},
        {"shaping": 0.0},
        {"bias_on": "mixed"},
        {"epsilon": 0.0},
        {"epsilon": 1.0},
        {"bias": float("nan")},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        OfflineGRPO(**wrong)
