from dataclasses import replace

import numpy as np
import pytest
import torch
from loss_cases import make_inputs, rollouts, weights_of
from scipy import stats
from tiny import decided_qwen

from raygeo.errors import TrainingError
from raygeo.losses import DFT, OTR
from raygeo.losses.base import LossInputs
from raygeo.losses.otr import draw_tokens
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import Likelihood, TokenLogits

VOCABULARY = 7


def tokens(count: int = 5, seed: int = 0) -> TokenLogits:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, VOCABULARY, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (count,), generator=generator)
    return TokenLogits(logits.requires_grad_(), targets, torch.arange(count))


def total(loss, given: TokenLogits) -> torch.Tensor:
    """The loss of one row that holds all of the tokens."""
    logprobs = given.logits.log_softmax(-1).gather(-1, given.targets[:, None]).T
    terms = {name: values[None] for name, values in loss.token_terms(given).items()}
    return loss(LossInputs(logprobs, torch.ones_like(logprobs, dtype=torch.bool), torch.ones(1), terms=terms)).total


def slope(loss, given: TokenLogits) -> torch.Tensor:
    return torch.autograd.grad(total(loss, given), given.logits)[0]


def test_learns_from_the_rows_asked_for():
    table = rollouts(a="cw", b="w")
    assert weights_of(OTR().select(table)) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert weights_of(OTR(rows="correct").select(table)) == {0: 1.0}


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_draws_follow_the_tempered_probabilities(temperature):
    given = tokens(count=4, seed=1)
    draws = draw_tokens(given.logits, given.keys, 20000, temperature)
    expected = (given.logits / temperature).softmax(-1).detach().numpy()
    for row in range(4):
        seen = np.bincount(draws[row].numpy(), minlength=VOCABULARY)
        assert stats.chisquare(seen, 20000 * expected[row]).pvalue > 1e-3


def test_a_key_has_its_draws_in_any_company():
    given = tokens(count=30)
    whole = draw_tokens(given.logits, given.keys, 50)
    order = torch.arange(29, -1, -1)
    assert torch.equal(draw_tokens(given.logits[order], given.keys[order], 50)[order], whole)
    parts = zip(given.logits.split(7), given.keys.split(7), strict=True)
    assert torch.equal(torch.cat([draw_tokens(*part, 50) for part in parts]), whole)
    same = given.logits[:1].expand(2, -1)
    assert not torch.equal(*draw_tokens(same, torch.tensor([0, 1]), 50))


def test_impossible_tokens_are_never_drawn():
    logits = torch.full((3, VOCABULARY), -torch.inf, dtype=torch.float32)
    for row, possible in enumerate(([0], [2, 3], [6])):
        logits[row, possible] = 0.5
    draws = draw_tokens(logits, torch.arange(3), 4000)
    assert [sorted(set(row.tolist())) for row in draws] == [[0], [2, 3], [6]]


def test_logits_that_are_not_finite_give_no_index_past_the_vocabulary():
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 3] = torch.nan
    logits[1, 3] = torch.inf
    assert draw_tokens(logits, torch.arange(2), 100).max() < VOCABULARY


def test_value_is_the_mean_over_draws_of_reward_times_log_probability():
    loss, given = OTR(samples=9, temperature=1.0, wrong_reward=-0.3), tokens()
    draws = draw_tokens(given.logits, given.keys, 9)
    logprobs = given.logits.log_softmax(-1)
    expected = 0.0
    for t in range(len(draws)):
        for drawn in draws[t].tolist():
            expected -= (1.0 if drawn == given.targets[t] else -0.3) * logprobs[t, drawn] / 9
    assert 0 < (draws == given.targets[:, None]).sum() < draws.numel()
    torch.testing.assert_close(total(loss, given), expected)


def expected_slope(loss, given: TokenLogits, monkeypatch) -> torch.Tensor:
    """The mean gradient over all draws, enumerated one token at a time."""
    law = (given.logits / loss.temperature).softmax(-1).detach()
    mean = torch.zeros_like(law)
    for token in range(VOCABULARY):
        drawn = torch.full((len(law), 1), token)
        monkeypatch.setattr("raygeo.losses.otr.draw_tokens", lambda *_, drawn=drawn: drawn)
        mean += law[:, token, None] * slope(loss, given)
    monkeypatch.undo()
    return mean


@pytest.mark.parametrize("wrong_reward", [0.0, -0.1, -0.5])
def test_expected_gradient_is_a_multiple_of_that_of_dft(wrong_reward, monkeypatch):
    """A reward that all tokens share has no expected gradient, so that of the wrong ones only changes the scale."""
    given = tokens(seed=3)
    logprobs = given.logits.log_softmax(-1).gather(-1, given.targets[:, None]).T
    dft = DFT()(LossInputs(logprobs, torch.ones_like(logprobs, dtype=torch.bool), torch.ones(1))).total
    [dft_slope] = torch.autograd.grad(dft, given.logits)
    found = expected_slope(OTR(temperature=1.0, wrong_reward=wrong_reward), given, monkeypatch)
    torch.testing.assert_close(found, (1 - wrong_reward) * dft_slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", [OTR(samples=40000), OTR(samples=40000, temperature=1.0, wrong_reward=0.0)])
def test_many_draws_give_the_expected_gradient(loss, monkeypatch):
    given = tokens(seed=2)
    expected = expected_slope(loss, given, monkeypatch)
    assert (slope(loss, given) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("chunk", [24, 24 * 4])
def test_recomputed_chunks_draw_the_same_tokens(chunk):
    rng = np.random.default_rng(0)
    batch = collate([TokenSequence(rng.integers(0, 24, 4 + c), 4) for c in (5, 3, 6)], 0)
    model, loss, keys = decided_qwen(seed=0).double(), OTR(samples=8), torch.arange(14) * 1000
    gradients = []
    for size in (chunk, 10**9):
        found = Likelihood(model, loss.token_terms, size)(batch, keys)
        logprobs = found.pop("logprobs")
        model.zero_grad()
        loss(LossInputs(logprobs, batch.mask, torch.ones(3), terms=found)).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for chunked, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-13)


def test_reports_the_share_of_draws_that_hit():
    inputs = make_inputs(OTR(), seed=4, lengths=[3, 5])
    value, unit = OTR()(inputs).metrics["hits"]
    assert unit == "token"
    torch.testing.assert_close(value, inputs.terms["hits"][inputs.mask].sum())


def test_needs_keys():
    assert not OTR().needs
    with pytest.raises(TrainingError, match="keys"):
        OTR().token_terms(replace(tokens(), keys=None))
    with pytest.raises(TrainingError, match="no draws"):
        OTR()(replace(make_inputs(OTR(), seed=0, lengths=[2, 2]), terms={}))


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"temperature": 0.0}, {"wrong_reward": 1.0}, {"rows": "wrong"}])
def test_refuses(wrong):
    with pytest.raises(ValueError):
        OTR(**wrong)
