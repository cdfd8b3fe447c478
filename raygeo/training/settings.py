"""How a run is trained. Everything DeepSpeed or Ray would otherwise choose by default is set here explicitly."""

from typing import Literal

from pydantic import Field, model_validator

from raygeo.losses import AnyLoss
from raygeo.settings import Settings, content_key
from raygeo.students.lora import LoraSettings


class TrainingSettings(Settings):
    """Settings of the optimisation and of the workers of one run."""

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
    micro_batch: int = Field(32, ge=1)
    """Examples per forward pass of one worker; smaller ones are accumulated, with the same result."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Learning rate at the last step, as a share of the peak."""
    schedule_steps: int | None = Field(None, ge=1)
    """Steps that warm-up and schedule are laid out for, where the run ends before they do; by default the run's own."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay of matrices; vectors (norms, biases) are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    clip: float = Field(1.0, ge=0)
    """Clip the global gradient norm to this value; 0 never clips."""
    lora: LoraSettings | None = None
    """Train LoRA adapters; without it every weight is trained."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in bfloat16 and keeps fp32 master weights, from which deltas are exported."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded over workers (1 optimiser states, 2 gradients too, 3 weights too)."""
    offload: bool = False
    """Keep optimiser states, and with ZeRO-3 weights too, in the machine's memory, not the GPU's (ZeRO 1 to 3)."""
    workers: int = Field(1, ge=1)
    """Ray Train workers of the run."""
    cpus: float = Field(1, gt=0)
    """CPUs of each worker; whole CPUs are also its torch threads."""
    gpus: float = Field(0, ge=0)
    """GPUs of each worker."""
    log_every: int = Field(10, ge=1)
    """Report the training curves every so many steps."""
    eval_every: int | None = Field(None, ge=1)
    """Measure the NLL of the held-out solutions every so many steps; it is always measured at the end."""
    snapshots: int = Field(8, ge=0)
    """Keep the delta at about so many steps, evenly spaced in log t; each is as large as a delta."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Write what is needed to go on every so many steps; by default every ten minutes."""
    restarts: int = Field(3, ge=0)
    """How often a run goes on from its last checkpoint after a worker was lost, before it counts as failed."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give either steps or epochs, not both")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload moves what ZeRO shards; give zero_stage 1, 2 or 3 with it")
        return self


class RunSpec(Settings):
    """One training run, fully resolved."""

    name: str
    loss: AnyLoss
    training: TrainingSettings

    def key(self, student_key: str, rollouts_key: str) -> str:
        """Content key: the loss, every training setting that can change the result, the inputs' keys; not the name."""
        training = self.training.model_dump(mode="json", exclude={"log_every", "checkpoint_every", "restarts"})
        return content_key("run", self.loss, training, student_key, rollouts_key)
