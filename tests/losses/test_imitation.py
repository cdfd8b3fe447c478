"""Imitation of prompts, of the student's own rollouts, and of smoothed labels; and rows that count more than others."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from loss_cases import EVERY_LOSS, make_inputs, rollouts, weights_of, with_column
from tiny import decided_qwen

from raygeo.errors import DataError, TrainingError
from raygeo.losses import AWR, DPO, KTO, RFT, RIFT, S3FT, SFT, LabelSmoothedSFT
from raygeo.losses.batches import apart, with_prompts
from raygeo.losses.registry import name_of
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import Likelihood, TokenLogits
from raygeo.settings import content_key


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    sizes = [(3, 5), (6, 1), (1, 4)]
    return collate([TokenSequence(torch.randint(3, 24, (p + c,), generator=generator).numpy(), p) for p, c in sizes], 0)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_prompts_are_read_token_by_token_with_their_weight(batch, normalization, weight):
    model = decided_qwen(seed=0).double()
    loss = SFT(prompt_loss_weight=weight, normalization=normalization)
    logprobs = Likelihood(model)(with_prompts(batch))["logprobs"]
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    inputs = replace(make_inputs(SFT(), 0, [1, 1]), mask=batch.mask, weights=weights, **apart(logprobs, batch.mask))
    expected = 0.0
    for row, real in enumerate(batch.attention_mask.sum(1).tolist()):
        ids = batch.input_ids[row, :real]
        own = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        completion = batch.mask[row, : real - 1]
        each = -(own[completion].sum() + weight * own[~completion].sum())
        expected += weights[row] * each / (int(completion.sum()) if normalization == "sequence" else 1)
    torch.testing.assert_close(loss(inputs).total, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss(inputs).metrics["nll"][0], -logprobs[batch.mask].sum())


def test_without_a_weight_of_prompts_nothing_changes_and_with_one_they_must_be_there(batch):
    assert content_key(SFT()) == content_key({"type": "sft", "normalization": "token", "prompts": "all"})
    assert not SFT().reads_prompts
    inputs = make_inputs(SFT(), seed=0, lengths=[2, 3])
    with pytest.raises(TrainingError, match="no log-probabilities of prompts"):
        SFT(prompt_loss_weight=0.1)(replace(inputs, prompt_logprobs=None))


def test_s3ft_takes_the_students_own_right_answer_and_anothers_where_it_has_none():
    table = with_column(
        rollouts(a="wcc", b="cwc", c="cw", d="ww"), "source",
        ["student", "student", "student", "teacher", "student", "teacher", "teacher", "student", "student", "teacher"],
    )  # fmt: skip
    selection = S3FT().select(table)
    assert weights_of(selection) == {1: 1.0, 3: 1.0, 6: 1.0}
    assert selection.counts["own_rows"] == 1
    assert weights_of(S3FT(max_per_prompt=None).select(table)).keys() == {1, 2, 3, 5, 6}
    assert weights_of(S3FT(own="teacher").select(table)).keys() == {1, 3, 6}


def test_s3ft_says_that_nothing_is_the_students_own():
    with pytest.raises(
        DataError, match=r"none of 2 rollouts\. Their source would be 'self', and is 'student', 'teacher'"
    ):
        S3FT(own="self").select(rollouts(a="cc"))


def test_smoothed_labels_are_those_of_torch():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (20,), generator=generator)
    loss = LabelSmoothedSFT(label_smoothing=0.2)
    spread = loss.token_terms(TokenLogits(logits, targets))["spread"]
    logprobs = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    inputs = replace(
        make_inputs(SFT(), 0, [1]), logprobs=logprobs[None], mask=torch.ones(1, 20, dtype=torch.bool),
        weights=torch.ones(1, dtype=torch.float64), terms={"spread": spread[None]},
    )  # fmt: skip
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(loss(inputs).total, expected, rtol=1e-12, atol=1e-12)
    assert weights_of(LabelSmoothedSFT(rows="correct").select(rollouts(a="cw"))) == {0: 1.0}


@pytest.mark.parametrize("loss", [SFT(), RFT(), AWR(), KTO(desirable_weight=1.5)], ids=name_of)
def test_a_row_counts_what_it_is_given(loss):
    table = rollouts(a="cwc", b="w")
    plain = weights_of(loss.select(table))
    weighed = weights_of(loss.select(with_column(table, "weight", [2.0, 0.0, None, 0.5])))
    assert weighed == {row: weight * [2.0, 0.0, 1.0, 0.5][row] for row, weight in plain.items()}


def test_a_pair_counts_the_geometric_mean_of_its_rows():
    table = with_column(rollouts(a="cw", b="cw", c="cw", d="cw"), "weight", [3.0, 3.0, 2.0, 0.5, 4.0, 0.0, 2.0, 1.0])
    found = {example.rows: example.weights for example in DPO().select(table).examples}
    assert found == {(0, 1): (3.0, 3.0), (2, 3): (1.0, 1.0), (4, 5): (0.0, 0.0), (6, 7): (sqrt(2), sqrt(2))}


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_what_examples_add_is_proportional_to_their_weights(loss):
    inputs = make_inputs(loss, seed=4, lengths=[3, 4, 2, 6])
    torch.testing.assert_close(loss(replace(inputs, weights=3 * inputs.weights)).total, 3 * loss(inputs).total)


def test_rift_that_tells_verdicts_by_weights_takes_none():
    table = with_column(rollouts(a="cw"), "weight", [2.0, 1.0])
    assert weights_of(RIFT().select(table)) == {0: 2.0, 1: -0.2}
    with pytest.raises(DataError, match="leave out the field weight"):
        RIFT(negative="paper").select(table)
