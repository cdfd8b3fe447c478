"""The student under DeepSpeed: sharding, precision, AdamW and its schedule, every default that changes a number set."""

import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from raygeo.losses.base import Loss
from raygeo.models.activations import checkpoint_activations
from raygeo.models.attention import check_used
from raygeo.models.batches import Batch
from raygeo.models.compilation import check_compiler, compile_layers
from raygeo.models.likelihood import Likelihood
from raygeo.models.lora import adapter_fingerprint, attach_lora
from raygeo.models.packing import check_packed
from raygeo.models.ulysses import SequenceGroup, register
from raygeo.store import AnyPath
from raygeo.training.base import ResidentBase
from raygeo.training.order import step_count
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec, TrainingSettings

PERSISTENT = 10**5
"""ZeRO-3 keeps parameters of at most so many elements whole on every rank (DeepSpeed's default)."""

BUCKET = 5 * 10**8
"""ZeRO reduces gradients of at most so many elements at once (DeepSpeed's default), and holds a buffer of as many, or
of as many as are trained."""

Value = TypeVar("Value")


def rank() -> int:
    """Rank of this worker, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of workers, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def data_rank(settings: TrainingSettings) -> tuple[int, int]:
    """Which share of a step's examples this worker computes, and into how many they are divided: workers that share
    sequences have the same examples.
    """
    return rank() // settings.sequence_parallel_size, world() // settings.sequence_parallel_size


def speaks(settings: TrainingSettings) -> bool:
    """Whether this worker counts what it and those it shares sequences with have all computed: the first of them."""
    return rank() % settings.sequence_parallel_size == 0


def broadcast(value: Any) -> Any:
    """Rank 0's ``value`` on every rank."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def gather(value: Value) -> list[Value]:
    """Every rank's ``value``, on every rank."""
    found: list[Any] = [value]
    if dist.is_initialized():
        found = [None] * world()
        dist.all_gather_object(found, value)
    return found


def barrier() -> None:
    """Wait for all workers."""
    if dist.is_initialized():
        dist.barrier()


def rank_0_first(work: Callable[[], Value]) -> Value:
    """What ``work`` returns, done by rank 0 before the others, who so find what it has stored; collective.

    An error of rank 0's is raised on every rank.
    """
    found: Value | None = None
    error: Exception | None = None
    if rank() == 0:
        try:
            found = work()
        except Exception as raised:
            error = raised
    if (failed := broadcast(error)) is not None:
        raise failed
    return found if rank() == 0 else work()  # type: ignore[return-value]


def import_deepspeed() -> Any:
    """Import DeepSpeed so that it works on a machine with neither an accelerator nor a compiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    unused = "mlflow" not in sys.modules
    if unused:  # the autotuner would import it, which takes longer than all of DeepSpeed
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if unused:
            del sys.modules["mlflow"]
    from deepspeed.ops import __compatible_ops__

    # Building this op needs a C++ compiler; without it collectives go through gloo, which is what we want on a CPU.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(settings: TrainingSettings, micro_steps: int) -> dict[str, Any]:
    """DeepSpeed's configuration with every default that could change a number set by us."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()} if settings.offload else {"device": "none"}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": settings.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "bf16": {"enabled": _bf16_masters(settings)},
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


def _bf16_masters(settings: TrainingSettings) -> bool:
    """Whether trained weights are in bf16, with fp32 masters; adapters are in fp32 themselves, on a base in bf16."""
    return settings.precision == "bf16" and settings.lora is None


def _deepspeed_stage(settings: TrainingSettings) -> int:
    """With masters stage 1 stands in for 0, whose optimiser counts a step of AdamW, with weight decay, before the
    first.
    """
    return max(settings.zero_stage, int(_bf16_masters(settings)))


