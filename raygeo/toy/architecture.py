"""The shape of students made here: small Qwen3 models, randomly initialised."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator

from raygeo.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Architecture(Settings):
    """A Qwen3 decoder: grouped-query attention with normalised queries and keys, SwiGLU, rotary positions."""

    hidden: int = Field(128, ge=1, le=1 << 16)
    """Width of the residual stream."""
    layers: int = Field(3, ge=1, le=1024)
    """Transformer blocks."""
    heads: int = Field(4, ge=1)
    """Query heads."""
    kv_heads: int = Field(2, ge=1)
    """Key and value heads; divides ``heads``."""
    head_dim: int = Field(32, ge=2, multiple_of=2)
    """Width of a head."""
    intermediate: int = Field(384, ge=1)
    """Width of the feed-forward layer."""
    tied: bool = True
    """Use the input embeddings as output weights."""
    init_std: float = Field(0.05, gt=0)
    """Standard deviation of the initial weights."""
    rope_theta: float = Field(1e4, gt=0)
    """Base of the rotary frequencies."""
    context: int = Field(512, ge=2)
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _grouped(self) -> Architecture:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self


def build_model(architecture: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Build an untrained fp32 model for the vocabulary of ``tokenizer``; its weights depend on the arguments alone."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=architecture.hidden,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=architecture.intermediate,
        tie_word_embeddings=architecture.tied,
        initializer_range=architecture.init_std,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        max_position_embeddings=architecture.context,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
