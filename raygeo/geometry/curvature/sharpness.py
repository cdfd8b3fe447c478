"""Sharpness: how much the probe's loss rises near every run, at worst within a ball and on average under noise.

The loss is the token-mean negative log-likelihood of one probe, the same for all runs. Every measure is the loss at a
neighbour of the weights minus the loss at the weights, in nats a token; none is divided by a radius.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import grad

from raygeo.errors import WorkloadError
from raygeo.geometry.curvature.draws import named_generator
from raygeo.geometry.curvature.spaces import spaces_of_weights
from raygeo.geometry.curvature.trace import mean_and_error
from raygeo.geometry.probes import Probe, nll
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.likelihood import token_logprobs
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

Positive = Annotated[float, Field(gt=0)]


class Landscape(Protocol):
    """A scalar of n weights, near some weights; ``offset`` [n] is added to them, and they stay as they are."""

    weights: Tensor
    """The weights, [n]."""
    sizes: list[int]
    """How many of them each parameter has, in order."""

    def loss(self, offset: Tensor) -> float:
        """The scalar at weights + offset."""

    def gradient(self, offset: Tensor) -> Tensor:
        """Its gradient there, [n]."""


def ball(landscape: Landscape, radius: float, steps: int) -> tuple[float, float]:
    """The rise of the loss after one ascent step to the surface of the ball |e| <= ``radius``, and the largest rise
    along ``steps`` projected ones.

    The first is SAM's, e = radius g / |g| (Foret et al. 2021, arXiv:2010.01412, equation 2). Each further step adds
    radius g / |g| with the gradient there and goes back to the ball; where the maximum lies on the surface it is a
    fixed point, as its gradient is parallel to e. Both are lower bounds of the maximum over the ball. Where the
    gradient vanishes there is no direction to step in and the rise is that of staying.
    """
    offset, start = torch.zeros_like(landscape.weights), landscape.loss(torch.zeros_like(landscape.weights))
    rises = []
    for _ in range(steps):
        gradient = landscape.gradient(offset)
        norm = _norm(gradient)
        if norm > 0:
            offset = offset + radius / norm * gradient
            offset = offset * min(1.0, radius / _norm(offset))
        rises.append(landscape.loss(offset) - start)
    return rises[0], float(np.max(rises))


def adaptive_ball(landscape: Landscape, radius: float) -> float:
    """The rise after one step to the surface of ASAM's ellipsoid |e / |w|| <= ``radius``, w being the weights.

    e = radius w^2 g / | |w| g |, elementwise (Kwon et al. 2021, arXiv:2102.11600, with elementwise
    normalisation and without a stabiliser), so it does not change when weights are rescaled without changing the model;
    weights that are zero stay zero.
    """
    zero = torch.zeros_like(landscape.weights)
    scaled = landscape.weights.abs() * landscape.gradient(zero)
    norm = _norm(scaled)
    if norm == 0:
        return 0.0
    return landscape.loss(radius / norm * landscape.weights.abs() * scaled) - landscape.loss(zero)


def average(landscape: Landscape, scales: Tensor, draws: int, seed: int) -> tuple[float, float]:
    """Mean rise under independent normal noise with standard deviations ``scales`` [n], and its standard error.

    Each of the ``draws`` is a pair of opposite offsets, whose mean has no first-order term, so that a quadratic rises
    by half of e'He. The draws depend on the seed alone.
    """
    zero = torch.zeros_like(landscape.weights)
    start, rises = landscape.loss(zero), []
    for draw in range(draws):
        noise = torch.randn(len(zero), generator=named_generator("noise", seed, draw)).to(zero) * scales
        rises.append((landscape.loss(noise) + landscape.loss(-noise)) / 2 - start)
    mean, error = mean_and_error(np.array(rises))
    return float(mean), float(error)


def layer_scales(landscape: Landscape) -> Tensor:
    """Root mean square of the parameter that each weight belongs to, [n]."""
    parts = landscape.weights.split(landscape.sizes)
    return torch.cat([part.square().mean().sqrt().expand(len(part)) for part in parts])


def _norm(vector: Tensor) -> float:
    """Its Euclidean norm, summed in fp64, where squares of what fp32 holds do not overflow."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


class SharpnessSettings(Settings):
    """Which neighbourhoods the loss is looked at in; an empty list leaves a measure out."""

    space: Literal["delta", "all", "attention"] = "delta"
    """The weights that are moved: merged ones that any run's delta touches, all, or attention's q, k, v and o."""
    radii: tuple[Positive, ...] = (0.05, 0.5)
    """Radii of the ball, in the unit of the weights."""
    ascent_steps: int = Field(5, ge=1)
    """Projected ascent steps in each ball; the first is SAM's."""
    adaptive_radii: tuple[Positive, ...] = (0.5,)
    """Radii of ASAM's ellipsoid, relative to the weights."""
    sigmas: tuple[Positive, ...] = (0.001, 0.01)
    """Standard deviations of noise on every weight, in the unit of the weights."""
    relative_sigmas: tuple[Positive, ...] = (0.01, 0.1)
    """Standard deviations of noise, in units of the root mean square of each parameter."""
    draws: int = Field(8, ge=2)
    """Pairs of opposite draws behind each average."""
    batch_size: int = Field(16, ge=1)
    """Texts in one pass; has no effect on the numbers beyond rounding."""
    seed: int = 0
    """Seed of the noise, the same for all runs."""


