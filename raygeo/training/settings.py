"""How a run is trained. Everything DeepSpeed or Ray would otherwise choose by default is set here explicitly."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from raygeo.cluster.settings import Gpus
from raygeo.losses.base import FROM_BASE, Need
from raygeo.losses.registry import AnyLoss
from raygeo.models.attention import check_name, is_flash
from raygeo.models.lora import LoraSettings
from raygeo.settings import Decay, Settings, unit_key

REVISION = 1
"""Part of the key of every run: raise it with any change to what training computes, whatever the loss, and with the
revisions of what runs are given of the base (``raygeo.data.reference``, ``raygeo.data.mismatched``).
"""


class Optimisation(Settings):
    """What a run is by definition: the settings that change its result by more than rounding.

    Runs that agree in these and in their loss, seeds aside, are of one configuration.
    """

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    seed: int = Field(0, ge=0)
    """Seed of the data order."""
    init_seed: int = Field(0, ge=0)
    """Seed of the adapter initialisation; without LoRA it changes nothing, the base weights being the start."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps. Give either steps or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the examples the loss selects. Give either steps or epochs."""
    batch_size: int = Field(32, ge=1)
    """Examples per optimiser step over all workers: rollouts, or pairs for pairwise losses."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from zero."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    schedule_steps: int | None = Field(None, ge=1)
    """Steps that warm-up and schedule are laid out for, where the run ends before they do; by default the run's own."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; vectors (norms, biases) are never decayed."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this value; 0 never clips."""
    lora: LoraSettings | None = None
    """Train LoRA adapters; without it every weight is trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 and keeps fp32 master weights, from which deltas are exported; with LoRA the base is
    in bf16 and the adapters are in fp32."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, not both")
        return self


class Execution(Optimisation):
    """How a run is computed and what is kept of it: settings that change rounding or what is stored, and so its key."""

    micro_batch_size: int = Field(32, ge=1)
    """Examples per forward pass of one worker; smaller ones are accumulated, with the same result."""
    micro_batch_tokens: int | None = Field(None, ge=1)
    """Tokens per forward pass, with ``padding_free``: of examples that together have no more, at most
    ``micro_batch_size`` are in a micro-batch. One that alone has more is in a micro-batch of its own."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over workers (1 optimiser states, 2 gradients too, 3 weights too)."""
    offload: bool = False
    """Keep optimiser states, and with ZeRO-3 weights too, in the machine's memory, not the GPU's (ZeRO 1 to 3)."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone for the backward pass, which computes the layer again: the same weights in less
    memory, for about a third more time."""
    torch_compile: bool = False
    """Compile the student's layers by ``torch.compile``, one program for all that are alike; ZeRO 0 to 2."""
    padding_free: bool = False
    """Put the rows of a micro-batch one behind the other through the student, without padding; none sees another."""
    attn_implementation: str | None = None
    """How the student computes attention: ``sdpa``, ``eager``, ``flash_attention_2``, ``flash_attention_3``, or a
    kernel of the hub, such as ``kernels-community/flash-attn2``; by default SDPA where its family has it, else eager.
    """
    workers: int = Field(1, ge=1, le=1 << 16)
    """Ray Train workers of the run."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Workers that share the tokens of each micro-batch, with ``padding_free``: each holds that part of the activations
    (DeepSpeed Ulysses), for rows longer than one device can hold. It divides ``workers``, and the attention heads."""
    cpus: float = Field(1, gt=0)
    """CPUs of each worker; whole CPUs are also its torch threads."""
    gpus: Gpus = 0
    """GPUs of each worker."""
    eval_every: int | None = Field(None, ge=1)
    """Measure the NLL of the held-out solutions every so many steps; it is always measured at the end."""
    snapshots: int = Field(8, ge=0)
    """Keep the delta at about so many steps, evenly spaced in log t; each is as large as a delta."""
    max_snapshot_gib: float | None = Field(None, gt=0)
    """Keep no more snapshots of a run than fit into so many GiB: fewer, evenly spaced all the same."""

    @field_validator("attn_implementation")
    @classmethod
    def _known_attention(cls, name: str | None) -> str | None:
        return None if name is None else check_name(name)

    @model_validator(mode="after")
    def _tokens_without_padding(self) -> Self:
        if self.micro_batch_tokens is not None and not self.padding_free:
            raise ValueError("micro_batch_tokens counts tokens without padding; give padding_free: true with it")
        return self

    @model_validator(mode="after")
    def _sequences_can_be_shared(self) -> Self:
        size = self.sequence_parallel_size
        if size == 1:
            return self
        if self.workers % size:
            raise ValueError(f"sequence_parallel_size {size} does not divide workers ({self.workers}); give a divisor")
        if not self.padding_free:
            raise ValueError("sequence_parallel_size divides tokens without padding; give padding_free: true with it")
        if self.attn_implementation not in (None, "sdpa"):
            raise ValueError("with sequence_parallel_size attention is SDPA, a row at a time; leave out the other one")
        return self

    def kept_snapshots(self, delta: int) -> int:
        """How many snapshots are kept of a run whose delta takes ``delta`` bytes."""
        if self.max_snapshot_gib is None:
            return self.snapshots
        return min(self.snapshots, int(self.max_snapshot_gib * 2**30 / delta))

    def halved(self, micro_batch_size: int) -> Self:
        """With micro-batches of this size, and of as much fewer tokens."""
        tokens = self.micro_batch_tokens
        if tokens is not None:
            tokens = max(1, tokens * micro_batch_size // self.micro_batch_size)
        return self.model_copy(update={"micro_batch_size": micro_batch_size, "micro_batch_tokens": tokens})

    @model_validator(mode="after")
    def _flash_in_bf16(self) -> Self:
        if is_flash(self.attn_implementation) and (self.precision != "bf16" or self.gpus == 0):
            raise ValueError("flash attention computes in bf16 on GPUs; give precision: bf16 and gpus: 1 with it")
        return self

    @model_validator(mode="after")
    def _layers_in_one_piece(self) -> Self:
        if self.torch_compile and self.zero_stage == 3:
            raise ValueError(
                "ZeRO-3 gathers weights within a layer, which leaves torch_compile nothing; give zero_stage 2"
            )
        if self.torch_compile and self.sequence_parallel_size > 1:
            raise ValueError("workers that share sequences exchange heads within a layer; leave torch_compile out")
        return self

    @model_validator(mode="after")
    def _offload_what_is_sharded(self) -> Self:
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload moves what ZeRO shards; give zero_stage 1, 2 or 3 with it")
        return self


LATER: Mapping[str, Any] = {
    "torch_compile": False,
    "max_snapshot_gib": None,
    "gradient_checkpointing": False,
    "padding_free": False,
    "micro_batch_tokens": None,
    "attn_implementation": None,
    "sequence_parallel_size": 1,
}
"""Settings that came after runs had been stored, with what those did: left out of keys there, which so stay."""


class TrainingSettings(Execution):
    """Settings of one run: what it is, how it is computed, and how it is watched and resumed."""

    renamed: ClassVar[dict[str, str]] = {
        "clip": "max_grad_norm",
        "eps": "adam_epsilon",
        "micro_batch": "micro_batch_size",
        "schedule": "lr_scheduler_type",
        "warmup": "warmup_ratio",
    }
    foreign: ClassVar[dict[str, str]] = {
        "learning_rate": "lr",
        "max_steps": "steps",
        "num_train_epochs": "epochs",
        "data_seed": "seed",
        "train_batch_size": "batch_size",
        "per_device_train_batch_size": "micro_batch_size",
        "per_device_eval_batch_size": "is given where it is measured, as in evaluation.answers.batch_size",
        "train_micro_batch_size_per_gpu": "micro_batch_size",
        "gradient_accumulation_steps": "follows from batch_size, micro_batch_size and workers; give batch_size",
        "warmup_steps": "is given as warmup_ratio, a share of the steps",
        "adam_beta1": "is the first of betas",
        "adam_beta2": "is the second of betas",
        "gradient_clipping": "max_grad_norm",
        "bf16": "is written precision: bf16",
        "fp16": "is not offered; precision is fp32 or bf16",
        "dtype": "precision",
        "torch_dtype": "precision",
        "optim": "is not offered; the optimiser is AdamW",
        "lr_scheduler": "lr_scheduler_type",
        "peft_config": "lora",
        "lora_config": "lora",
        "use_peft": "is written lora: {r: 16}, or left out",
        "lora_r": "is given as lora.r",
        "lora_alpha": "is given as lora.lora_alpha",
        "lora_dropout": "is not offered; adapters are trained without dropout",
        "lora_target_modules": "is given as lora.target_modules",
        "target_modules": "is given as lora.target_modules",
        "packing": "padding_free",
        "zero_optimization": "zero_stage",
        "num_gpus": "gpus",
        "num_workers": "workers",
        "output_dir": "is the study's: store",
        "report_to": "is not a setting; every study is tracked by MLflow",
        "beta": "is an option of the loss: loss.beta",
        "deepspeed": "is not read from a file; its settings here are zero_stage and offload",
        "logging_steps": "log_every",
        "eval_steps": "eval_every",
        "save_steps": "checkpoint_every",
        "max_length": "is a setting of the data: rollouts.max_tokens",
        "max_seq_length": "is a setting of the data: rollouts.max_tokens",
    }

    log_every: int = Field(10, ge=1)
    """Report the training curves every so many steps."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Write what is needed to resume every so many steps; by default every ten minutes."""
    gpu_type: str | None = None
    """Only on nodes with this kind of GPU, as Ray names it: ``H100``, ``A100-80G``, ``L4``."""
    restarts: int = Field(3, ge=0)
    """How often a run resumes from its last checkpoint after a worker was lost, before it counts as failed."""


Reference = Literal["start", "base"]
"""Whose answers a loss compares with: what training starts from, or the study's student, where that is another."""


class RunSpec(Settings):
    """One training run, fully resolved."""

    name: str
    loss: AnyLoss
    training: TrainingSettings
    reference: Reference = "start"

    def key(self, student_key: str, rollouts_key: str, teacher_key: str | None = None, base_key: str = "") -> str:
        """Key of the run: of its loss, every setting that can change a bit of the result, the inputs' keys; not of its
        name.

        ``student_key`` is that of what it starts from. A teacher matters to losses that learn from one; ``base_key``,
        that of the study's student, where that is the reference.
        """
        execution = self.training.model_dump(mode="json", include=set(Execution.model_fields))
        execution = {name: value for name, value in execution.items() if name not in LATER or value != LATER[name]}
        if self.training.lora is not None and self.training.precision == "bf16":
            execution["adapters"] = "fp32"  # once they were in bf16, with masters in fp32
        if self.asks_base:
            execution["reference"] = "step"  # once the base's states were stored, which differ by rounding
        if self.reference == "base" and self.loss.needs & FROM_BASE:
            execution["reference_of"] = base_key
        if teacher_key is not None and "teacher" in self.loss.needs:
            execution["teacher"] = teacher_key
        return unit_key(self.revisions, "run", self.loss, execution, student_key, rollouts_key)

    @property
    def asks_base(self) -> bool:
        """Whether each step asks the base for its logits: with adapters it is there, and nothing need be stored."""
        adapted = self.training.lora is not None and self.reference == "start"
        return adapted and "reference_logits" in self.loss.needs

    @property
    def needs(self) -> frozenset[Need]:
        """What must be given besides tokens and verdicts."""
        return self.loss.needs - {"reference_logits"} if self.asks_base else self.loss.needs

    @property
    def revisions(self) -> tuple[int, int]:
        """Of the code that makes the run: the trainer's, and its loss's."""
        return REVISION, self.loss.revision
