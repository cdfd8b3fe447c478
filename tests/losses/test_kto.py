from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import any_inputs, gradient, make_inputs, rollouts, weights_of, with_column

from raygeo.errors import TrainingError
from raygeo.losses import KTO

LOSS = KTO(beta=0.4, desirable_weight=1.3, undesirable_weight=0.6)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_correct_rollouts_are_desirable():
    selection = LOSS.select(rollouts(a="cwt", b="ww", c="c?"))
    assert weights_of(selection) == {0: 1.3, 1: -0.6, 3: -0.6, 4: -0.6, 5: 1.3}
    assert selection.counts["negative_rows"] == selection.counts["wrong_rows"] == 3


def test_mixed_prompts_only():
    selection = KTO(prompts="mixed").select(rollouts(a="cw", b="ww", c="cc", d="ct"))
    assert weights_of(selection) == {0: 1.0, 1: -1.0}


def test_is_half_of_each_weight_at_the_base():
    inputs = make_inputs(LOSS, seed=0, lengths=[4, 2, 7, 1])
    at_base = replace(inputs, reference_logprobs=inputs.logprobs.detach(), kl_baseline=scalar(0.0))
    output = LOSS(at_base)
    assert output.unit == "sequence"
    assert output.total.item() == (1.3 + 0.6 + 1.3 + 0.6) / 2


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=any_inputs, baseline=st.floats(-5, 5))
def test_value_and_metrics(case, baseline):
    inputs = replace(make_inputs(LOSS, **case), kl_baseline=scalar(baseline))
    ratios = ((inputs.logprobs - inputs.reference_logprobs).detach() * inputs.mask).sum(-1)
    correct, wrong = ratios[0::2], ratios[1::2]
    z = max(0.0, baseline)
    value = 1.3 * (1 - 1 / (1 + torch.exp(-0.4 * (correct - z)))) + 0.6 * (1 - 1 / (1 + torch.exp(-0.4 * (z - wrong))))
    output = LOSS(inputs)
    torch.testing.assert_close(output.total, value.sum())
    expected = {
        "kl": scalar(z * len(ratios)),
        "desirable": scalar(len(correct)),
        "desirable_logratio": correct.sum(),
        "undesirable_logratio": wrong.sum(),
    }
    torch.testing.assert_close({key: output.metrics[key][0] for key in expected}, expected)
    assert {output.metrics[key][1] for key in expected} == {"sequence"}
    assert not any(metric.requires_grad for metric, _ in output.metrics.values())


def test_gradients_are_finite_differences():
    inputs = make_inputs(LOSS, seed=11, lengths=[3, 6, 2, 1])
    assert torch.autograd.gradcheck(lambda x: LOSS(replace(inputs, logprobs=x)).total, inputs.logprobs)


def test_is_bounded_and_stops_far_from_the_reference_point():
    inputs = make_inputs(LOSS, seed=1, lengths=[3, 3])
    for shift, total in ((1e4, 0.6), (-1e4, 1.3)):
        far = replace(inputs, reference_logprobs=inputs.reference_logprobs - shift)
        assert LOSS(far).total.item() == total
        assert not gradient(LOSS, far).any()


def test_the_baseline_is_held_constant():
    inputs = make_inputs(LOSS, seed=2, lengths=[3, 4])
    moving = replace(inputs, kl_baseline=inputs.logprobs[0].sum().abs())
    fixed = replace(inputs, kl_baseline=moving.kl_baseline.detach())
    assert torch.equal(gradient(LOSS, moving), gradient(LOSS, fixed))


def test_a_batch_may_lack_either_kind():
    inputs = make_inputs(LOSS, seed=3, lengths=[3, 4])
    for weight in (1.3, -0.6):
        output = LOSS(replace(inputs, weights=torch.full_like(inputs.weights, weight)))
        assert output.metrics["desirable"][0] == 2 * (weight > 0)
        assert all(torch.isfinite(metric) for metric, _ in output.metrics.values())


def test_a_rollout_that_counts_nothing_is_desirable_if_it_is_correct():
    selection = LOSS.select(with_column(rollouts(a="cwcw"), "weight", [0.0, 0.0, None, None]))
    inputs = make_inputs(LOSS, seed=4, lengths=[3, 4, 2, 5])
    weights = torch.tensor([weights_of(selection)[row] for row in range(4)], dtype=torch.float32)
    output = LOSS(replace(inputs, weights=weights))
    ratios = ((inputs.logprobs - inputs.reference_logprobs).detach() * inputs.mask).sum(-1)
    assert output.metrics["desirable"][0] == 2
    torch.testing.assert_close(output.metrics["desirable_logratio"][0], ratios[[0, 2]].sum())
    torch.testing.assert_close(output.metrics["undesirable_logratio"][0], ratios[[1, 3]].sum())
    counting = LOSS(make_inputs(LOSS, seed=4, lengths=[3, 4, 2, 5])).total
    assert 0 < output.total < counting


@pytest.mark.parametrize("missing", ["reference_logprobs", "kl_baseline"])
def test_needs_reference_and_baseline(missing):
    assert LOSS.needs == {"reference", "mismatched"}
    with pytest.raises(TrainingError, match="KTO was given no"):
        LOSS(replace(make_inputs(LOSS, seed=0, lengths=[2, 2]), **{missing: None}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 0.0},
        {"desirable_weight": 0.0},
        {"undesirable_weight": -1.0},
        {"prompts": "some"},
        {"normalization": "token"},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError):
        KTO(**wrong)
