"""Critical sharpness: how far the probe's NLL stays below its start along the gradient and along each run's delta."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from raygeo.data.probes import Probe, nll
from raygeo.errors import WorkloadError
from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.critical import Critical, critical_step, gradient, length_of, random_direction
from raygeo.models.batches import Batch
from raygeo.models.delta import Entry
from raygeo.models.mix import Mixture
from raygeo.models.resident import Measured, ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import BASE, schema
from raygeo.workload import Rows, Task, Workload

GRADIENT, DELTA = "gradient", "delta"
OWN, RANDOM = "own", "random"
RESOLUTION = 1e-6
"""Changes of the NLL that are no larger than this share of it are rounding: fp32 resolves about that."""


def _is_off(asked: bool) -> bool:
    return not asked


class CriticalSettings(Settings):
    """How the step at which the NLL first rises is looked for."""

    first_step: float = Field(1e-3, gt=0)
    """Length of the first step, as a share of the norm of the base weights that runs change; it should be short enough
    for the NLL to be about quadratic over it."""
    tolerance: float = Field(0.1, gt=0, le=1)
    """Relative width of the interval that the critical step is found to lie in."""
    doublings: int = Field(10, ge=1)
    """How often the step is doubled or halved at most until the NLL has been seen to fall and to rise."""
    draws: int = Field(2, ge=0)
    """Random directions of equal norm beside each direction."""
    batch_size: int = Field(16, ge=1)
    """Texts in one pass; has no effect on the numbers beyond rounding."""
    gradient_checkpointing: bool = Field(False, exclude_if=_is_off)
    """Take gradients with the graph of one layer and the logits of a few tokens at a time, at a third more time: for
    long texts and large students, with a ``batch_size`` of 1."""
    seed: int = 0
    """Seed of the random directions."""


@dataclass(frozen=True)
class _State:
    student: ResidentStudent
    batches: list[Batch]
    nll: Measured[float]
    weights: float


class CriticalSharpness(Workload):
    """Critical sharpness at the base and at every run, along the gradient there, and at the base along every run's
    delta, each beside random directions; one task a run, rows for table ``critical_sharpness``.

    Directions are of the weights that any run's delta touches. A task costs one gradient, and 7 to 12 passes for
    every direction and draw (``critical.critical_step``), in fp32.

    Args:
        settings: how steps are looked for.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
    """

    name = "critical-sharpness"
    revision = 2
    tables: ClassVar = {
        "critical_sharpness": schema(
            """Where the curvature probe's NLL first rises above its start. `at` is where the line starts (base or the
            run), `direction` gradient (against it) or delta (the run's); `kind` own, or random: of equal norm in every
            parameter, in whichever sense goes down. `sharpness` is 2 / `step`, between `sharpness_low` and
            `sharpness_high` as far as the step was bracketed; null unless `outcome` is found. `quadratic` is what
            slope and curvature say it is; `curvature` is that along the unit direction, over the first step that
            resolves it, `distance` the step times the direction's `norm`, `dip` the lowest rise of the NLL seen,
            `passes` their number.""",
            "run, at, direction, kind: text; draw: int; outcome: text; step, sharpness, sharpness_low, sharpness_high, "
            "quadratic, curvature, slope, distance, norm, dip, nll: float; passes, parameters, tokens: int",
        )
    }
    batch_settings: ClassVar = ("batch_size",)

    def __init__(self, settings: CriticalSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """One task a run; that of the base has one direction less."""
        touched, probe = self._touched(), Probe.load(self.probe).key
        return [
            Task(
                self.key(self.settings, probe, touched, run.name, run.key),
                1.0 if run.delta is None else 2.0,
                run,
                f"critical sharpness of {run.name}",
            )
            for run in self.runs
            if touched
        ]

    def setup(self) -> _State:
        """Load the base student and the probe's batches."""
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32)
        batches = Probe.load(self.probe).batches(student.pad_id, self.settings.batch_size)
        own = dict(student.model.named_parameters())
        squares = (long.norm(own[name].detach().flatten()) ** 2 for name in self._touched())
        return _State(student, batches, Measured(student, lambda model: nll(model, batches)), sum(squares) ** 0.5)

    def compute(self, state: _State, payload: Run) -> dict[str, Rows]:
        """Measure one run.

        Raises:
            WorkloadError: the loss at the weights themselves is not finite.
        """
        with state.student.weights.mixed(payload.mixture()) as model:
            checkpointing = self.settings.gradient_checkpointing
            slope = gradient(model, state.batches, self._touched(), by_layer=checkpointing)
        down = {"at": BASE if payload.delta is None else "run", "direction": GRADIENT}
        rows = list(self._along(state, payload, payload.mixture(), slope, -1.0, down))
        del slope
        if (delta := payload.open()) is not None:
            rows += self._along(state, payload, [], delta, 1.0, {"at": BASE, "direction": DELTA})
        return {"critical_sharpness": rows}

    def _along(
        self,
        state: _State,
        run: Run,
        start: Mixture,
        direction: Mapping[str, Entry],
        sign: float,
        where: dict[str, str],
    ) -> Iterator[dict[str, Any]]:
        """Rows of a direction, taken ``sign`` times, and of the random ones beside it."""
        at_start, norm = state.nll.at(start), length_of(direction)
        if not np.isfinite(at_start):
            raise WorkloadError(f"the probe's negative log-likelihood is {at_start}; the run diverged, leave it out.")
        if norm == 0:
            return
        device = next(state.student.model.parameters()).device
        common = {"run": run.name, **where, "nll": at_start, "norm": norm}
        common |= {"parameters": self._parameters(state), "tokens": sum(batch.tokens for batch in state.batches)}
        for draw in range(-1, self.settings.draws):
            own = draw < 0
            name = ("critical", self.settings.seed, draw, where["direction"])
            line = direction if own else random_direction(direction, device, *name)

            def rise(step: float, line: Mapping[str, Entry] = line) -> float:
                return state.nll.at([*start, (sign * step, line)]) - at_start

            found = critical_step(
                rise,
                self.settings.first_step * state.weights / norm,
                resolution=RESOLUTION * at_start,
                tolerance=self.settings.tolerance,
                doublings=self.settings.doublings,
                descend=not own,
            )
            yield common | {"kind": OWN if own else RANDOM, "draw": max(draw, 0)} | _columns(found, norm)

    def _parameters(self, state: _State) -> int:
        own = dict(state.student.model.named_parameters())
        return sum(own[name].numel() for name in self._touched())

    def _touched(self) -> list[str]:
        return sorted({name for run in self.runs for name in run.open() or ()})


def _columns(found: Critical, norm: float) -> dict[str, Any]:
    quadratic = found.curvature / -found.slope if found.slope < 0 else None
    row: dict[str, Any] = {"outcome": found.outcome, "step": found.step, "sharpness": found.sharpness}
    row |= {"sharpness_low": found.high and 2 / found.high, "sharpness_high": found.low and 2 / found.low}
    row |= {"quadratic": quadratic, "curvature": found.curvature / norm**2, "slope": found.slope / norm}
    row |= {"distance": None if found.step is None else found.step * norm, "dip": found.dip, "passes": found.passes}
    return {name: None if isinstance(x, float) and not np.isfinite(x) else x for name, x in row.items()}
