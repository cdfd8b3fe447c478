"""Log-probabilities of completion tokens against the model's own logits, whole or in chunks, for several families."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from tiny import ENDS, SHAPE, decided_qwen, tiny_qwen
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from raygeo.models.batches import TokenSequence, collate
from raygeo.models.head import tiled_logprobs
from raygeo.models.likelihood import (
    Likelihood,
    completion_states,
    copied_head,
    greedy_guesses,
    mixed_embeddings,
    token_logprobs,
)
from raygeo.models.lora import LoraSettings, attach_lora, without_adapters

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 2.0, "attn_implementation": "eager"}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.25}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 3.0}),
}


def make(family):
    if family == "qwen3":
        return decided_qwen(0).double()
    model, config, extra = FAMILIES[family]
    torch.manual_seed(0)
    shape = {"vocab_size": 24, **SHAPE, **ENDS, "attn_implementation": "sdpa"} | extra
    return model(config(**shape, initializer_range=0.2)).eval().double()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return collate([TokenSequence(rng.integers(3, 24, p + c), p) for p, c in [(3, 5), (1, 7), (6, 1), (2, 2)]], 0)


def by_hand(model, batch):
    """One sequence at a time, without padding, from the whole model's logits."""
    rows = []
    for ids, attention, mask in zip(batch.input_ids, batch.attention_mask, batch.mask, strict=True):
        ids = ids[: int(attention.sum())]
        logprobs = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], -1)
        row = logprobs.gather(-1, ids[1:, None])[:, 0]
        rows.append(torch.nn.functional.pad(row, (0, len(mask) - len(row))) * mask)
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["qwen3", *FAMILIES])
def test_log_probabilities_are_those_of_the_models_logits(family, batch):
    model = make(family)
    # Gemma 2 has eager attention alone, whose softmax is taken in fp32.
    rtol = 1e-6 if family == "gemma2" else 1e-10
    torch.testing.assert_close(token_logprobs(model, batch), by_hand(model, batch), rtol=rtol, atol=1e-12)


def gradients(model, logprobs):
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(1), dtype=logprobs.dtype)
    model.zero_grad()
    (weights * logprobs).sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 100])
