"""The training loop of one worker: DeepSpeed shards, the loss is ours, divided by counts known from the data."""

import json
import math
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raygeo.losses.base import Example, Loss, LossInputs, Unit
from raygeo.losses.counting import units
from raygeo.rollouts.reference import open_reference
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.store import AnyPath, Store
from raygeo.students.checkpoint import Checkpoint
from raygeo.students.delta import check_delta, save_full_delta
from raygeo.students.encoding import collate
from raygeo.students.likelihood import token_logprobs
from raygeo.students.loading import load_student
from raygeo.students.lora import adapter_fingerprint, attach_lora
from raygeo.training.inputs import RunInputs
from raygeo.training.order import micro_batches, step_batches, step_count
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec, TrainingSettings


@dataclass(frozen=True)
class Data:
    """Everything a worker reads, opened."""

    tokens: RolloutTokens
    examples: list[Example]
    reference: np.ndarray | None
    pad_id: int

    def example_lengths(self, indices: np.ndarray) -> np.ndarray:
        """Token length of each example's longest row: [len(indices)]."""
        return np.array([max(self.tokens.lengths[r] for r in self.examples[i].rows) for i in indices])


def train(config: dict[str, Any]) -> dict[str, Any]:
    """Train one run on this worker (the function Ray Train calls) and return its summary, equal on all ranks.

    ``config``: ``spec`` (a ``RunSpec`` as JSON), ``key`` (its content key), ``inputs`` (``RunInputs``) and ``store``.
    Rank 0 exports the delta and stores the run's rows, so that a finished run survives the driver. A run whose loss
    stops being finite ends with status "diverged" and a reason; nothing is exported for it.
    """
    from ray import train as ray_train

    spec, key = RunSpec.model_validate_json(config["spec"]), config["key"]
    inputs, store = config["inputs"], config["store"]
    torch.set_num_threads(max(1, int(spec.training.cpus)))
    data = open_data(spec.loss, store, inputs)
    started = time.perf_counter()
    engine, fingerprint = build_engine(spec.training, len(data.examples), inputs.student)
    summary = optimise(engine, spec, data, lambda metrics: ray_train.report(metrics))
    curves = summary.pop("curves")
    summary |= {
        "run": spec.name,
        "loss": spec.loss.type,
        "lr": spec.training.lr,
        "seed": spec.training.seed,
        "init_seed": spec.training.init_seed,
        "examples": len(data.examples),
        "params": json.dumps({"loss": spec.loss.model_dump(), "training": spec.training.model_dump()} | fingerprint),
        "key": key,
    }
    if summary["status"] == "finished":
        values = trained_values(engine)
        if rank() == 0:
            folder = store.scratch()
            export(engine, values, inputs.student, folder)
            check_delta(folder)
            store.save_folder("deltas", key, folder)
            summary["delta"] = store.path("deltas", key)
    summary["seconds"] = time.perf_counter() - started
    if rank() == 0:
        store.write_unit(key, {"curves": [{"run": spec.name, **row} for row in curves], "runs": [summary]})
    engine.destroy()
    return summary


def open_data(loss: Loss, store: Store, inputs: RunInputs) -> Data:
    """Open tokens and reference, and let the loss select its examples from the training split."""
    tokens = RolloutTokens.open(inputs.tokens)
    rollouts = store.read_unit("rollouts", inputs.rollouts)
    rollouts = rollouts.filter(pc.equal(rollouts["split"], "train"))
    reference = open_reference(inputs.reference) if "reference" in loss.needs and inputs.reference is not None else None
    return Data(tokens, loss.select(rollouts).examples, reference, inputs.pad_id)


def rank() -> int:
    """Rank of this worker, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of workers, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


# -- the engine ---------------------------------------------------------------------------------------------------


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
            "stage": settings.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "round_robin_gradients": False,
        },
    }


def build_engine(settings: TrainingSettings, examples: int, student: AnyPath) -> tuple[Any, dict[str, str]]:
    """Load the student, attach adapters, and hand model, AdamW and schedule to DeepSpeed.

    Returns the engine and, for LoRA runs, the fingerprint of the initial adapter, which runs to be compared share.
    """
    deepspeed = import_deepspeed()
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
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    steps = step_count(examples, settings.batch_size, settings.steps, settings.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(settings, steps, step))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)
    return engine, fingerprint


def no_dropout(model: nn.Module) -> None:
    """Switch every dropout off: all losses must see the same function, and DPO the one its reference came from."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


# -- the loop -----------------------------------------------------------------------------------------------------


