"""Critical sharpness: the curvature along a direction, from the step at which the loss first rises above its start.

Kalra et al. 2026 (arXiv:2601.16979): lambda_c = 2 / eta_c, where eta_c is the smallest step eta > 0 with
L(w + eta d) > L(w). For a quadratic with gradient g and Hessian H it is d'Hd / -g'd, and along d = -g the Rayleigh
quotient u'Hu of the unit gradient u. It takes some seven to twelve forward passes and no second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from raygeo.geometry.curvature.chain import nll_products
from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.weights import linalg
from raygeo.models.batches import Batch, input_device
from raygeo.models.delta import Dense, Entry, LowRank
from raygeo.models.likelihood import token_logprobs

Outcome = Literal["found", "rises at once", "does not rise"]
_RESOLVED = 40
"""A sum of two changes of the loss is resolved when it is so many times the resolution of one."""


class Critical(NamedTuple):
    """Where a loss first rises along a direction.

    ``step`` is eta_c, the geometric middle of the bracket [``low``, ``high``] of steps that the loss does not and does
    rise at, and ``sharpness`` 2 / eta_c; all are None unless the ``outcome`` is "found". It "rises at once" where no
    step lowers the loss by more than twice the ``resolution``, and "does not rise" as far as was looked. ``slope`` and
    ``curvature`` are the first and second derivative by central differences, over the first step and over the first
    that resolves it, NaN where none does; ``dip`` is the lowest rise seen, ``sign`` -1 where the opposite direction was
    taken, and ``passes`` how often the loss was asked for.
    """

    outcome: Outcome
    step: float | None
    low: float | None
    high: float | None
    slope: float
    curvature: float
    dip: float
    sign: int
    passes: int

    @property
    def sharpness(self) -> float | None:
        """2 / eta_c."""
        return None if self.step is None else 2 / self.step


def critical_step(
    rise: Callable[[float], float],
    first: float,
    *,
    resolution: float = 0.0,
    tolerance: float = 0.1,
    doublings: int = 10,
    descend: bool = False,
) -> Critical:
    """The smallest step at which ``rise``, L(w + step d) - L(w), is above zero.

    A pair of passes at ``first`` and -``first`` gives slope and curvature, the curvature from wider pairs where
    rounding may be more than 5 % of it, hence the step of the quadratic through them. From there steps are doubled or
    halved until the loss is seen on both sides, and their bracket is bisected, in logarithms, until its ends differ by
    no more than ``tolerance``. All these steps are ``first`` times powers of 2 and of its roots, so that rounding moves
    the bracket only where eta_c is next to one of them. A change within the ``resolution`` may be one next to eta_c: it
    is not given up before half that step has shown no fall either. A rise that is over before the first step tried, or
    between two steps of which neither rises, is not seen.

    Args:
        rise: the change of the loss at a step, of either sign; NaN and infinity count as a rise.
        first: the first step, small enough that the loss is about quadratic there.
        resolution: changes of the loss no larger than this are rounding.
        tolerance: relative width of the bracket.
        doublings: how often the step is doubled or halved at most.
        descend: take the opposite direction where this one goes up.
    """
    passes, dip = 0, 0.0

    def ask(step: float) -> float:
        nonlocal passes, dip
        passes += 1
        found = rise(step)
        dip = min(dip, found) if step * sign > 0 and not math.isnan(found) else dip
        return found

    sign, wide = 1, first
    up, down = ask(first), ask(-first)
    slope, bend = (up - down) / (2 * first), up + down
    if descend and slope > 0:
        sign, dip = -1, min(0.0, down)
    while abs(bend) <= _RESOLVED * resolution and wide < first * 2**doublings:
        wide, passes = 4 * wide, passes + 2
        bend = rise(wide) + rise(-wide)
    unresolved = resolution > 0 and abs(bend) <= _RESOLVED * resolution
    curvature = math.nan if unresolved else bend / wide**2

    def outcome(kind: Outcome, low: float | None = None, high: float | None = None) -> Critical:
        step = math.sqrt(low * high) if low is not None and high is not None else None
        return Critical(kind, step, low, high, sign * slope, curvature, dip, sign, passes)

    downhill = -sign * slope
    known = downhill > 0 and 0 < curvature < math.inf
    guess = 2 * downhill / curvature / first if known else 1.0
    step = first * 2.0 ** round(math.log2(min(max(guess, 2.0**-doublings), 2.0**doublings)))
    found = ask(sign * step)
    low: float | None
    if found <= 0:
        start = low = step
        for _ in range(doublings):
            step *= 2
            if not ask(sign * step) <= 0:
                break
            low = step
        else:
            return outcome("does not rise")
        high = step
        if dip >= -2 * resolution:
            ask(sign * start / 2)
    else:
        high, low, unseen = step, None, 0
        for _ in range(doublings):
            step /= 2
            found = ask(sign * step)
            if found <= 0:
                low = low or step
            else:
                high, low = step, None
            unseen = unseen + 1 if abs(found) <= resolution else 0
            if (dip >= -2 * resolution and unseen == 2) or (dip < -2 * resolution and low is not None):
                break
    if low is None or dip >= -2 * resolution:
        return outcome("rises at once")
    while high > (1 + tolerance) * low:
        middle = math.sqrt(low * high)
        if ask(sign * middle) <= 0:
            low = middle
        else:
            high = middle
    return outcome("found", low, high)


def gradient(
    model: nn.Module, batches: Sequence[Batch], names: Sequence[str], *, by_layer: bool = False
) -> dict[str, Dense]:
    """The gradient of the token-mean NLL of ``batches`` by the parameters ``names``, in their dtype, as a delta.

    ``by_layer`` holds one layer's graph and a few tokens' logits at a time (``chain``), at a forward pass more.
    """
    own = dict(model.named_parameters())
    values = [own[name].requires_grad_() for name in names]
    total = [torch.zeros_like(value) for value in values]
    tokens = sum(batch.tokens for batch in batches)
    for batch in (batch.to(input_device(model)) for batch in batches):
        if by_layer:
            nll_products(model, batch, values, tokens, [], [], total)
            continue
        loss = -token_logprobs(model, batch).sum() / tokens
        for sums, part in zip(total, torch.autograd.grad(loss, values, materialize_grads=True), strict=True):
            sums += part
    return {name: Dense(value) for name, value in zip(names, total, strict=True)}


def random_direction(direction: Mapping[str, Entry], device: torch.device, *name: str | int) -> dict[str, Entry]:
    """A normal direction, fp32 on ``device``, in which every parameter has the norm that it has in ``direction``; of a
    low-rank entry, one of that rank. Its draws depend on ``name`` and the parameter alone.
    """
    found: dict[str, Entry] = {}
    for parameter, entry in direction.items():
        generator = named_generator("direction", *name, parameter)
        if isinstance(entry, LowRank):
            b, a = (torch.randn(*factor.shape, generator=generator) for factor in (entry.b, entry.a))
            scale = linalg.norm(entry) / linalg.norm(LowRank(b, a, 1.0))
            found[parameter] = LowRank(b.to(device), a.to(device), scale)
        else:
            value = torch.randn(*entry.shape, generator=generator)
            scale = linalg.norm(entry) / linalg.norm(Dense(value))
            found[parameter] = Dense(value.mul_(scale).to(device))
    return found


def length_of(direction: Mapping[str, Entry]) -> float:
    """The Euclidean norm of a whole direction."""
    return math.sqrt(sum(linalg.norm(entry) ** 2 for entry in direction.values()))
