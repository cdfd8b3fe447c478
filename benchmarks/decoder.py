"""Operations of passes through a decoder, in closed form.

A multiplication and an addition are two operations. Only products of matrices are counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from transformers import Qwen3Config


@dataclass(frozen=True)
class Decoder:
    """The shape of a Qwen3 decoder with tied embeddings."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float = 1e6
    max_position_embeddings: int = 32_768

    def config(self) -> Qwen3Config:
        """The configuration of a model of this shape."""
        given = asdict(self)
        rope = {"rope_type": "default", "rope_theta": given.pop("rope_theta")}
        return Qwen3Config(**given, rope_parameters=rope, rms_norm_eps=1e-6, tie_word_embeddings=True)

    @property
    def attention_width(self) -> int:
        """Entries of all query heads of a token."""
        return self.num_attention_heads * self.head_dim

    @property
    def projections(self) -> int:
        """Weights of the attention projections of all layers: queries, keys, values, output."""
        keys = self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * self.hidden_size * 2 * (self.attention_width + keys)

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with: those of all linear layers but the head."""
        return self.projections + self.num_hidden_layers * 3 * self.hidden_size * self.intermediate_size

    def adapters(self, r: int) -> int:
        """Weights of LoRA adapters of rank ``r`` on the attention projections."""
        keys = self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * r * (4 * self.hidden_size + 2 * self.attention_width + 2 * keys)

    def linear(self, lengths: Sequence[int], predicted: int) -> int:
        """Operations of the linear layers in a forward pass over rows of ``lengths``: 2N a token.

        The head is counted for the ``predicted`` tokens, whose logits are all that is computed.
        """
        return 2 * self.body * sum(lengths) + 2 * self.vocab_size * self.hidden_size * predicted

    def attention(self, lengths: Sequence[int]) -> int:
        """Operations of causal attention in a forward pass: two products of T by T/2 a head, 2 H h T^2 a layer."""
        return self.num_hidden_layers * 2 * self.attention_width * sum(n * n for n in lengths)

    def forward(self, lengths: Sequence[int], predicted: int) -> int:
        """Operations of a forward pass."""
        return self.linear(lengths, predicted) + self.attention(lengths)

    def full_training(self, lengths: Sequence[int], predicted: int) -> int:
        """Operations of a step that trains every weight: 6N a token, and three times the attention's.

        Nothing that checkpointing computes again is counted. A step of LoRA with checkpointing computes as many.
        """
        return 3 * self.forward(lengths, predicted)

    def lora_training(self, lengths: Sequence[int], predicted: int, r: int) -> int:
        """Operations of a step that trains adapters of rank ``r``: 4N a token.

        Forward pass and gradients of the activations, but no gradients of frozen weights; 6 for each weight of the
        adapters; attention, which has no weights, three times. Nothing that checkpointing computes again is counted.
        """
        adapters = 6 * self.adapters(r) * sum(lengths)
        return 2 * self.linear(lengths, predicted) + 3 * self.attention(lengths) + adapters


QWEN3_4B = Decoder(36, 2560, 9728, 32, 8, 128, 151_936, rope_theta=5e6, max_position_embeddings=262_144)
"""Qwen3-4B-Instruct-2507, as its config.json says."""
TINY = Decoder(2, 32, 64, 4, 2, 8, 256)
