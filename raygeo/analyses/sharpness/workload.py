"""Sharpness: how much the probe's NLL rises near every run, at worst within a ball and on average under noise.

The NLL, the token-mean negative log-likelihood, is that of one probe, the same for all runs, in nats a token.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from raygeo.data.probes import Probe
from raygeo.errors import WorkloadError
from raygeo.geometry.curvature.landscape import Landscape, ModelLandscape
from raygeo.geometry.curvature.rises import adaptive_ball, average, ball, layer_scales
from raygeo.geometry.curvature.spaces import spaces_of_weights
from raygeo.models.batches import Batch
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema
from raygeo.workload import Rows, Task, Workload

Positive = Annotated[float, Field(gt=0)]


def _is_off(asked: bool) -> bool:
    return not asked


class SharpnessSettings(Settings):
    """Which neighbourhoods the NLL is looked at in; an empty list leaves a measure out."""

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
    gradient_checkpointing: bool = Field(False, exclude_if=_is_off)
    """Take gradients with the graph of one layer and the logits of a few tokens at a time, at a third more time: for
    long texts and large students, with a ``batch_size`` of 1."""
    seed: int = 0
    """Seed of the noise, the same for all runs."""


class Sharpness(Workload):
    """The sharpness of every run, one task a run, rows for table ``sharpness``.

    ``measure`` is "sam" (one step), "ball" (several), "asam", "noise" or "layer noise"; ``radius`` is that measure's
    radius or standard deviation, ``value`` the rise of the NLL; of a mean over ``draws``, ``error`` is the standard
    error, ``low`` and ``high`` are the ends of Student's 95 % interval.
    Rises beyond what fp32 resolves of the NLL, about 1e-7 of it, are noise; a diverged neighbour gives infinity or
    NaN, which is kept as null.

    A task costs a gradient and a pass for each radius and step, and two passes for each sigma and draw.

    Args:
        settings: space, radii and sigmas.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
    """

    name = "sharpness"
    tables: ClassVar = {
        "sharpness": schema(
            """Rise of the curvature probe's NLL near each run, in nats a token. `measure` is sam, ball, asam, noise or
            layer noise; `radius` is its radius or standard deviation, `error` the standard error over pairs of `draws`,
            `low` and `high` the ends of Student's 95 % interval; `nll` is that of the run itself.""",
            "run, measure: text; radius, value, error, low, high: float; draws: int; nll: float; parameters, "
            "tokens: int",
        )
    }
    batch_settings: ClassVar = ("batch_size",)
    revision = 2

    def __init__(self, settings: SharpnessSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        space = self._touched() if self.settings.space == "delta" else self.settings.space
        probe = Probe.load(self.probe).key
        return [
            Task(self.key(self.settings, probe, space, run.name, run.key), 1.0, run, f"sharpness of {run.name}")
            for run in self.runs
            if space
        ]

    def setup(self) -> tuple[MixedWeights, list[Batch], list[str]]:
        """Load the base student, the probe's batches and the names of the weights that are moved."""
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32)
        batches = Probe.load(self.probe).batches(student.pad_id, self.settings.batch_size)
        touched, names = self._touched(), [name for name, _ in student.model.named_parameters()]
        [space] = spaces_of_weights(self.settings.space, names, touched).values()
        return student.weights, batches, space

    def compute(self, state: tuple[MixedWeights, list[Batch], list[str]], payload: Run) -> dict[str, Rows]:
        """Measure one run."""
        weights, batches, names = state
        with weights.mixed(payload.mixture()) as model:
            landscape = ModelLandscape(model, batches, names, by_layer=self.settings.gradient_checkpointing)
            common = {"run": payload.name, "parameters": len(landscape.weights), "tokens": landscape.tokens}
            return {"sharpness": [common | row for row in measure(landscape, self.settings)]}

    def _touched(self) -> list[str]:
        return sorted({name for run in self.runs for name in run.open() or ()})


def measure(landscape: Landscape, settings: SharpnessSettings) -> Iterator[dict[str, Any]]:
    """Every measure asked for of one landscape: rows without run, parameters and tokens.

    Raises:
        WorkloadError: the loss at the weights themselves is not finite.
    """
    start = landscape.loss(torch.zeros_like(landscape.weights))
    if not np.isfinite(start):
        raise WorkloadError(f"the probe's negative log-likelihood is {start}; the run diverged, leave it out.")

    def row(measure: str, radius: float, value: float, draws: int | None = None, **spread: float) -> dict[str, Any]:
        known = {"value": value, **spread}
        finite = {key: x if np.isfinite(x) else None for key, x in known.items()}
        return {"nll": start, "measure": measure, "radius": radius, "draws": draws} | finite

    for radius in settings.radii:
        one, several = ball(landscape, radius, settings.ascent_steps)
        yield row("sam", radius, one)
        yield row("ball", radius, several)
    for radius in settings.adaptive_radii:
        yield row("asam", radius, adaptive_ball(landscape, radius))
    ones, layers = torch.ones_like(landscape.weights), layer_scales(landscape)
    for name, sigmas, scales in (("noise", settings.sigmas, ones), ("layer noise", settings.relative_sigmas, layers)):
        for sigma in sigmas:
            found = average(landscape, sigma * scales, settings.draws, settings.seed)
            yield row(name, sigma, draws=settings.draws, **found._asdict())
