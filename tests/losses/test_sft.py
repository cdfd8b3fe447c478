import pytest
import torch
from loss_cases import make_inputs, rollouts, weights_of

from raygeo.losses import SFT


def test_learns_from_every_usable_row():
    selection = SFT().select(rollouts(a="cwt", b="ww", c="c?"))
    assert weights_of(selection) == {0: 1.0, 1: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}


def test_mixed_prompts_only():
    selection = SFT(prompts="mixed").select(rollouts(a="cw", b="ww", c="cc", d="ct"))
    assert [example.rows for example in selection.examples] == [(0,), (1,)]


def test_token_normalisation_is_the_mean_over_tokens():
    inputs = make_inputs(SFT(), seed=0, lengths=[1, 6])
    output = SFT()(inputs)
    assert output.unit == "token"
    torch.testing.assert_close(output.total / 7, -inputs.logprobs[inputs.mask].mean())


def test_sequence_normalisation_is_the_mean_of_row_means():
    loss = SFT(normalization="sequence")
    inputs = make_inputs(loss, seed=0, lengths=[1, 6])
    output = loss(inputs)
    means = [-row[mask].mean() for row, mask in zip(inputs.logprobs, inputs.mask, strict=True)]
    assert output.unit == "sequence"
    torch.testing.assert_close(output.total / 2, sum(means) / 2)


def test_a_row_without_tokens_adds_nothing():
    loss = SFT(normalization="sequence")
    inputs = make_inputs(loss, seed=0, lengths=[0, 3])
    alone = inputs.logprobs[1][inputs.mask[1]]
    torch.testing.assert_close(loss(inputs).total, -alone.mean())


def test_needs_no_reference():
    assert not SFT().needs


@pytest.mark.parametrize("wrong", [{"normalization": "batch"}, {"prompts": "some"}, {"type": "rft"}, {"beta": 0.1}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        SFT(**wrong)
