"""The training loop: DeepSpeed shards, the loss is ours, every sum divided by counts known from the data."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raygeo.losses.base import Loss, Unit
from raygeo.losses.batches import micro_batch, micro_loss, mismatched_log_ratio
from raygeo.losses.counting import units
from raygeo.models.batches import Batch
from raygeo.naming import refuse_one_name_for_two
from raygeo.records import FINISHED, STOPPED
from raygeo.training.data import Data
from raygeo.training.engine import data_rank, delta_bytes, speaks, whole_gradient_norm, world
from raygeo.training.order import micro_batches, step_batches, step_count, token_batches
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec, TrainingSettings

CHECKPOINT_SECONDS = 600.0

Command = Literal["stop", "interrupt"]
"""Give the run up for good, or end it for now, after a checkpoint from which it can resume."""


@dataclass
class TrainingState:
    """Where a run stands: steps and completion tokens done, its curves, and how it ended."""

    step: int = 0
    tokens: int = 0
    status: str = "running"
    reason: str = ""
    curves: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Hooks:
    """How the loop talks to what is around it.

    ``report(step, metrics)`` on rank 0; ``checkpoint(state)``; ``keep(step, last)`` keeps the delta, or returns the
    name of a parameter that is not finite; ``command()`` asks, before each step, whether to end early.
    """

    report: Callable[[int, dict[str, float]], None]
    checkpoint: Callable[[TrainingState], None]
    keep: Callable[[int, bool], str | None]
    command: Callable[[], Command | None]


def snapshot_steps(count: int, steps: int) -> list[int]:
    """About ``count`` distinct steps before the last, evenly spaced in log t from 1 to ``steps``."""
    if count == 0:
        return []
    spaced = {int(step) for step in np.geomspace(1, steps, count + 1).round()}
    return sorted(spaced - {steps})


def optimise(engine: Any, spec: RunSpec, data: Data, state: TrainingState, hooks: Hooks) -> TrainingState:
    """Take the optimiser steps that ``state`` lacks, and return it with the run's end in ``status``.

    ``finished``; ``diverged`` as soon as the objective or the gradient norm of a step, or a weight that is to be kept,
    is not finite; ``stopped`` on that command; ``interrupted``, after a checkpoint. Collective: all ranks return the
    same.
    """
    settings = spec.training
    steps = step_count(len(data.examples), settings.batch_size, settings.steps, settings.epochs)
    batches = step_batches(data.examples, len(data.tokens), settings.batch_size, steps, settings.seed)
    snapshots = set(snapshot_steps(settings.kept_snapshots(delta_bytes(engine)), steps))
    saved = time.monotonic()
    engine.train()
    while state.step < steps:
        batch = batches[state.step]
        if spec.loss.kept_share < 1:
            batch = chosen(engine, spec, data, batch)
        counts = units([data.examples[i] for i in batch], data.tokens.completion_lengths)
        command, late = hooks.command(), time.monotonic() - saved > CHECKPOINT_SECONDS
        control = {"stop": float(command == "stop"), "interrupt": float(command == "interrupt"), "save": float(late)}
        metrics, control = _step(engine, spec, data, batch, counts, state.step, control)
        metrics["lr"] = settings.lr * lr_factor(settings, steps, state.step)
        refuse_one_name_for_two(metrics)
        state.step += 1
        state.tokens += counts["token"]
        bad = next((name for name in ("objective", "grad_norm") if not math.isfinite(metrics[name])), None)
        if bad is not None:
            return _diverged(state, f"{bad} became {metrics[bad]}", steps, settings.lr)
        last = state.step == steps
        if data.heldout is not None and (last or _due(settings.eval_every, state.step)):
            metrics["heldout_nll"] = heldout_nll(engine, data, settings)
        state.curves += [{"step": state.step, "metric": name, "value": v} for name, v in metrics.items()]
        if (state.step in snapshots or last) and (broken := hooks.keep(state.step, last)):
            return _diverged(state, f"{broken} is no longer finite", steps, settings.lr)
        if state.step == 1 or last or "heldout_nll" in metrics or state.step % settings.log_every == 0:
            hooks.report(state.step, metrics)
        if control["stop"] > 0 and not last:
            state.status, state.reason = STOPPED, f"stopped after step {state.step} of {steps}"
            return state
        interrupted = control["interrupt"] > 0
        if not last and (interrupted or _due(settings.checkpoint_every, state.step) or control["save"] > 0):
            hooks.checkpoint(state)
            saved = time.monotonic()
            if interrupted:
                state.status, state.reason = "interrupted", f"interrupted after step {state.step} of {steps}"
                return state
    state.status = FINISHED
    return state


def _diverged(state: TrainingState, what: str, steps: int, lr: float) -> TrainingState:
    state.status = "diverged"
    state.reason = f"{what} at step {state.step} of {steps}; lower lr ({lr:g})"
    return state


def heldout_nll(engine: Any, data: Data, settings: TrainingSettings) -> float:
    """Token-mean negative log-likelihood of the held-out solutions, in nats; ranks share the work."""
    assert data.heldout is not None
    size = settings.micro_batch_size
    if settings.micro_batch_tokens is not None:
        longest = max(len(sequence) for sequence in data.heldout.sequences)
        size = max(1, min(size, settings.micro_batch_tokens // longest))
    batches = data.heldout.batches(data.pad_id, size)
    total = torch.zeros(2, dtype=torch.float64)
    mine, shares = data_rank(settings)
    for index in range(0, len(batches), shares):
        place = index + mine
        batch: Batch = batches[min(place, len(batches) - 1)].to(engine.device)
        with torch.no_grad():
            logprobs = engine(batch, plain=True)["logprobs"]
        if place < len(batches) and speaks(settings):
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
    mine = _split(settings, data, batch)
    baseline = mismatched_kl(engine, data, batch, mine, settings) if "mismatched" in loss.needs else None
    sums: dict[str, Tensor] = {}
    norm: float | None = None
    for number, indices in enumerate(mine, 1):
        engine.set_gradient_accumulation_boundary(number == len(mine))
        total, parts = micro_step(engine, loss, data, batch, indices, counts, settings.seed, step, baseline)
        engine.backward(total * world(), scale_wrt_gas=False)
        norm = whole_gradient_norm(engine)
        engine.step()
        for name, value in parts.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value * float(speaks(settings))
    names = sorted(sums)
    values = torch.stack([*(sums[name].double() for name in names)])
    values = torch.cat([values, torch.tensor(list(control.values()), dtype=torch.float64, device=values.device)])
    if dist.is_initialized():
        dist.all_reduce(values)
    numbers = values.tolist()
    metrics = dict(zip(names, numbers, strict=False))
    metrics["grad_norm"] = float(engine.get_global_grad_norm()) if norm is None else norm
    return metrics, dict(zip(control, numbers[len(names) :], strict=True))


def chosen(engine: Any, spec: RunSpec, data: Data, batch: np.ndarray) -> np.ndarray:
    """The examples of a step that its loss chooses, from one pass of all of them without gradients; collective.

    Ranks share the pass, and all choose from the same numbers.
    """
    loss, settings = spec.loss, spec.training
    distinct, places = np.unique(batch, return_inverse=True)
    found: Tensor | None = None
    for indices in _split(settings, data, distinct):
        asked = indices if len(indices) else distinct[:1]
        padded, _ = data.rollouts.batch(data.rows(asked), data.pad_id)
        given = padded.to(engine.device)
        with torch.no_grad():
            logprobs = engine(given, plain=True)["logprobs"]
            sketches = loss.sketches(given.input_ids[:, 1:], logprobs, given.mask)
        if found is None:
            found = sketches.new_zeros(len(distinct), sketches.shape[1])
        if len(indices) and speaks(settings):
            found[torch.from_numpy(np.searchsorted(distinct, indices)).to(found.device)] = sketches
    assert found is not None
    if dist.is_initialized():
        dist.all_reduce(found)
    return batch[loss.choose(found.cpu()[places], math.ceil(loss.kept_share * len(batch) - 1e-9))]


def _split(settings: TrainingSettings, data: Data, batch: np.ndarray) -> list[np.ndarray]:
    """The micro-batches of a step that this rank computes."""
    size, tokens = settings.micro_batch_size, settings.micro_batch_tokens
    if tokens is None:
        return micro_batches(batch, data.example_lengths(batch), size, *data_rank(settings))
    return token_batches(batch, data.example_tokens(batch), size, tokens, *data_rank(settings))


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
    output = micro_loss(engine, loss, micro, kl_baseline)
    share = float(active)
    total = output.total * (share / counts[output.unit])
    parts = {name: value.detach() * (share / counts[unit]) for name, (value, unit) in output.metrics.items()}
    return total, {"objective": total.detach(), **parts}


def mismatched_kl(
    engine: Any, data: Data, batch: np.ndarray, mine: list[np.ndarray], settings: TrainingSettings
) -> Tensor:
    """Mean over the step's rows of log p / p_base of their mismatched completions, before the step is taken: []."""
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for indices in mine:
        part = mismatched_log_ratio(engine, data, indices if len(indices) else batch[:1], engine.device)
        if len(indices) and speaks(settings):
            total += part
    if dist.is_initialized():
        dist.all_reduce(total)
    return (total / len(data.rows(batch))).float()
