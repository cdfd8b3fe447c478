"""Curves of low loss trained between two runs (Garipov et al., arXiv:1802.10026).

A curve from a to b has one free point, the bend. Written as midpoint plus x, the quadratic Bezier curve (their eq. 4)
and the polygonal chain (eq. 3) are both the straight line plus a bump of x:

    theta(t) = base + (1 - t) delta_a + t delta_b + w(t) x,    w = 2 t (1 - t)  or  w = 1 - |1 - 2 t|.

So the ends stay fixed whatever x is, and x = 0 is the line itself. Where both deltas are LoRA factors, x is one more
adapter with free factors; elsewhere it is a free difference of the parameter's own shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from raygeo.errors import DeltaError
from raygeo.geometry.connectivity.mixtures import Entries, mixture
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.delta import Dense, Entry, LowRank
from raygeo.models.likelihood import token_logprobs
from raygeo.models.mix import Mixture
from raygeo.models.resident import ResidentStudent

Shape = Literal["bezier", "chain"]


def bump(shape: Shape, t: float) -> float:
    """Height w(t) of the bend's share of a curve, 0 at both ends."""
    return 2 * t * (1 - t) if shape == "bezier" else 1 - abs(1 - 2 * t)


def curve_mixture(
    shape: Shape, t: float, a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, bend: Mapping[str, Entry]
) -> Mixture:
    """The point theta(t) as a mixture; exactly an end's own where t is 0 or 1. ``bend`` is x, None the base's delta."""
    return mixture((1 - t, a), (t, b), (bump(shape, t), Entries(bend)))


def new_bend(a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, rms: float, seed: int) -> dict[str, Entry]:
    """A bend x of zero that can be trained, fp32, for every parameter that either delta touches.

    Where no delta is dense, it is ``LowRank`` of the larger of their ranks: A standard normal, B zero, and a scale that
    makes B A, with entries of B of order 1, as large as ``rms`` an entry. Elsewhere it is ``Dense``.
    """
    generator = torch.Generator().manual_seed(seed)
    bend: dict[str, Entry] = {}
    deltas = [delta for delta in (a, b) if delta is not None]
    for name in sorted({name for delta in deltas for name in delta}):
        entries = [delta[name] for delta in deltas if name in delta]
        factors = [entry for entry in entries if isinstance(entry, LowRank)]
        shape = entries[0].shape
        if len(factors) < len(entries):
            bend[name] = Dense(torch.zeros(shape))
        else:
            rank = max(len(entry.a) for entry in factors)
            free = torch.randn(rank, shape[1], generator=generator)
            bend[name] = LowRank(torch.zeros(shape[0], rank), free, rms / math.sqrt(rank))
    return bend


def pull_back(entry: Entry, gradient: Tensor) -> list[Tensor]:
    """Gradient for the free tensors of a bend's entry (B and A, or the value) from that for its product [out, in]."""
    if isinstance(entry, Dense):
        return [gradient]
    return [entry.scale * gradient @ entry.a.T, entry.scale * entry.b.T @ gradient]


def free_tensors(entry: Entry) -> list[Tensor]:
    """The tensors of a bend's entry that are trained, in the order of ``pull_back``."""
    return [entry.value] if isinstance(entry, Dense) else [entry.b, entry.a]


def train_bend(
    student: ResidentStudent,
    texts: Sequence[TokenSequence],
    a: Mapping[str, Entry] | None,
    b: Mapping[str, Entry] | None,
    *,
    apart: float,
    shape: Shape,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> dict[str, Entry]:
    """Train the bend x of the curve from base + a to base + b by Adam on the expected NLL over t; None is the base.

    A step draws t evenly from [0, 1] and ``batch_size`` texts, and moves x down the gradient of the token mean
    (estimated without bias: the sum over the drawn texts over their share of all tokens). Gradients are taken at the
    merged weights, one parameter's at a time, and pulled back to the free tensors of x.

    Args:
        student: loaded for both deltas; it has its base weights again in the end.
        texts: what the NLL is taken of.
        a: the delta at t = 0.
        b: the delta at t = 1.
        apart: Euclidean distance of the two deltas.
        shape: of the curve.
        steps: number of steps.
        lr: first step of Adam, relative to the distance (a root mean square over parameters); it falls to zero
            linearly.
        batch_size: texts a step.
        seed: of the draws and of the free factors.

    Returns:
        x by parameter, fp32: ``LowRank`` or ``Dense`` as ``new_bend`` says.

    Raises:
        DeltaError: the NLL of a step is not finite.
    """
    own = dict(student.model.named_parameters())
    touched = {name for delta in (a, b) if delta is not None for name in delta}
    rms = apart / math.sqrt(sum(own[name].numel() for name in touched))
    bend = new_bend(a, b, rms, seed)
    dense, factors = (
        [tensor for entry in bend.values() if isinstance(entry, kind) for tensor in free_tensors(entry)]
        for kind in (Dense, LowRank)
    )
    groups = [{"params": dense, "lr": lr * rms}, {"params": factors, "lr": lr}]
    adam = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
    rng = np.random.default_rng(seed)
    batch_size = min(batch_size, len(texts))
    share = batch_size / len(texts) * sum(text.completion_length for text in texts)
    for step in range(steps):
        t = float(rng.uniform())
        drawn = rng.choice(len(texts), batch_size, replace=False)
        batch = collate([texts[i] for i in drawn], student.pad_id).to(student.model.device)
        height = bump(shape, t)

        def receive(name: str, gradient: Tensor, height: float = height) -> None:
            parts = pull_back(bend[name], height * gradient.float().cpu())
            for tensor, part in zip(free_tensors(bend[name]), parts, strict=True):
                tensor.grad = part

        with (
            student.weights.mixed(curve_mixture(shape, t, a, b, bend)),
            gradients(student.model, touched, receive),
        ):
            nll = -token_logprobs(student.model, batch).sum() / share
            if not bool(torch.isfinite(nll)):
                raise DeltaError(
                    f"the loss on the curve is {nll.item()} at step {step + 1}; lower lr, or leave out "
                    "a run that has diverged."
                )
            nll.backward()
        adam.step()
        schedule.step()
    return bend


@contextmanager
def gradients(model: nn.Module, names: set[str], receive: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Hand each parameter's gradient to ``receive(name, gradient)`` as soon as it is known, and free it at once.

    Within, only the parameters ``names`` require gradients; on exit all do or do not as before.
    """
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            assert parameter.grad is not None
            receive(name, parameter.grad)
            parameter.grad = None

        return take

    handles = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            handles.append(parameter.register_post_accumulate_grad_hook(hook(name)))
    try:
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
