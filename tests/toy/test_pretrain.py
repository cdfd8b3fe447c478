import copy
import math

import pytest
import torch
from tiny import TINY as ARCHITECTURE
from torch.nn import functional as F

from raygeo.errors import StudentError
from raygeo.generation.renderer import PlainRenderer
from raygeo.toy.architecture import build_model
from raygeo.toy.pretrain import PretrainSettings, pretrain
from raygeo.toy.word_problems import Carelessness, ProblemSettings, draw_corpus, word_tokenizer

TEXTS = draw_corpus(ProblemSettings(steps=(1, 4)), Carelessness(), 0.5, 200, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def train(tokenizer, texts=TEXTS, seed=0, architecture=ARCHITECTURE, **settings):
    model = build_model(architecture, tokenizer, seed)
    losses = []
    pretrain(model, tokenizer, texts, PretrainSettings(**settings), lambda step, total, loss: losses.append(loss))
    return model, losses


def mean_nll(model, tokenizer, texts, completion_only):
    """Token-mean negative log-likelihood, one text at a time, without any padding."""
    total, count = 0.0, 0
    for prompt, completion in texts:
        sequence = PlainRenderer(tokenizer).encode(prompt, completion)
        ids = torch.tensor(sequence.ids)
        first = sequence.prompt_length if completion_only else 1
        with torch.no_grad():
            logits = model(ids[None]).logits[0, first - 1 : -1]
        total += F.cross_entropy(logits, ids[first:], reduction="sum").item()
        count += len(ids) - first
    return total / count


def test_equal_settings_give_equal_bits_and_the_global_generator_plays_no_part(tokenizer):
    torch.manual_seed(0)
    first, losses = train(tokenizer, steps=5, batch_size=8)
    torch.manual_seed(1)
    again, losses_again = train(tokenizer, steps=5, batch_size=8)
    other, _ = train(tokenizer, steps=5, batch_size=8, seed=1)
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_seed_of_the_settings_sets_the_order_of_the_texts(tokenizer):
    models = []
    for seed in (0, 1):
        model = build_model(ARCHITECTURE, tokenizer, 0)
        pretrain(model, tokenizer, TEXTS, PretrainSettings(steps=2, batch_size=8, seed=seed))
        models.append(model)
    assert not torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)


def test_a_few_texts_are_learned_by_heart(tokenizer):
    model, losses = train(tokenizer, TEXTS[:4], steps=100, batch_size=4, warmup_steps=5, lr=2e-2)
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), rel=0.1)
    assert mean_nll(model, tokenizer, TEXTS[:4], completion_only=True) < 0.1
    assert not model.training


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_first_loss_is_the_token_mean_over_the_tokens_asked_for(tokenizer, loss_on):
    untrained = build_model(ARCHITECTURE, tokenizer, 0)
    texts = TEXTS[:8]  # one batch holds them all, of different lengths
    _, losses = train(tokenizer, texts, steps=1, batch_size=8, loss_on=loss_on)
    assert losses[0] == pytest.approx(mean_nll(untrained, tokenizer, texts, loss_on == "completion"), rel=1e-5)


def test_every_text_is_visited_equally_often(tokenizer):
    """At a vanishing rate the model stands still: two epochs of texts of one length average to the mean."""
    width = len(PlainRenderer(tokenizer).encode(*TEXTS[0]))
    texts = [text for text in TEXTS if len(PlainRenderer(tokenizer).encode(*text)) == width][:6]
    assert len(set(texts)) == 6
    model, losses = train(tokenizer, texts, steps=6, batch_size=2, lr=1e-30, weight_decay=0.0, loss_on="all")
    assert sum(losses) / 6 == pytest.approx(mean_nll(model, tokenizer, texts, completion_only=False), rel=1e-6)


def test_matrices_move_by_muon_and_the_rest_by_adamw(tokenizer):
    """One step against the optimisers applied by hand to the gradient of the loss written out."""
    settings = {"steps": 1, "batch_size": 8, "warmup_steps": 0, "lr": 1e-2, "weight_decay": 0.1}
    texts = [TEXTS[0]] * 8
    trained, _ = train(tokenizer, texts, **settings)
    expected = build_model(ARCHITECTURE, tokenizer, 0)
    sequence = PlainRenderer(tokenizer).encode(*texts[0])
    ids = torch.tensor(sequence.ids)
    start = sequence.prompt_length
    F.cross_entropy(expected(ids[None]).logits[0, start - 1 : -1], ids[start:]).backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in expected.parameters()))
    for name, p in expected.named_parameters():
        gradient = p.grad * min(1.0, 1.0 / float(norm))
        before = p.detach().clone()
        after = trained.get_parameter(name).detach()
        if p.ndim == 1 or "embed" in name:
            step = 1e-2 * gradient / (gradient.abs() + 1e-8)
            seen = gradient.abs() > 1e-5  # where Adam's epsilon and rounding play no part
            assert torch.allclose((before - after)[seen], step[seen], rtol=1e-2), name
        else:
            left, singular, right = torch.linalg.svd(gradient, full_matrices=False)
            moved = before * (1 - 1e-2 * 0.1) - after
            scale = 1e-2 * 0.2 * math.sqrt(max(p.shape))
            # Newton-Schulz leaves singular values between about 0.7 and 1.2 where the gradient has any.
            inner = torch.diagonal(left.T @ moved @ right.T)[singular > 0.05 * singular[0]] / scale
            assert inner.min() > 0.6, name
            assert inner.max() < 1.3, name


def test_padding_is_never_learned_from(tokenizer):
    """The shorter of two texts gives the same loss beside a longer one, which needs padding, as by itself."""
    short = min(TEXTS, key=lambda text: len(text[0] + text[1]))
    long = max(TEXTS, key=lambda text: len(text[0] + text[1]))
    untrained = build_model(ARCHITECTURE, tokenizer, 0)
    _, (together,) = train(tokenizer, [short, long], steps=1, batch_size=2)
    assert together == pytest.approx(mean_nll(untrained, tokenizer, [short, long], completion_only=True), rel=1e-5)


def test_the_rate_warms_up_stays_and_falls_to_a_tenth(tokenizer, monkeypatch):
    rates = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), original(self, *a))[1]
    )
    train(tokenizer, steps=20, batch_size=1, warmup_steps=4, lr=1.0e-3)
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4:11] == pytest.approx([1e-3] * 7)
    assert rates[15] == pytest.approx(0.55e-3)
    assert rates[19] == pytest.approx(0.19e-3)


def test_progress_is_told_after_each_step(tokenizer):
    calls = []
    model = build_model(ARCHITECTURE, tokenizer, 0)
    pretrain(model, tokenizer, TEXTS, PretrainSettings(steps=3, batch_size=2), lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]


def test_bad_input_is_refused(tokenizer):
    with pytest.raises(StudentError, match="no texts"):
        train(tokenizer, [])
    with pytest.raises(StudentError, match="context of 16"):
        train(tokenizer, architecture=ARCHITECTURE.model_copy(update={"context": 16}), steps=1)
    broken = build_model(ARCHITECTURE, tokenizer, 0)
    with torch.no_grad():
        broken.model.norm.weight[0] = math.inf
    with pytest.raises(StudentError, match="diverged at step 1"):
        pretrain(copy.deepcopy(broken), tokenizer, TEXTS, PretrainSettings(steps=2))
