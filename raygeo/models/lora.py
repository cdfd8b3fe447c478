"""Low-rank adapters on a student (Hu et al. 2021, arXiv:2106.09685), initialised from a seed of their own."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from raygeo.errors import StudentError
from raygeo.models.checkpoint import UNTIE
from raygeo.models.loading import model_shape
from raygeo.settings import Name, Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
_FACTOR = re.compile(r"\.lora_[AB]\.default\.weight$")


class LoraSettings(Settings):
    """Adapters ``scale * B A``; ``scale`` is lora_alpha / r, or lora_alpha / sqrt(r) with ``use_rslora``."""

    renamed: ClassVar[dict[str, str]] = {"alpha": "lora_alpha", "targets": "target_modules", "rslora": "use_rslora"}
    foreign: ClassVar[dict[str, str]] = {
        "rank": "r",
        "lora_r": "r",
        "lora_target_modules": "target_modules",
        "lora_dropout": "is not offered; adapters are trained without dropout",
    }

    r: int = Field(16, ge=1, le=1 << 16)
    """Rank."""
    lora_alpha: float = Field(32, gt=0)
    """Numerator of the scale."""
    target_modules: Annotated[tuple[Name, ...], Field(min_length=1)] | Literal["all-linear"] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )
    """Last parts of the names of the linear modules that get an adapter; ``all-linear`` are all but the output head.
    Experts that a model holds in one parameter together are not linear modules, and get none; nor do the layers beside
    them that have experts' names (``gate_proj`` of a shared expert), which PEFT cannot tell from them."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""


def attach_lora(model: PreTrainedModel, settings: LoraSettings, init_seed: int) -> PeftModel:
    """Freeze ``model`` and put trainable fp32 adapters on its targets: B is zero, A uniform in +-1/sqrt(in).

    A depends on ``init_seed``, the settings and the model's shape alone; torch's global generators stay as they were.
    Runs whose deltas are compared must share ``init_seed``.

    Raises:
        StudentError: a target names no linear module, one whose weight is tied to another's, or modules of two
            layouts at once; or PEFT cannot adapt one.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    targets = find_targets(model, settings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]
        target_modules=sorted(targets),  # whole names: by parts of names PEFT would also adapt fused experts
        use_rslora=settings.use_rslora,
        lora_dropout=0.0,
        fan_in_fan_out=not any(isinstance(module, nn.Linear) for module in targets.values()),
    )
    try:
        with _as_if_fp32(targets.values()), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers, none of the user's business
            torch.manual_seed(init_seed)
            adapted = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise StudentError(f"PEFT puts no LoRA on {settings.target_modules!r} of the student: {error}") from error
    assert isinstance(adapted, PeftModel)
    if converted := getattr(adapted.peft_config["default"], "target_parameters", None):
        raise StudentError(
            f"of LoRA on {settings.target_modules!r} of the student PEFT makes adapters of whole parameters "
            f"({', '.join(sorted(converted))}), which are not factors of a linear layer; name other targets."
        )
    odd = [name for name, value in adapted.named_parameters() if value.requires_grad and not _FACTOR.search(name)]
    if odd:
        raise StudentError(
            f"LoRA on {settings.target_modules!r} of the student would train {odd[0]!r}, which is not a factor of a "
            "linear layer's weight; name other targets."
        )
    return adapted


@contextmanager
def _as_if_fp32(targets: Iterable[nn.Module]) -> Iterator[None]:
    """Show PEFT fp32 weights while inside: it would round the adapters to the base's dtype before it widens them."""
    kept: dict[Any, Any] = {module: module.weight for module in targets if module.weight.dtype != torch.float32}
    for module, weight in kept.items():
        shape = getattr(weight, "ds_shape", weight.shape)
        module.weight = nn.Parameter(torch.zeros((), device=weight.device).expand(shape), requires_grad=False)
    try:
        yield
    finally:
        for module, weight in kept.items():
            module.weight = weight.requires_grad_(False)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let ``model`` compute as its base while inside.

    PEFT's own context freezes the adapters meanwhile, and looks at every module for it.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for module in adapted:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module in adapted:
            module._disable_adapters = False


def check_lora(config: PreTrainedConfig, settings: LoraSettings) -> None:
    """Refuse adapters that a student of ``config`` cannot be trained with, before it is; no weights are needed.

    Raises:
        StudentError: as ``attach_lora``.
    """
    attach_lora(model_shape(config), settings, 0)


def find_targets(model: PreTrainedModel, settings: LoraSettings) -> dict[str, nn.Module]:
    """The linear modules that the settings name, all ``Linear`` or all ``Conv1D`` (GPT-2's, of weights [in, out]).

    Raises:
        StudentError: a target names none, or a tied one, or both layouts are named.
    """
    from transformers.pytorch_utils import Conv1D

    linear: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and "Router" not in type(module).__name__  # which returns a choice
    }
    if any(".experts." in name and _dimensions(value) > 2 for name, value in model.named_parameters()):
        linear = {name: m for name, m in linear.items() if name.rpartition(".")[2] not in _EXPERTS}
    known = sorted({name.rpartition(".")[2] for name in linear})
    if settings.target_modules == "all-linear":
        head = model.get_output_embeddings()
        chosen = {name: module for name, module in linear.items() if module is not head}
    else:
        chosen = {}
        for target in settings.target_modules:
            found = {name: m for name, m in linear.items() if name == target or name.endswith(f".{target}")}
            if not found:
                near = get_close_matches(target, known, 1)
                hint = f"did you mean {near[0]!r}? It" if near else "it"
                raise StudentError(
                    f"LoRA target {target!r} names no linear module of the student that can have an adapter; "
                    f"{hint} has {known}."
                )
            chosen |= found
    owners: defaultdict[int, set[str]] = defaultdict(set)
    for name, module in model.named_modules():
        owners[id(module._parameters.get("weight"))].add(name)
    for name, module in chosen.items():
        if others := owners[id(module.weight)] - {name}:
            raise StudentError(
                f"LoRA target {name!r} has one weight with {' and '.join(sorted(others))} (tied). {UNTIE}"
            )
    if len({isinstance(module, Conv1D) for module in chosen.values()}) > 1:
        raise StudentError(
            f"LoRA targets {settings.target_modules!r} name Conv1D and Linear modules, which PEFT cannot adapt at "
            "once; name targets of one kind."
        )
    return chosen


def _dimensions(value: nn.Parameter) -> int:
    """Of the whole parameter, also where ZeRO-3 holds a part of it."""
    return len(getattr(value, "ds_shape", value.shape))


def adapter_fingerprint(model: nn.Module) -> str:
    """Return 16 hex digits of SHA-256 over every adapter's A, by name: equal for equal initial adapters."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_A." in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
