from math import exp

import pytest
from loss_cases import rollouts, weights_of

from raygeo.errors import DataError
from raygeo.losses import AWR, RFT, SFT

TABLE = rollouts(a="cwww", b="cc", c="w?t", d="wc")


def test_weights_have_two_levels_a_prompt():
    weights = weights_of(AWR(beta=0.5).select(TABLE))
    expected = [exp(0.75 / 0.5), *[exp(-0.25 / 0.5)] * 3, 1, 1, 1, exp(-1), exp(1)]
    assert list(weights.values()) == pytest.approx(expected, rel=1e-14)


def test_without_baseline_it_is_reward_weighted_regression():
    table = rollouts(a=[("c", 2.0), ("w", -1.0)], b="cw")
    assert weights_of(AWR(baseline="none", beta=2.0).select(table)) == pytest.approx(
        {0: exp(1), 1: exp(-0.5), 2: exp(0.5), 3: 1}
    )


@pytest.mark.parametrize("baseline", ["group_mean", "none"])
def test_is_sft_at_infinite_temperature(baseline):
    assert AWR(baseline=baseline, beta=1e300).select(TABLE).examples == SFT().select(TABLE).examples


def test_is_rft_on_mixed_prompts_at_temperature_zero():
    weights = weights_of(AWR(beta=1e-300, max_weight=3.0, prompts="mixed").select(TABLE))
    rft = weights_of(RFT(prompts="mixed").select(TABLE))
    assert weights == pytest.approx({row: 3.0 * rft.get(row, 0.0) for row in weights})
    assert set(rft) < set(weights)


def test_prompts_with_equal_rewards_keep_weight_one():
    assert set(weights_of(AWR(beta=1e-300).select(rollouts(a="cc", b="www"))).values()) == {1.0}


def test_without_baseline_and_rewards_zero_and_minus_one_it_is_rft_at_temperature_zero():
    table = rollouts(a=[("c", 0.0), ("w", -1.0)], b=[("w", -1.0)], c=[("c", 0.0)])
    weights = weights_of(AWR(baseline="none", beta=1e-3).select(table))
    assert {row: weight for row, weight in weights.items() if weight > 0} == weights_of(RFT().select(table))


def test_weights_are_clipped():
    weights = weights_of(AWR(baseline="none", beta=0.01, max_weight=7.0).select(rollouts(a="cw")))
    assert weights == pytest.approx({0: 7.0, 1: 1.0})


def test_refuses_a_prompt_with_some_rewards():
    with pytest.raises(DataError, match=r"rollout rows \[1\] have no finite reward"):
        AWR().select(rollouts(a=[("c", 1.0), ("w", None)]))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"max_weight": 0.0}, {"baseline": "mean"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        AWR(**wrong)