def build_engine(
    spec: RunSpec, examples: int, student: AnyPath, base: ResidentBase | None = None
) -> tuple[Any, str | None]:
    """Load the student, or take it from ``base`` if that is it; attach adapters; hand model, AdamW and schedule to
    DeepSpeed.

    The engine's module is a ``Likelihood``, whose student stays in evaluation mode. Returns the engine and, where
    adapters are trained, the fingerprint of the initial ones, which runs to be compared share.
    """
    deepspeed = import_deepspeed()
    settings = spec.training
    if settings.torch_compile:
        check_compiler(torch.cuda.is_available())
    micro_steps = math.ceil(settings.batch_size / (settings.micro_batch_size * data_rank(settings)[1]))
    config = deepspeed_config(settings, micro_steps)
    torch.manual_seed(settings.seed)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    if settings.zero_stage == 3:
        from transformers.integrations import HfDeepSpeedConfig

        loading = config | {"bf16": {"enabled": dtype == torch.bfloat16}}
        alive = HfDeepSpeedConfig(loading)  # noqa: F841 (weights are partitioned while loading as long as it lives)
    stays = base is not None and settings.lora is not None and settings.zero_stage < 3
    base = base or ResidentBase()
    group = SequenceGroup.of(settings.sequence_parallel_size) if settings.sequence_parallel_size > 1 else None
    attention = settings.attn_implementation if group is None else register()
    model: Any = base.load(student, dtype, attention, stays=stays)
    if attention is not None:
        check_used(model, attention)
    fingerprint = None
    if settings.lora is not None:
        model = attach_lora(model, settings.lora, settings.init_seed)
        fingerprint = adapter_fingerprint(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) < 2]
    size = sum(getattr(p, "ds_numel", p.numel()) for p in trainable)
    config["zero_optimization"]["reduce_bucket_size"] = min(BUCKET, size)
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((matrices, settings.weight_decay), (vectors, 0.0))
        if params
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.adam_epsilon, fused=True)
    steps = step_count(examples, settings.batch_size, settings.steps, settings.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, steps, step))
    if settings.torch_compile:  # before it is checkpointed: what is compiled then computes again, too
        compile_layers(model)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    terms = spec.loss.token_terms if type(spec.loss).token_terms is not Loss.token_terms else None
    likelihood = Likelihood(model, terms, padding_free=settings.padding_free, group=group, asks_base=spec.asks_base)
    if settings.zero_stage == 3:
        for parameter in likelihood.head.borrowed:
            deepspeed.zero.register_external_parameter(likelihood.head, parameter)
    engine, *_ = deepspeed.initialize(model=likelihood, optimizer=optimizer, lr_scheduler=schedule, config=config)
    if settings.padding_free:
        _check_packed(engine)
    return engine, fingerprint


def _check_packed(engine: Any) -> None:
    """Try, on this device and with these kernels, whether the student's rows are apart without padding."""
    likelihood = engine.module

    config = likelihood.student.config
    text = config.get_text_config()
    used = text._attn_implementation

    def logprobs(batch: Batch, padding_free: bool) -> Tensor:
        likelihood.padding_free = padding_free
        if likelihood.group is not None:  # of padded rows each worker has whole ones
            text._attn_implementation = used if padding_free else "sdpa"
        return engine(batch.to(engine.device), plain=True)["logprobs"]

    dtype = next(likelihood.student.parameters()).dtype
    try:
        check_packed(logprobs, text.vocab_size, dtype, config.model_type)
    finally:
        likelihood.padding_free = True
        text._attn_implementation = used


def delta_bytes(engine: Any) -> int:
    """What the delta of a run takes on disk, in fp32."""
    trained = (value for value in engine.module.student.parameters() if value.requires_grad)
    return 4 * sum(getattr(value, "ds_numel", value.numel()) for value in trained)


def whole_gradient_norm(engine: Any) -> float | None:
    """2-norm of a step's gradient before the step is taken, where every rank holds all of it.

    None while micro-batches are still missing, and under ZeRO or bf16, where DeepSpeed knows the norm after the step.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled() or not engine.is_gradient_accumulation_boundary():
        return None
    norms = [parameter.grad.norm() for parameter in engine.module.parameters() if parameter.grad is not None]
    return float(torch.stack(norms).norm())
