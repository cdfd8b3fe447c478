"""Complete models saved in shards, as full fine-tunes are, and a count of what is read of them."""

from collections import Counter
from pathlib import Path

import torch
from delta_cases import gaussian, tiny_model
from torch import Tensor

from raygeo.students.tensors import TensorFiles


def save_model(folder: Path, seed: int | None = None, dtype: torch.dtype = torch.float32, tied: bool = True) -> Path:
    """Save ``tiny_model`` in shards, every weight moved a little if there is a ``seed``."""
    model = tiny_model(tied=tied)
    if seed is not None:
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                parameter.add_(0.01 * gaussian(*parameter.shape, seed=100 * seed + i))
    model.to(dtype).save_pretrained(folder, max_shard_size="10KB")
    return folder


def differences(tuned: Path, base: Path) -> dict[str, Tensor]:
    """Tuned minus base in fp32 by name, from models loaded whole."""
    from transformers import AutoModelForCausalLM

    after, before = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())
        for folder in (tuned, base)
    )
    return {name: (after[name] - before[name]).detach() for name in after}


class Reads:
    """Counts the values read of each tensor, by folder and name, and the largest part, while ``monkeypatch`` lasts.

    Deltas must be opened after it.
    """

    def __init__(self, monkeypatch):
        self.values: Counter[tuple[str, str]] = Counter()
        self.largest = 0
        for how in ("read", "tensor"):
            monkeypatch.setattr(TensorFiles, how, self._counting(getattr(TensorFiles, how)))

    def _counting(self, original):
        def read(files: TensorFiles, key: str, *index):
            part = original(files, key, *index)
            self.values[files.files[key].parent.name, key] += part.numel()
            self.largest = max(self.largest, part.numel())
            return part

        return read
