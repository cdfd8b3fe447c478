"""Token sequences and padded batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of prompt and completion (end-of-text included when the completion ended by itself)."""

    ids: np.ndarray
    prompt_length: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def completion_length(self) -> int:
        """Number of completion tokens, the positions a loss sees."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. ``input_ids`` and ``attention_mask`` are [B, T + 1] int64; ``mask`` [B, T] bool marks the
    target positions that belong to the completion (target ``t`` is token ``t + 1``).
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """Move all three tensors."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.mask.to(device))

    @property
    def tokens(self) -> int:
        """Number of completion tokens."""
        return int(self.mask.sum())


def collate(sequences: Sequence[TokenSequence], pad_id: int) -> Batch:
    """Pad ``sequences`` on the right to the longest one."""
    width = max(len(s) for s in sequences)
    ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    attention = np.zeros((len(sequences), width), dtype=np.int64)
    mask = np.zeros((len(sequences), width - 1), dtype=bool)
    for row, s in enumerate(sequences):
        ids[row, : len(s)] = s.ids
        attention[row, : len(s)] = 1
        mask[row, s.prompt_length - 1 : len(s) - 1] = True
    return Batch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(mask))


def input_device(model: Any) -> torch.device:
    """Where a model takes its ids: the device of its input embeddings, or of its first parameter if it names none."""
    embeddings = getattr(model, "get_input_embeddings", None)
    first: Tensor = next(model.parameters()) if embeddings is None else embeddings().weight
    return first.device


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split indices into batches of at most ``batch_size`` items of similar length, shortest first, ties in order."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