def optimise(engine: Any, spec: RunSpec, data: Data, report: Any) -> dict[str, Any]:
    """Take all optimiser steps; returns status, reason, steps, tokens and the training curves."""
    settings, loss = spec.training, spec.loss
    steps = step_count(len(data.examples), settings.batch_size, settings.steps, settings.epochs)
    batches = step_batches(data.examples, len(data.tokens), settings.batch_size, steps, settings.seed)
    curves: list[dict[str, Any]] = []
    tokens, status, reason = 0, "finished", ""
    engine.train()
    for step, batch in enumerate(batches):
        counts = units([data.examples[i] for i in batch], data.tokens.completion_lengths)
        tokens += counts["token"]
        sums: dict[str, Tensor] = {}
        for indices in micro_batches(batch, data.example_lengths(batch), settings.micro_batch, rank(), world()):
            total, parts = micro_step(engine, loss, data, batch, indices, counts)
            engine.backward(total * world(), scale_wrt_gas=False)
            engine.step()
            for name, value in parts.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        metrics = reduce_sums(sums)
        metrics["grad_norm"] = float(engine.get_global_grad_norm() or 0.0)
        metrics["lr"] = settings.lr * lr_factor(settings, steps, step)
        bad = [name for name in ("objective", "grad_norm") if not math.isfinite(metrics[name])]
        if bad:
            status = "diverged"
            reason = f"{bad[0]} became {metrics[bad[0]]} at step {step + 1} of {steps}; lower lr ({settings.lr:g})"
            break
        curves += [{"step": step + 1, "metric": name, "value": value} for name, value in metrics.items()]
        if (step + 1) % settings.log_every == 0 or step + 1 == steps:
            report({"step": step + 1, "curves": metrics})
    return {"status": status, "reason": reason, "steps": step + 1, "tokens": tokens, "curves": curves}


def micro_step(
    engine: Any, loss: Loss, data: Data, batch: np.ndarray, indices: np.ndarray, counts: dict[Unit, int]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward one micro-batch: its share of the step's loss [] and of every metric, already divided by global counts.

    A rank with no examples left computes the step's first one and gives it weight zero, so that collectives match.
    """
    active = len(indices) > 0
    examples = [data.examples[i] for i in (indices if active else batch[:1])]
    rows = [row for example in examples for row in example.rows]
    device = engine.device
    padded = collate([data.tokens[row] for row in rows], data.pad_id).to(device)
    reference = None
    if data.reference is not None:
        reference = torch.zeros(padded.mask.shape, dtype=torch.float32)
        for place, row in enumerate(rows):
            start, end = data.tokens.completion_offsets[row : row + 2]
            first = data.tokens.prompt_lengths[row] - 1
            reference[place, first : first + end - start] = torch.from_numpy(data.reference[start:end].copy())
        reference = reference.to(device)
    pairs = None
    if loss.unit == "pair":
        pairs = torch.arange(len(rows), device=device).view(-1, 2)
    weights = torch.tensor([w for example in examples for w in example.weights], dtype=torch.float32, device=device)
    output = loss(LossInputs(token_logprobs(engine, padded), padded.mask, weights, reference, pairs))
    share = float(active)
    total = output.total * (share / counts[output.unit])
    parts = {name: value.detach() * (share / counts[unit]) for name, (value, unit) in output.metrics.items()}
    return total, {"objective": total.detach(), **parts}


def reduce_sums(sums: dict[str, Tensor]) -> dict[str, float]:
    """Add the ranks' shares of every metric."""
    names = sorted(sums)
    values = torch.stack([sums[name].double() for name in names])
    if dist.is_initialized():
        dist.all_reduce(values)
    return dict(zip(names, values.tolist(), strict=True))


# -- the export ---------------------------------------------------------------------------------------------------


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Any:
    """Make ZeRO-3 shards whole while inside; nothing to do at other stages."""
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    else:
        yield


def trained_values(engine: Any) -> dict[str, Tensor]:
    """The fp32 values of all trained parameters, whole, on rank 0's CPU; all ranks take part, the others get none.

    They are the optimiser's master copies where there are any.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    values = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            with gathered([parameter]):
                value = parameter.detach().clone()
        if rank() == 0:
            values[name] = value.to("cpu", torch.float32)
    return values


def export(engine: Any, values: dict[str, Tensor], student: AnyPath, folder: Path) -> None:
    """Write a run's delta into ``folder`` in fp32: a PEFT adapter folder where adapters were trained, else
    ``delta.safetensors`` with tuned minus base for every parameter.

    Raises:
        DeltaError: the base folder lacks a parameter the model has.
    """
    if hasattr(engine.module, "peft_config"):
        engine.module.save_pretrained(str(folder), state_dict=values, safe_serialization=True)
        return
    base = Checkpoint(student)
    save_full_delta(folder, {name: value - base.tensor(name).float() for name, value in values.items()})
