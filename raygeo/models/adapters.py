"""Sums of LoRA deltas as one PEFT adapter: factors side by side, whose product is the sum, exactly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.delta import ADAPTER_FILE, Delta, LowRank, module_name
from raygeo.models.folder import ADAPTER_CONFIG
from raygeo.models.mix import Mixture


def joined(terms: list[tuple[float, LowRank]], rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``b`` [out, rank] and ``a`` [rank, in], fp32, whose product is the sum of coefficient * entry.

    ``b`` holds coefficient * scale * B of each entry side by side, ``a`` holds A of each one below the other; zeros
    fill what ``rank`` leaves.
    """
    b = torch.cat([coefficient * entry.scale * entry.b for coefficient, entry in terms], dim=1)
    a = torch.cat([entry.a for _, entry in terms], dim=0)
    spare = rank - a.shape[0]
    return torch.nn.functional.pad(b, (0, spare)), torch.nn.functional.pad(a, (0, 0, 0, spare))


def rank_of(mixture: Mixture) -> int:
    """The rank of the adapter that holds a mixture: the largest sum of ranks over parameters.

    Raises:
        DeltaError: a delta is of full weights.
    """
    return max((sum(entry.a.shape[0] for _, entry in terms) for terms in _terms(mixture).values()), default=0)


def save_adapter(folder: str | Path, mixture: Mixture, *, base: str | None = None) -> int:
    """Write sum of coefficient * delta as a PEFT adapter of one rank, with scale 1, and return the rank.

    ``base`` is what the adapter names as its base model.

    Raises:
        DeltaError: a delta is of full weights, or deltas are of different layouts.
    """
    terms, transposed = _terms(mixture), _transposed(mixture)
    rank = rank_of(mixture)
    tensors: dict[str, Tensor] = {}
    for name, found in terms.items():
        b, a = joined(found, rank)
        if transposed:
            b, a = a.T, b.T
        stem = f"base_model.model.{module_name(name)}"
        tensors |= {f"{stem}.lora_A.weight": a.contiguous(), f"{stem}.lora_B.weight": b.contiguous()}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(map(module_name, terms)),
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / ADAPTER_FILE)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2))
    return rank


def _terms(mixture: Mixture) -> Mapping[str, list[tuple[float, LowRank]]]:
    """What is added to each parameter."""
    terms: dict[str, list[tuple[float, LowRank]]] = {}
    for coefficient, delta in mixture:
        for name, entry in delta.items():
            if not isinstance(entry, LowRank):
                where = delta.folder if isinstance(delta, Delta) else "a delta"
                raise DeltaError(f"{where} changes whole weights, which no adapter holds; merge it into its base.")
            terms.setdefault(name, []).append((coefficient, entry))
    return dict(sorted(terms.items()))


def _transposed(mixture: Mixture) -> bool:
    """Whether the adapted modules hold their weights as [in, out], GPT-2's way."""
    found = {AdapterConfig.read(d.folder).transposed for _, d in mixture if isinstance(d, Delta)}
    if len(found) > 1:
        raise DeltaError("deltas of modules of different layouts (Linear and Conv1D) cannot be one adapter.")
    return found == {True}
