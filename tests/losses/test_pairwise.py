from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from loss_cases import PAIRWISE, any_inputs, make_inputs, rollouts

from raygeo.errors import DataError, TrainingError
from raygeo.losses import DPO, RIFT, SFT, SimPO
from raygeo.losses.registry import name_of

WITH_REFERENCE = [loss for loss in PAIRWISE if "reference" in loss.needs]
every_pairwise = pytest.mark.parametrize("loss", PAIRWISE, ids=name_of)


@every_pairwise
def test_all_learn_from_the_pairs_of_dpo(loss):
    table = rollouts(a="cwcw", b="cc", c="wwc", d="wt?c")
    assert loss.unit == "pair"
    for limit in (1, 2, None):
        limited = loss.model_copy(update={"pairs_per_prompt": limit})
        assert limited.select(table) == DPO(pairs_per_prompt=limit).select(table)


@every_pairwise
def test_no_mixed_prompt(loss):
    with pytest.raises(DataError, match=f"{loss.title.replace('+', '.')} finds nothing"):
        loss.select(rollouts(a="cc", b="w"))


def with_pairs(table, *pairs):
    return table.set_column(table.schema.get_field_index("pair"), "pair", pa.array(pairs, pa.string()))


@every_pairwise
def test_given_pairs_are_taken_all_of_them_and_no_others_made(loss):
    """Rows 0 to 7 are a prompt given in pairs, one of them cut; prompt b has none and is paired as ever."""
    table = with_pairs(rollouts(a="cwcwcwct", b="cw", c="ct"), *"xxyyyyzz", None, None, "v", "v")
    for limit in (1, None):
        selection = loss.model_copy(update={"pairs_per_prompt": limit}).select(table)
        assert [example.rows for example in selection.examples] == [(0, 1), (2, 3), (4, 5), (8, 9)]
        assert (selection.counts["given_pairs"], selection.counts["given_pairs_dropped"]) == (3, 2)
        assert selection.counts["pairs"] == 4
    with pytest.raises(DataError, match="finds nothing"):
        loss.select(with_pairs(rollouts(a="cc", b="cw", c="w"), "x", "x", "y", "z", None))


def test_losses_on_single_rollouts_see_both_of_a_given_pair():
    table = rollouts(a="cwcw")
    given = SFT().select(with_pairs(table, *"xxyy"))
    assert given.examples == SFT().select(table).examples
    assert [e.weights[0] for e in RIFT().select(with_pairs(table, *"xxyy")).examples] == [1.0, -0.2, 1.0, -0.2]


@every_pairwise
def test_gradients_are_finite_differences(loss):
    inputs = make_inputs(loss, seed=11, lengths=[3, 6, 2, 1])
    assert torch.autograd.gradcheck(lambda x: loss(replace(inputs, logprobs=x)).total, inputs.logprobs)


@every_pairwise
@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=any_inputs)
def test_metrics(loss, case):
    inputs = make_inputs(loss, **case)
    output = loss(inputs)
    base = inputs.reference_logprobs if loss.needs else torch.zeros_like(inputs.logprobs)
    rows = ((inputs.logprobs.detach() - base) * inputs.mask).sum(-1)
    kind = "logratio" if loss.needs else "logprob"
    margins = loss.margins(inputs).detach()
    expected = {
        f"chosen_{kind}": rows[0::2].sum(),
        f"rejected_{kind}": rows[1::2].sum(),
        "margin": margins.sum(),
        "rewards/accuracies": (margins > 0).double().sum(),
    }
    torch.testing.assert_close({key: output.metrics[key][0] for key in expected}, expected)
    assert {output.metrics[key][1] for key in expected} == {"pair"}
    assert not any(value.requires_grad for value, _ in output.metrics.values())


@every_pairwise
def test_exchanged_pairs_have_opposite_margins(loss):
    inputs = make_inputs(loss, seed=12, lengths=[3, 6, 2, 1])
    exchanged = replace(inputs, pairs=inputs.pairs.flip(-1))
    assert torch.equal(loss.margins(exchanged), -loss.margins(inputs))


@pytest.mark.parametrize("loss", WITH_REFERENCE, ids=name_of)
def test_no_margin_at_the_base(loss):
    inputs = make_inputs(loss, seed=0, lengths=[4, 2, 7, 1])
    metrics = loss(replace(inputs, reference_logprobs=inputs.logprobs.detach())).metrics
    assert {
        metrics[key][0].item() for key in ("margin", "rewards/accuracies", "chosen_logratio", "rejected_logratio")
    } == {0}


@every_pairwise
def test_pairs_may_share_rows_of_the_batch(loss):
    apart = make_inputs(loss, seed=3, lengths=[3, 4, 3, 5])
    reference = apart.reference_logprobs

    def some(rows, pairs):
        return replace(
            apart,
            logprobs=apart.logprobs.detach()[rows],
            mask=apart.mask[rows],
            weights=apart.weights[rows],
            reference_logprobs=None if reference is None else reference[rows],
            pairs=torch.tensor(pairs),
        )

    shared = loss(some([0, 1, 3], [[0, 1], [0, 2]]))
    copied = loss(some([0, 1, 0, 3], [[0, 1], [2, 3]]))
    torch.testing.assert_close(shared.total, copied.total)
    for key, (value, _) in shared.metrics.items():
        torch.testing.assert_close(value, copied.metrics[key][0])


@every_pairwise
def test_rows_without_tokens_are_finite(loss):
    inputs = make_inputs(loss, seed=4, lengths=[0, 0])
    total = loss(inputs).total
    assert torch.isfinite(total)
    assert not torch.autograd.grad(total, inputs.logprobs)[0].any()


@every_pairwise
def test_refuses_inputs_without_pairs_or_reference(loss):
    inputs = make_inputs(loss, seed=0, lengths=[2, 2])
    with pytest.raises(TrainingError, match="given no pairs"):
        loss(replace(inputs, pairs=None))
    if loss.needs:
        with pytest.raises(TrainingError, match="no log-probabilities of the base"):
            loss(replace(inputs, reference_logprobs=None))


def test_all_but_simpo_need_the_reference():
    assert [loss for loss in PAIRWISE if loss.needs != {"reference"}] == [SimPO()]
    assert not SimPO().needs


@every_pairwise
@pytest.mark.parametrize("wrong", [{"pairs_per_prompt": 0}, {"beta": 0.0}, {"tau": -1.0}, {"normalization": "token"}])
def test_refuses(loss, wrong):
    with pytest.raises(ValueError):
        type(loss)(**wrong)