class _Model:
    """The landscape of a model's loss on batches over chosen parameters."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch], names: Sequence[str]):
        own = dict(model.named_parameters())
        self.model = model
        self.parameters = [own[name].requires_grad_() for name in names]
        self.sizes = [value.numel() for value in self.parameters]
        self.batches = [batch.to(self.parameters[0].device) for batch in batches]
        self.tokens = sum(batch.tokens for batch in batches)
        self.weights = torch.cat([value.detach().flatten() for value in self.parameters])

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        for value, part in zip(self.parameters, weights.split(self.sizes), strict=True):
            value.copy_(part.view_as(value))

    def loss(self, offset: Tensor) -> float:
        self._set(self.weights + offset)
        try:
            return nll(self.model, self.batches)
        finally:
            self._set(self.weights)

    def gradient(self, offset: Tensor) -> Tensor:
        self._set(self.weights + offset)
        try:
            total = torch.zeros_like(self.weights)
            for batch in self.batches:
                loss = -token_logprobs(self.model, batch).sum() / self.tokens
                parts = grad(loss, self.parameters, materialize_grads=True)
                total += torch.cat([part.flatten() for part in parts])
            return total
        finally:
            self._set(self.weights)


class Sharpness(Workload):
    """The sharpness of every run, one task a run, rows for table ``sharpness``.

    ``measure`` is "sam" (one step), "ball" (several), "asam", "noise" or "layer noise"; ``radius`` is that measure's
    radius or standard deviation, ``value`` the rise of the loss, ``error`` the standard error of a mean over ``draws``.
    Rises beyond what fp32 resolves of the loss, about 1e-7 of it, are noise; a diverged neighbour gives infinity or
    NaN, which is kept as null.

    A task costs a gradient and a pass for each radius and step, and two passes for each sigma and draw.

    Args:
        settings: space, radii and sigmas.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
    """

    name = "sharpness"
    tables = ("sharpness",)

    def __init__(self, settings: SharpnessSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        space = self._touched() if self.settings.space == "delta" else self.settings.space
        shared = content_key(self.settings, Probe.load(self.probe).key, space)
        return [
            Task(content_key(self.name, shared, run.name, run.key), 1.0, run, f"sharpness of {run.name}")
            for run in self.runs
            if space
        ]

    def setup(self) -> tuple[MixedWeights, list[Batch], list[str]]:
        """Load the base student, the probe's batches and the names of the weights that are moved."""
        model, tokenizer = load_student(self.base, device=default_device())
        batches = Probe.load(self.probe).batches(tokenizer.pad_token_id, self.settings.batch_size)
        touched, names = self._touched(), [name for name, _ in model.named_parameters()]
        [space] = spaces_of_weights(self.settings.space, names, touched).values()
        return MixedWeights(model, touched), batches, space

    def compute(self, state: tuple[MixedWeights, list[Batch], list[str]], payload: Run) -> dict[str, Rows]:
        """Measure one run."""
        weights, batches, names = state
        with weights.mixed(payload.mixture()) as model:
            landscape = _Model(model, batches, names)
            return {"sharpness": [{"run": payload.name} | row for row in self._measure(landscape)]}

    def _measure(self, landscape: _Model) -> Iterator[dict]:
        settings = self.settings
        start = landscape.loss(torch.zeros_like(landscape.weights))
        if not np.isfinite(start):
            raise WorkloadError(f"the probe's negative log-likelihood is {start}; the run diverged, leave it out.")
        common = {"nll": start, "parameters": len(landscape.weights), "tokens": landscape.tokens}

        def row(
            measure: str, radius: float, value: float, error: float | None = None, draws: int | None = None
        ) -> dict:
            known = {"value": value, "error": error}
            finite = {key: x if x is not None and np.isfinite(x) else None for key, x in known.items()}
            return common | {"measure": measure, "radius": radius, "draws": draws} | finite

        for radius in settings.radii:
            one, several = ball(landscape, radius, settings.ascent_steps)
            yield row("sam", radius, one)
            yield row("ball", radius, several)
        for radius in settings.adaptive_radii:
            yield row("asam", radius, adaptive_ball(landscape, radius))
        ones, layers = torch.ones_like(landscape.weights), layer_scales(landscape)
        for measure, sigmas, scales in (
            ("noise", settings.sigmas, ones),
            ("layer noise", settings.relative_sigmas, layers),
        ):
            for sigma in sigmas:
                mean, error = average(landscape, sigma * scales, settings.draws, settings.seed)
                yield row(measure, sigma, mean, error, settings.draws)

    def _touched(self) -> list[str]:
        return sorted({name for run in self.runs for name in run.open() or ()})
