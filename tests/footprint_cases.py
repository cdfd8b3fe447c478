"""What was allocated while something ran, as torch's own allocator tells it; and a model to run."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen3Config

from raygeo.models.batches import Batch

SHAPE = Qwen3Config(
    hidden_size=96,
    intermediate_size=320,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=3000,
    tie_word_embeddings=True,
    max_position_embeddings=1024,
)


def real_model(config: Any = SHAPE, dtype: torch.dtype = torch.float32) -> Any:
    """A model of random weights."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().to(dtype)


def allocated(work: Callable[[], Any]) -> int:
    """The most bytes that the CPU's allocator had given out at once while ``work`` ran, beyond those before it."""
    gc.collect()  # what earlier models held must not be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def random_batch(rows: int, tokens: int, vocabulary: int = SHAPE.vocab_size) -> Batch:
    """Random rows, every position of which is a completion's."""
    ids = torch.randint(0, vocabulary, (rows, tokens))
    return Batch(ids, torch.ones_like(ids), torch.ones(rows, tokens - 1, dtype=torch.bool))
