"""The student under DeepSpeed: sharding, precision, AdamW and its schedule, every default that changes a number set."""

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raygeo.losses.base import Loss
from raygeo.store import AnyPath
from raygeo.students.likelihood import Likelihood
from raygeo.students.loading import load_student
from raygeo.students.lora import adapter_fingerprint, attach_lora
from raygeo.training.order import step_count
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec, TrainingSettings

PERSISTENT = 10**5
"""ZeRO-3 keeps parameters of at most so many elements whole on every rank (DeepSpeed's default)."""


def rank() -> int:
    """Rank of this worker, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of workers, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shared(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def import_deepspeed() -> Any:
    """Import DeepSpeed so that it works on a machine with neither an accelerator nor a compiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Building this op needs a C++ compiler; without it collectives go through gloo, which is what we want on a CPU.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(settings: TrainingSettings, micro_steps: int) -> dict[str, Any]:
    """DeepSpeed's configuration with every default that could change a number set by us."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()} if settings.offload else {"device": "none"}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": settings.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "bf16": {"enabled": settings.precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_optimization": {
            "stage": _deepspeed_stage(settings),
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "round_robin_gradients": False,
            "stage3_param_persistence_threshold": PERSISTENT,
            "offload_optimizer": offload,
            "offload_param": offload if settings.zero_stage == 3 else {"device": "none"},
        },
    }


def _deepspeed_stage(settings: TrainingSettings) -> int:
    """In bf16 stage 1 stands in for 0, whose optimiser counts a step of AdamW, with weight decay, before the first."""
    return max(settings.zero_stage, int(settings.precision == "bf16"))


def build_engine(spec: RunSpec, examples: int, student: AnyPath) -> tuple[Any, dict[str, str]]:
    """Load the student, attach adapters, and hand model, AdamW and schedule to DeepSpeed.

    The engine's module is a ``Likelihood``. Returns the engine and, for LoRA runs, the fingerprint of the initial
    adapter, which runs to be compared share.
    """
    deepspeed = import_deepspeed()
    settings = spec.training
    micro_steps = math.ceil(settings.batch_size / (settings.micro_batch * world()))
    config = deepspeed_config(settings, micro_steps)
    torch.manual_seed(settings.seed)
    if settings.zero_stage == 3:
        from transformers.integrations import HfDeepSpeedConfig

        alive = HfDeepSpeedConfig(config)  # noqa: F841 (weights are partitioned while loading as long as it lives)
    model: nn.Module
    model, _ = load_student(student)
    no_dropout(model)
    fingerprint: dict[str, str] = {}
    if settings.lora is not None:
        model = attach_lora(model, settings.lora, settings.init_seed)
        fingerprint = {"adapter_init": adapter_fingerprint(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if params
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)
    steps = step_count(examples, settings.batch_size, settings.steps, settings.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, steps, step))
    terms = spec.loss.token_terms if type(spec.loss).token_terms is not Loss.token_terms else None
    likelihood = Likelihood(model, terms)
    if settings.zero_stage == 3:
        for parameter in likelihood.head.borrowed:
            deepspeed.zero.register_external_parameter(likelihood.head, parameter)
    engine, *_ = deepspeed.initialize(model=likelihood, optimizer=optimizer, lr_scheduler=schedule, config=config)
    return engine, fingerprint


def whole_gradient_norm(engine: Any) -> float | None:
    """2-norm of a step's gradient before the step is taken, where every rank holds all of it.

    None while micro-batches are still missing, and under ZeRO or bf16, where DeepSpeed knows the norm after the step.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled() or not engine.is_gradient_accumulation_boundary():
        return None
    norms = [parameter.grad.norm() for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm())


def no_dropout(model: nn.Module) -> None:
    """Switch every dropout off: all losses must see the same function, and DPO the one its reference came from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
