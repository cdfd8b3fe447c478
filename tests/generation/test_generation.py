import math
from collections import Counter
from random import Random

import pytest
import torch
from tiny import TINY, tiny_gpt2

from raygeo.errors import StudentError
from raygeo.generation.decoding import decode
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import ProblemSettings, draw_problem, word_tokenizer

ARCHITECTURE = TINY.model_copy(update={"init_std": 0.3, "context": 64})


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(ARCHITECTURE, tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def ending(tokenizer):
    """A model that likes to end: the output weights of end-of-text lean on what most states have in common."""
    model = build_model(ARCHITECTURE.model_copy(update={"tied": False}), tokenizer, seed=1).eval()
    with torch.no_grad():
        ids = torch.arange(3, 60)[None]
        model.lm_head.weight[tokenizer.eos_token_id] = 0.7 * model.model(ids).last_hidden_state[0].mean(0)
    return model


def prompts(count, seed=0):
    rng = Random(seed)
    return [draw_problem(ProblemSettings(), rng).prompt for _ in range(count)]


def generate(model, tokenizer, asked, *, batch_size=256, **how):
    return LocalEngine(model, PlainRenderer(tokenizer), batch_size).generate(Request(asked, **how))


def naive_greedy(model, tokenizer, prompt, max_new_tokens):
    """Argmax over the whole sequence at each step: no cache, no batch, no padding."""
    ids = tokenizer(prompt).input_ids
    start = len(ids)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return ids[start:]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_greedy_equals_a_naive_loop_without_cache_or_padding(ending, tokenizer, batch_size):
    asked = prompts(24)
    outcomes = set()
    answers = generate(ending, tokenizer, asked, max_new_tokens=12, batch_size=batch_size)
    for prompt, (completion,) in zip(asked, answers, strict=True):
        expected = naive_greedy(ending, tokenizer, prompt, 12)
        assert completion.tokens == len(expected)
        assert completion.truncated == (expected[-1] != tokenizer.eos_token_id)
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)
        outcomes.add(completion.truncated)
    assert outcomes == {True, False}  # both ends of a completion are met


def test_a_prompt_is_answered_alike_alone_and_among_longer_ones(model, tokenizer):
    short, *others = sorted(prompts(12, seed=3), key=len)
    (alone,) = generate(model, tokenizer, [short], max_new_tokens=10)
    together = generate(model, tokenizer, [*others, short], max_new_tokens=10, batch_size=12)
    assert together[-1] == alone


def test_padding_does_not_shift_learned_absolute_positions(tokenizer):
    model = tiny_gpt2(len(tokenizer), initializer_range=0.3)
    asked = prompts(12)
    for prompt, (completion,) in zip(asked, generate(model, tokenizer, asked, max_new_tokens=8), strict=True):
        expected = naive_greedy(model, tokenizer, prompt, 8)
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_order_and_number_of_completions(model, tokenizer):
    asked = prompts(5)
    backwards = generate(model, tokenizer, asked[::-1], max_new_tokens=5)
    assert generate(model, tokenizer, asked, max_new_tokens=5) == backwards[::-1]
    sampled = generate(model, tokenizer, asked, samples=3, temperature=1.0, max_new_tokens=5, batch_size=4)
    assert [len(completions) for completions in sampled] == [3] * 5
    assert generate(model, tokenizer, [], max_new_tokens=5) == []


def test_an_engine_writes_with_the_weights_of_the_moment(ending, tokenizer):
    engine, request = LocalEngine(ending, PlainRenderer(tokenizer)), Request(prompts(6), max_new_tokens=8)
    before = engine.generate(request)
    saved = ending.lm_head.weight.detach().clone()
    with torch.no_grad():
        ending.lm_head.weight[tokenizer.eos_token_id] = 0
        assert (changed := engine.generate(request)) != before
        assert changed == LocalEngine(ending, PlainRenderer(tokenizer)).generate(request)
        ending.lm_head.weight.copy_(saved)
    assert engine.generate(request) == before


def test_sampling_depends_on_its_seed_alone_and_leaves_the_global_generator(model, tokenizer):
    settings = {"samples": 4, "temperature": 1.0, "max_new_tokens": 8}
    asked = prompts(10)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, tokenizer, asked, seed=5, **settings)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert generate(model, tokenizer, asked, seed=5, **settings) == first
    assert generate(model, tokenizer, asked, seed=6, **settings) != first
    assert len({completion.text for completion in first[0]}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_teacher_forcing_at_the_sampling_temperature(ending, tokenizer, temperature):
    asked = prompts(6)
    answers = generate(
        ending, tokenizer, asked, samples=8, temperature=temperature, max_new_tokens=9, seed=3, batch_size=16
    )
    ends, fit = set(), 0
    for prompt, completions in zip(asked, answers, strict=True):
        for completion in completions:
            drawn = PlainRenderer(tokenizer).encode(prompt, completion.text, ended=not completion.truncated)
            if tuple(drawn.ids[drawn.prompt_length :]) != completion.ids:
                assert drawn.completion_length < completion.tokens  # special tokens were drawn, which text has not
                continue
            assert len(completion.logprobs) == completion.tokens == drawn.completion_length
            with torch.no_grad():
                logits = ending(torch.from_numpy(drawn.ids)[None]).logits[0, drawn.prompt_length - 1 : -1]
            scores = (logits / temperature).log_softmax(-1)
            expected = scores.gather(-1, torch.from_numpy(drawn.ids[drawn.prompt_length :])[:, None]).squeeze(-1)
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-5)
            ends.add(completion.truncated)
            fit += 1
    assert ends == {True, False}
    assert fit > 24


