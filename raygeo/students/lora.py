"""Low-rank adapters on a student (Hu et al. 2021, arXiv:2106.09685), initialised from a seed of their own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import nn

from raygeo.errors import StudentError
from raygeo.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class LoraSettings(Settings):
    """Adapters ``scale * B A``; ``scale`` is alpha / r, or alpha / sqrt(r) with ``rslora``."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: float = Field(32, gt=0)
    """Numerator of the scale."""
    targets: tuple[str, ...] | Literal["all-linear"] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last parts of the names of the linear modules that get an adapter."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""


def attach_lora(model: PreTrainedModel, settings: LoraSettings, init_seed: int) -> PeftModel:
    """Freeze ``model`` and put trainable fp32 adapters on its targets: B is zero, A uniform in +-1/sqrt(in).

    A depends on ``init_seed``, the settings and the model's shape alone; torch's global generators stay as they were.
    Runs whose deltas are compared must share ``init_seed``.

    Raises:
        StudentError: a target names no linear module.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if settings.targets != "all-linear":
        for target in settings.targets:
            if not any(name == target or name.endswith(f".{target}") for name in linear):
                known = sorted({name.rpartition(".")[2] for name in linear})
                raise StudentError(f"LoRA target {target!r} names no linear module of the student; it has {known}.")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules="all-linear" if settings.targets == "all-linear" else list(settings.targets),
        use_rslora=settings.rslora,
        lora_dropout=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def adapter_fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits of SHA-256 over every adapter's A, by name: equal for equal initial adapters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_A." in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
