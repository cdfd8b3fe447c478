"""Rows one behind the other, without padding: the same states as alone, in the families that can have it so."""

import numpy as np
import pytest
import torch
from tiny import BLOOM, ENDS, SHAPE, decided_qwen, tiny_gpt2
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MptConfig,
    Qwen3NextConfig,
)

from raygeo.errors import StudentError
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import Likelihood, completion_states, packed_states
from raygeo.models.packing import check_packed, check_packing

SIZES = {"vocab_size": 24, **SHAPE, **ENDS}
PACKED = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, sliding_window=3),
    "mistral": MistralConfig(**SIZES, sliding_window=3),
    "gpt2": tiny_gpt2(24).config,
}
REFUSED = {
    "mamba": (MambaConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1), "carry a state"),
    "qwen3_next": (Qwen3NextConfig(**SIZES), r"linear_attention\) carry a state"),
    "bloom": (BLOOM, "positions"),
    "mpt": (MptConfig(vocab_size=24, d_model=32, n_layers=1, n_heads=4), "positions"),
    "falcon": (
        FalconConfig(vocab_size=24, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True),
        "positions",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return collate([TokenSequence(rng.integers(3, 24, p + c), p) for p, c in [(3, 5), (1, 7), (6, 1), (2, 2)]], 0)


def random_model(config, attention):
    config.initializer_range = 0.2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval().double()


@pytest.mark.parametrize(
    ("family", "attention"),
    [*((family, "eager") for family in PACKED), *((f, "sdpa") for f in PACKED if f != "gemma2")],
)
def test_packed_rows_have_the_states_and_gradients_of_padded_ones(batch, family, attention):
    check_packing(PACKED[family])
    model = random_model(PACKED[family], attention)
    expected, found = completion_states(model, batch), packed_states(model, batch)
    exact = {"rtol": 1e-9, "atol": 1e-11} if attention == "sdpa" else {"rtol": 1e-4, "atol": 1e-5}  # softmax in fp32
    torch.testing.assert_close(found, expected, **exact)
    weight = next(model.parameters())
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slopes = [torch.autograd.grad((states * direction).sum(), weight)[0] for states in (found, expected)]
    torch.testing.assert_close(*slopes, **exact)


def test_embeddings_are_mixed_in_packed_rows_too(batch):
    model = decided_qwen(0).double()
    packed, padded = (Likelihood(model, padding_free=free)(batch, embedding_mix=0.25) for free in (True, False))
    torch.testing.assert_close(packed["logprobs"], padded["logprobs"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_are_refused_with_a_reason(family):
    config, reason = REFUSED[family]
    with pytest.raises(StudentError, match=rf"padding_free: .* cannot take rows one behind the other: .*{reason}"):
        check_packing(config)


@pytest.mark.parametrize("apart", [True, False])
def test_rows_that_see_each_other_are_found_by_trying(apart):
    model = decided_qwen(0)

    def logprobs(batch, padding_free):
        if padding_free and not apart:
            real = batch.attention_mask.bool()
            states = model.model(input_ids=batch.input_ids[real][None]).last_hidden_state[0]
            wanted = torch.nn.functional.pad(batch.mask, (0, 1))[real]
            rows = model.lm_head(states[wanted]).log_softmax(-1).gather(1, batch.input_ids[:, 1:][batch.mask][:, None])
            return torch.zeros(batch.mask.shape).masked_scatter(batch.mask, rows[:, 0])
        return Likelihood(model, padding_free=padding_free)(batch)["logprobs"]

    if apart:
        check_packed(logprobs, 24, torch.float32, "qwen3")
    else:
        with pytest.raises(StudentError, match="rows behind another differ by"):
            check_packed(logprobs, 24, torch.float32, "qwen3")