def test_ids_and_logprobs_are_those_drawn_where_the_text_tokenises_otherwise(tokenizer):
    """Of a model that writes padding, which decoding drops, about every second time."""
    model = build_model(ARCHITECTURE.model_copy(update={"tied": False}), tokenizer, seed=0).eval()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.pad_token_id] = 0.3 * model.model(torch.arange(3, 60)[None])[0][0].mean(0)
    (completions,) = generate(model, tokenizer, prompts(1), samples=64, temperature=1.0, max_new_tokens=3)
    texts = [tuple(tokenizer(c.text, add_special_tokens=False).input_ids) for c in completions]
    ends = [() if c.truncated else (tokenizer.eos_token_id,) for c in completions]
    fits = [text + end == c.ids for text, end, c in zip(texts, ends, completions, strict=True)]
    assert fits == [{tokenizer.pad_token_id, tokenizer.bos_token_id}.isdisjoint(c.ids) for c in completions]
    assert 8 < sum(fits) < 56
    assert all(len(c.logprobs) == len(c.ids) and max(c.logprobs) < 0 for c in completions)


def test_greedy_completions_have_no_logprobs(model, tokenizer):
    ((completion,),) = generate(model, tokenizer, prompts(1), max_new_tokens=4)
    assert completion.logprobs is None


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_exact_distribution_of_two_tokens(tokenizer, temperature):
    """Chi-squared statistic of 4000 completions of two tokens against the model's exact joint probabilities."""
    model = build_model(ARCHITECTURE.model_copy(update={"init_std": 0.2}), tokenizer, seed=2).eval()
    prompt = "how many pens ?"
    ids = tokenizer(prompt).input_ids
    with torch.no_grad():
        first = (model(torch.tensor([ids])).logits[0, -1] / temperature).softmax(-1)
        rows = torch.tensor([[*ids, token] for token in range(len(tokenizer))])
        second = (model(rows).logits[:, -1] / temperature).softmax(-1)
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    joint = (first[:, None] * second)[ordinary][:, ordinary]
    n = 4000
    (completions,) = generate(
        model, tokenizer, [prompt], samples=n, temperature=temperature, max_new_tokens=2, seed=0, batch_size=n
    )
    pairs = Counter(tuple(tokenizer(c.text, add_special_tokens=False).input_ids) for c in completions)
    statistic, cells = 0.0, 0
    expected_rest, seen_rest = float(n), n
    for i, a in enumerate(ordinary):
        for j, b in enumerate(ordinary):
            expected = n * float(joint[i, j])
            if expected >= 5:
                statistic += (pairs[a, b] - expected) ** 2 / expected
                cells += 1
                expected_rest -= expected
                seen_rest -= pairs[a, b]
    statistic += (seen_rest - expected_rest) ** 2 / expected_rest
    assert cells > 20
    assert abs(statistic - cells) < 4 * math.sqrt(2 * cells)


def test_truncation_and_token_counts(ending, tokenizer):
    sampled = generate(ending, tokenizer, prompts(8), samples=8, temperature=1.0, max_new_tokens=6)
    completions = [completion for row in sampled for completion in row]
    assert any(c.truncated for c in completions)
    assert any(not c.truncated for c in completions)
    for completion in completions:
        assert completion.tokens == 6 if completion.truncated else completion.tokens <= 6
        assert "<eos>" not in completion.text


def test_the_mode_of_the_model_is_put_back(model, tokenizer):
    model.train()
    generate(model, tokenizer, prompts(1), max_new_tokens=1)
    assert model.training
    model.eval()


def test_a_context_that_cannot_hold_the_completion_is_refused(model, tokenizer):
    with pytest.raises(StudentError, match="context of 64"):
        generate(model, tokenizer, prompts(1), max_new_tokens=60)


def test_diverged_weights_are_refused(tokenizer):
    broken = build_model(ARCHITECTURE, tokenizer, seed=0)
    with torch.no_grad():
        broken.model.norm.weight[0] = math.nan
    with pytest.raises(StudentError, match="NaN"):
        generate(broken, tokenizer, prompts(1), max_new_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"samples": 2, "temperature": 1.0, "seed": 4}])
def test_batches_without_memory_are_halved_and_written_as_smaller_ones_are(tokenizer, monkeypatch, how):
    model, sizes = build_model(ARCHITECTURE, tokenizer, seed=0).eval(), []
    model.name_or_path = f"halved {how}"

    def cramped(*given):
        sizes.append(len(given[3]))
        if len(given[3]) > 2:
            given[-1].manual_seed(0)  # what is drawn before memory runs out must not matter
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*given)

    asked = prompts(8, seed=1)
    expected = generate(model, tokenizer, asked, max_new_tokens=7, batch_size=2, **how)
    monkeypatch.setattr("raygeo.generation.local.decode", cramped)
    assert generate(model, tokenizer, asked, max_new_tokens=7, batch_size=8, **how) == expected
    assert sizes[:3] == [8, 4, 2]
    sizes.clear()
    assert generate(model, tokenizer, asked, max_new_tokens=7, batch_size=8, **how) == expected
    assert set(sizes) == {2}
    monkeypatch.setattr("raygeo.generation.local.decode", lambda *given: torch.empty(2**60))
    with pytest.raises(StudentError, match="writing completions: there is no memory for a batch of one"):
        generate(model, tokenizer, asked, max_new_tokens=6, batch_size=8, **how)
