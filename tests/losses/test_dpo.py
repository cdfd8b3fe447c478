import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import any_inputs, make_inputs, rollouts

from raygeo.errors import DataError, TrainingError
from raygeo.losses import DPO


def pairs_of(selection):
    return [example.rows for example in selection.examples]


def test_pairs_are_taken_round_robin():
    table = rollouts(a="cwcw", b="cc", c="wwc", d="ww")
    selection = DPO().select(table)
    assert pairs_of(selection) == [(0, 1), (2, 3), (8, 6), (8, 7)]
    assert pairs_of(DPO(pairs_per_prompt=1).select(table)) == [(0, 1), (8, 6)]
    assert pairs_of(DPO(pairs_per_prompt=3).select(table)) == [(0, 1), (0, 3), (2, 3), (8, 6), (8, 7)]
    assert {len(example.weights) for example in selection.examples} == {2}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(members=st.lists(st.sampled_from("cw"), min_size=2, max_size=12), limit=st.integers(1, 20))
def test_no_pair_twice_and_rows_used_evenly(members, limit):
    correct, wrong = members.count("c"), members.count("w")
    if not (correct and wrong):
        with pytest.raises(DataError):
            DPO().select(rollouts(a=members))
        return
    everything = pairs_of(DPO(pairs_per_prompt=None).select(rollouts(a=members)))
    assert len(set(everything)) == len(everything) == correct * wrong
    assert all(members[chosen] == "c" and members[rejected] == "w" for chosen, rejected in everything)
    some = pairs_of(DPO(pairs_per_prompt=limit).select(rollouts(a=members)))
    assert len(set(some)) == len(some) == min(limit, correct * wrong)
    for side, rows in ((0, correct), (1, wrong)):
        uses = Counter(pair[side] for pair in some)
        assert max(uses.values()) - (min(uses.values()) if len(uses) == rows else 0) <= 1


def test_truncated_and_ungraded_rows_make_no_pair():
    selection = DPO().select(rollouts(a="ct?w", b="ct"))
    assert pairs_of(selection) == [(0, 3)]
    assert selection.counts["pairs"] == 1
    assert selection.counts["rows_used"] == 2
    assert selection.counts["truncated_dropped"] == 2
    assert selection.counts["ungraded_dropped"] == 1


def test_no_mixed_prompt():
    with pytest.raises(DataError, match=r"DPO finds nothing.*0 are mixed, 1 all correct, 1 all wrong"):
        DPO().select(rollouts(a="cc", b="w"))


def test_is_log_two_at_the_base():
    inputs = make_inputs(DPO(), seed=0, lengths=[4, 2, 7, 1])
    reference = inputs.logprobs.detach()
    output = DPO()(type(inputs)(inputs.logprobs, inputs.mask, inputs.weights, reference, inputs.pairs))
    assert output.unit == "pair"
    assert output.total.item() / 2 == pytest.approx(math.log(2), rel=1e-15)
    for key in ("margin", "rewards/accuracies", "chosen_logratio", "rejected_logratio"):
        assert output.metrics[key][0].item() == 0
        assert output.metrics[key][1] == "pair"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_value_and_metrics(case):
    loss = DPO(beta=0.7)
    inputs = make_inputs(loss, **case)
    output = loss(inputs)
    ratios = ((inputs.logprobs - inputs.reference_logprobs).detach() * inputs.mask).sum(-1)
    margins = 0.7 * (ratios[0::2] - ratios[1::2])
    expected = {
        "margin": margins.sum(),
        "rewards/accuracies": (margins > 0).double().sum(),
        "chosen_logratio": ratios[0::2].sum(),
        "rejected_logratio": ratios[1::2].sum(),
    }
    torch.testing.assert_close(output.total, torch.log1p(torch.exp(-margins)).sum())
    torch.testing.assert_close({key: output.metrics[key][0] for key in expected}, expected)


def test_pairs_may_share_rows_of_the_batch():
    apart = make_inputs(DPO(), seed=3, lengths=[3, 4, 3, 5])
    logprobs = apart.logprobs.detach()[[0, 1, 3]]
    parts = (apart.mask[[0, 1, 3]], apart.weights[:3], apart.reference_logprobs[[0, 1, 3]])
    shared = DPO()(type(apart)(logprobs, *parts, torch.tensor([[0, 1], [0, 2]])))
    copied = DPO()(
        type(apart)(logprobs[[0, 1, 0, 2]], *(p[[0, 1, 0, 2]] for p in parts), torch.tensor([[0, 1], [2, 3]]))
    )
    torch.testing.assert_close(shared.total, copied.total)
    torch.testing.assert_close(shared.metrics["nll"][0], copied.metrics["nll"][0])


def test_large_margins_do_not_overflow():
    inputs = make_inputs(DPO(), seed=0, lengths=[7, 7])
    logprobs = torch.stack([torch.full((7,), -1e4), torch.zeros(7)]).requires_grad_()
    extreme = type(inputs)(logprobs, inputs.mask, inputs.weights, torch.zeros(2, 7), inputs.pairs)
    total = DPO(beta=1.0)(extreme).total
    assert total.item() == pytest.approx(7e4)
    assert torch.equal(torch.autograd.grad(total, logprobs)[0], torch.tensor([[-1.0], [1.0]]).expand(2, 7))


def test_needs_reference_and_pairs():
    assert DPO().needs == {"reference"}
    inputs = make_inputs(DPO(), seed=0, lengths=[2, 2])
    with pytest.raises(TrainingError):
        DPO()(type(inputs)(inputs.logprobs, inputs.mask, inputs.weights, None, inputs.pairs))
    with pytest.raises(TrainingError):
        DPO()(type(inputs)(inputs.logprobs, inputs.mask, inputs.weights, inputs.reference_logprobs, None))


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"beta": -1.0}, {"pairs_per_prompt": 0}, {"normalization": "token"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        DPO(**wrong)