def test_chunks_of_tokens_change_neither_values_nor_gradients(batch, tokens, adapter):
    model = make("qwen3")
    if adapter:
        model = attach_lora(model, LoraSettings(r=2, lora_alpha=4), 0)
    expected = token_logprobs(model, batch)
    chunked = Likelihood(model, lambda tokens: {}, chunk=24 * tokens)(batch)["logprobs"]
    torch.testing.assert_close(chunked, expected, rtol=1e-12, atol=1e-14)
    for found, wanted in zip(gradients(model, chunked), gradients(model, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_terms_see_every_completion_token_once_with_its_key_and_the_bases_logits(batch):
    model, base = make("qwen3"), decided_qwen(5).double()
    keys = torch.arange(batch.tokens)
    with torch.no_grad():
        hidden = base.get_decoder()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        states = hidden[:, :-1][batch.mask]
        base_logprobs = by_hand(base, batch)

    def terms(tokens):
        own = torch.log_softmax(tokens.reference_logits, -1).gather(-1, tokens.targets[:, None])[:, 0]
        return {
            "key": tokens.keys.double(),
            "base": own,
            "entropy": torch.distributions.Categorical(logits=tokens.logits).entropy(),
        }

    for chunk in (24 * 3, 10**6):
        out = Likelihood(model, terms, chunk)(batch, keys, states, copied_head(base))
        assert out["key"][batch.mask].tolist() == keys.tolist()
        torch.testing.assert_close(out["base"], base_logprobs, rtol=1e-9, atol=1e-12)
        assert out["entropy"].requires_grad
        assert not out["entropy"][~batch.mask].any()


@pytest.mark.parametrize("targets", [("q_proj", "up_proj"), ("v_proj", "lm_head")])
def test_adapters_switched_off_give_the_bases_logits(batch, targets):
    base = tiny_qwen(24, 5, initializer_range=0.2, tie_word_embeddings=False).double()
    with torch.no_grad():
        states, head = completion_states(base, batch), copied_head(base)
    model = attach_lora(base, LoraSettings(r=2, lora_alpha=4, target_modules=targets), 0).double()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1))

    def terms(tokens):
        gap = tokens.logits.log_softmax(-1) - tokens.reference_logits.log_softmax(-1)
        assert not tokens.reference_logits.requires_grad
        return {"gap": gap.square().sum(-1)}

    expected = Likelihood(model, terms)(batch, reference_states=states, reference_head=head)["gap"]
    assert expected.detach().abs().max() > 1e-3
    wanted = gradients(model, expected)
    for chunk in (24 * 3, 10**6):
        likelihood = Likelihood(model, terms, chunk, asks_base=True)
        found = likelihood(batch)["gap"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        for own, right in zip(gradients(model, found), wanted, strict=True):
            torch.testing.assert_close(own, right, rtol=1e-9, atol=1e-12)
        assert likelihood(batch, plain=True).keys() == {"logprobs"}


def test_adapters_are_on_again_if_the_base_fails(batch):
    model = attach_lora(make("qwen3"), LoraSettings(r=2, lora_alpha=4), 0)
    adapted = [layer for layer in model.modules() if hasattr(layer, "lora_A")]
    with suppress(KeyError), without_adapters(model):
        assert all(layer.disable_adapters for layer in adapted)
        raise KeyError
    assert not any(layer.disable_adapters for layer in adapted)


def test_mixing_moves_completion_embeddings_toward_the_greedy_guess(batch):
    model = make("qwen3")
    embed = model.get_input_embeddings().weight
    mixed = mixed_embeddings(model, batch, greedy_guesses(model, completion_states(model, batch)), 0.25)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    for row in range(len(batch.input_ids)):
        for position in range(batch.input_ids.shape[1]):
            own = embed[batch.input_ids[row, position]]
            if position > 0 and batch.mask[row, position - 1]:
                own = 0.75 * own + 0.25 * embed[logits[row, position - 1].argmax()]
            torch.testing.assert_close(mixed[row, position], own)
    plain = Likelihood(model)(batch)["logprobs"]
    assert not torch.allclose(Likelihood(model)(batch, embedding_mix=0.25)["logprobs"], plain)


@pytest.mark.parametrize("family", ["qwen3", "llama", "cohere", "granite"])
@pytest.mark.parametrize("frozen", [False, True])
def test_tiles_of_the_vocabulary_change_neither_values_nor_gradients(batch, family, frozen):
    model = make(family)
    if frozen:
        model = attach_lora(model, LoraSettings(r=2, lora_alpha=4), 0)
    expected = token_logprobs(model, batch)
    wanted = gradients(model, expected)
    for tile in (1, 7 * batch.tokens, 23 * batch.tokens):
        tiled = Likelihood(model, chunk=8 * tile)(batch)["logprobs"]
        torch.testing.assert_close(tiled, expected, rtol=1e-12, atol=1e-14)
        for found, right in zip(gradients(model, tiled), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)


def test_tiles_pass_finite_differences():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(11, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.tensor([0, 10, 4, 4, 7])
    for entries in (1, 4, 11):
        assert torch.autograd.gradcheck(
            lambda s, w, tile=5 * entries: tiled_logprobs(s, w, targets, scale=0.7, tile=tile), (states, weight)
        )


def test_tiles_in_bf16_are_as_near_as_logits_in_bf16():
    generator = torch.Generator().manual_seed(0)
    states, weight = torch.randn(64, 16, generator=generator), torch.randn(200, 16, generator=generator)
    targets = torch.randint(0, 200, (64,), generator=generator)
    exact = torch.log_softmax(states @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    low = tiled_logprobs(states.bfloat16(), weight.bfloat16(), targets, tile=64 * 32)
    assert low.dtype == torch.float32
    held = torch.log_softmax((states.bfloat16() @ weight.bfloat16().T).float(), -1).gather(1, targets[:, None])[:, 0]
    assert (low - exact).abs().max() <= 1.05 * (held - exact).abs().max()
