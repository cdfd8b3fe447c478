"""The training loop: DeepSpeed shards, the loss is ours, every sum divided by counts known from the data."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raygeo.losses.base import Loss, Unit
from raygeo.losses.counting import units
from raygeo.students.encoding import Batch
from raygeo.training.data import Data, loss_inputs, micro_batch
from raygeo.training.engine import rank, whole_gradient_norm, world
from raygeo.training.order import micro_batches, step_batches, step_count
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec

CHECKPOINT_SECONDS = 600.0


@dataclass
class Progress:
    """Where a run stands: steps and completion tokens done, its curves, and how it ended."""

    step: int = 0
    tokens: int = 0
    status: str = "running"
    reason: str = ""
    curves: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Hooks:
    """What the loop tells to the outside: reports of rank 0, and collective saves.

    ``report(step, metrics)``; ``checkpoint(progress)``; ``keep(step, last)`` keeps the delta, or returns the name of a
    parameter that is not finite; ``stopped()`` asks whether to give up.
    """

    report: Callable[[int, dict[str, float]], None]
    checkpoint: Callable[[Progress], None]
    keep: Callable[[int, bool], str | None]
    stopped: Callable[[], bool]


def snapshot_steps(count: int, steps: int) -> list[int]:
    """About ``count`` distinct steps before the last, evenly spaced in log t from 1 to ``steps``."""
    if count == 0:
        return []
    spaced = {int(step) for step in np.geomspace(1, steps, count + 1).round()}
    return sorted(spaced - {steps})


def optimise(engine: Any, spec: RunSpec, data: Data, progress: Progress, hooks: Hooks) -> Progress:
    """Take the optimiser steps that ``progress`` lacks, and return it with the run's end in ``status``.

    ``finished``; ``diverged`` as soon as the objective or the gradient norm of a step, or a weight that is to be kept,
    is not finite; ``stopped`` when asked to. Collective: all ranks return the same.
    """
    settings = spec.training
    steps = step_count(len(data.examples), settings.batch_size, settings.steps, settings.epochs)
    batches = step_batches(data.examples, len(data.tokens), settings.batch_size, steps, settings.seed)
    snapshots = set(snapshot_steps(settings.snapshots, steps))
    saved = time.monotonic()
    engine.train()
    while progress.step < steps:
        batch = batches[progress.step]
        counts = units([data.examples[i] for i in batch], data.tokens.completion_lengths)
        control = {"stop": float(hooks.stopped()), "save": float(time.monotonic() - saved > CHECKPOINT_SECONDS)}
        metrics, control = _step(engine, spec, data, batch, counts, progress.step, control)
        metrics["lr"] = settings.lr * lr_factor(settings, steps, progress.step)
        progress.step += 1
        progress.tokens += counts["token"]
        bad = next((name for name in ("objective", "grad_norm") if not math.isfinite(metrics[name])), None)
        if bad is not None:
            return _diverged(progress, f"{bad} became {metrics[bad]}", steps, settings.lr)
        last = progress.step == steps
        if data.heldout is not None and (last or _due(settings.eval_every, progress.step)):
            metrics["heldout_nll"] = heldout_nll(engine, data, settings.micro_batch)
        progress.curves += [{"step": progress.step, "metric": name, "value": v} for name, v in metrics.items()]
        if (progress.step in snapshots or last) and (broken := hooks.keep(progress.step, last)):
            return _diverged(progress, f"{broken} is no longer finite", steps, settings.lr)
        if progress.step == 1 or last or "heldout_nll" in metrics or progress.step % settings.log_every == 0:
            hooks.report(progress.step, metrics)
        if control["stop"] > 0 and not last:
            progress.status, progress.reason = "stopped", f"stopped after step {progress.step} of {steps}"
            return progress
        if not last and (_due(settings.checkpoint_every, progress.step) or control["save"] > 0):
            hooks.checkpoint(progress)
            saved = time.monotonic()
    progress.status = "finished"
    return progress


def _diverged(progress: Progress, what: str, steps: int, lr: float) -> Progress:
    progress.status = "diverged"
    progress.reason = f"{what} at step {progress.step} of {steps}; lower lr ({lr:g})"
    return progress


def heldout_nll(engine: Any, data: Data, micro: int) -> float:
    """Token-mean negative log-likelihood of the held-out solutions, in nats; ranks share the work."""
    assert data.heldout is not None
    batches = data.heldout.batches(data.pad_id, micro)
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(0, len(batches), world()):
        place = index + rank()
        batch: Batch = batches[min(place, len(batches) - 1)].to(engine.device)
        with torch.no_grad():
            logprobs = engine(batch, plain=True)["logprobs"]
        if place < len(batches):
            total += torch.tensor([-float(logprobs.double().sum()), batch.tokens], dtype=torch.float64)
    total = total.to(engine.device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total[0] / total[1])


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _step(
    engine: Any,
    spec: RunSpec,
    data: Data,
    batch: np.ndarray,
    counts: dict[Unit, int],
    step: int,
    control: dict[str, float],
) -> tuple[dict[str, float], dict[str, float]]:
    """Take one optimiser step over this rank's micro-batches; metrics and ``control`` summed over ranks.

    ``grad_norm`` is the 2-norm of the whole step's gradient before it is clipped.
    """
    loss, settings = spec.loss, spec.training
    mine = micro_batches(batch, data.example_lengths(batch), settings.micro_batch, rank(), world())
    baseline = mismatched_kl(engine, data, batch, mine) if "mismatched" in loss.needs else None
    sums: dict[str, Tensor] = {}
    norm: float | None = None
    for indices in mine:
        total, parts = micro_step(engine, loss, data, batch, indices, counts, settings.seed, step, baseline)
        engine.backward(total * world(), scale_wrt_gas=False)
        norm = whole_gradient_norm(engine)
        engine.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    names = sorted(sums)
    values = torch.stack([*(sums[name].double() for name in names)])
    values = torch.cat([values, torch.tensor(list(control.values()), dtype=torch.float64, device=values.device)])
    if dist.is_initialized():
        dist.all_reduce(values)
    numbers = values.tolist()
    metrics = dict(zip(names, numbers, strict=False))
    metrics["grad_norm"] = float(engine.get_global_grad_norm()) if norm is None else norm
    return metrics, dict(zip(control, numbers[len(names) :], strict=True))


def micro_step(
    engine: Any,
    loss: Loss,
    data: Data,
    batch: np.ndarray,
    indices: np.ndarray,
    counts: dict[Unit, int],
    seed: int = 0,
    step: int = 0,
    kl_baseline: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward one micro-batch: its share of the step's loss [] and of every metric, already divided by global counts.

    A rank with no examples left computes the step's first one and gives it weight zero, so that collectives match.
    """
    active = len(indices) > 0
    micro = micro_batch(data, loss, indices if active else batch[:1], seed, step, engine.device)
    outputs = engine(micro.batch, **micro.model_inputs)
    output = loss(loss_inputs(micro, outputs, kl_baseline))
    share = float(active)
    total = output.total * (share / counts[output.unit])
    parts = {name: value.detach() * (share / counts[unit]) for name, (value, unit) in output.metrics.items()}
    return total, {"objective": total.detach(), **parts}


def mismatched_kl(engine: Any, data: Data, batch: np.ndarray, mine: list[np.ndarray]) -> Tensor:
    """Mean over the step's rows of log p / p_base of their mismatched completions, before the step is taken: []."""
    assert data.mismatched is not None
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for indices in mine:
        padded, reference = data.mismatched.batch(data.rows(indices if len(indices) else batch[:1]), data.pad_id)
        assert reference is not None
        with torch.no_grad():
            logprobs = engine(padded.to(engine.device), plain=True)["logprobs"]
        if len(indices):
            total += (logprobs - reference.to(engine.device)).double().sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return (total / len(data.rows(batch))).float()
