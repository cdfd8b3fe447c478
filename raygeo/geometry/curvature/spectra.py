"""Hessian (and Gauss-Newton) spectra of every run, of one scalar in one space, and the curvature along every delta."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raygeo.geometry.curvature.lanczos import Extremes, extreme_eigenvalues, lanczos_quadrature, rademacher
from raygeo.geometry.curvature.operators import GGN, Hessian, Operator
from raygeo.geometry.probes import Probe
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload

Part = Literal["spectrum", "directions"]


class CurvatureSettings(Settings):
    """What is computed of the curvature of the probe's token-mean NLL, and how finely."""

    parameters: Literal["delta", "all"] = "delta"
    """The space: merged weights that any run's delta touches, or all weights. The same for all runs."""
    ggn: bool = False
    """Also the generalised Gauss-Newton matrix, the positive semi-definite part of the Hessian."""
    top_k: int = Field(5, ge=1)
    """Number of largest eigenvalues."""
    max_steps: int = Field(40, ge=1)
    """Most Lanczos steps for the eigenvalues, one product each; 15 to 25 usually do."""
    tolerance: float = Field(1e-2, gt=0)
    """Largest residual of an eigenvalue, relative to it."""
    slq_probes: int = Field(4, ge=2)
    """Random vectors for trace and density; errors fall with the square root of their number."""
    slq_steps: int = Field(8, ge=1)
    """Lanczos steps for each random vector, one product each; more of them resolve the density further."""
    density_points: int = Field(256, ge=2)
    """Points of the density's grid."""
    density_width: float = Field(0.01, gt=0)
    """Standard deviation of the density's smoothing, relative to the range of the spectrum."""
    batch_size: int = Field(8, ge=1)
    """Texts in one graph; has no effect on the numbers beyond rounding."""
    keep_graphs: bool = True
    """Keep the graphs of all batches between products: a third faster, memory grows with the probe."""
    seed: int = 0
    """Seed of the random vectors, the same for all runs."""


@dataclass
class _State:
    model: nn.Module
    weights: MixedWeights
    parameters: list[str]
    batches: list[Batch]


class Curvature(Workload):
    """Two tasks a run: its spectrum, and the curvature along the deltas of all runs.

    The space is that of merged weights (the union over runs of the parameters their deltas touch), never LoRA factors,
    whose curvature depends on how a delta is factored. ``error`` is the Ritz residual of an eigenvalue and the standard
    error between random vectors of the trace and density; rows of ``quantity`` "ritz" hold nodes (``x``) and weights
    (``value``) of the quadrature, ``index`` being the random vector. The curvature along d is ``d' H d / d' d``, in
    rows "directional" named after d's run.

    Args:
        settings: space, operators and effort.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
    """

    name = "curvature"
    tables = ("curvature",)

    def __init__(self, settings: CurvatureSettings, runs: Sequence[Run], base: AnyPath, probe: AnyPath):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe

    def tasks(self) -> list[Task]:
        """Spectra first, the longest tasks; a new run leaves their keys alone unless its delta widens the space."""
        probe = Probe.load(self.probe)
        space = self._touched() if self.settings.parameters == "delta" else "all"
        shared = content_key(self.settings, probe.key, space)
        directions = [[run.name, run.key] for run in self._directions()]
        operators = 1 + self.settings.ggn
        spectrum = self.settings.max_steps + self.settings.slq_probes * self.settings.slq_steps
        tasks = [
            Task(
                content_key(self.name, "spectrum", shared, run.name, run.key),
                float(operators * spectrum * probe.tokens),
                ("spectrum", run),
                f"spectrum of {run.name}",
            )
            for run in self.runs
        ]
        if directions:
            tasks += [
                Task(
                    content_key(self.name, "directions", shared, run.name, run.key, directions),
                    float(operators * len(directions) * probe.tokens),
                    ("directions", run),
                    f"curvature of {run.name} along {len(directions)} deltas",
                )
                for run in self.runs
            ]
        return tasks

    def setup(self) -> _State:
        """Load the base student and the probe's batches."""
        model, tokenizer = load_student(self.base, device=default_device())
        touched = self._touched()
        parameters = touched if self.settings.parameters == "delta" else [name for name, _ in model.named_parameters()]
        batches = Probe.load(self.probe).batches(tokenizer.pad_token_id, self.settings.batch_size)
        return _State(model, MixedWeights(model, touched), parameters, batches)

    def compute(self, state: _State, payload: tuple[Part, Run]) -> dict[str, Rows]:
        """Compute one task at its run's weights, then put the base back."""
        part, run = payload
        operators: list[type[Operator]] = [Hessian, GGN] if self.settings.ggn else [Hessian]
        rows: Rows = []
        with state.weights.mixed(run.mixture()) as model:
            for kind in operators:
                operator = kind(model, state.batches, state.parameters, keep_graphs=self.settings.keep_graphs)
                if part == "directions":
                    found = self._along_deltas(operator)
                else:
                    found = _spectrum(operator, self.settings)
                    if kind is Hessian:
                        found += [
                            {"operator": None, "quantity": "nll", "value": operator.nll},
                            {"operator": None, "quantity": "gradient_norm", "value": float(operator.gradient().norm())},
                        ]
                common = {
                    "run": run.name,
                    "space": "weights",
                    "operator": operator.name,
                    "parameters": operator.n,
                    "tokens": operator.tokens,
                }
                rows += [common | row for row in found]
        return {"curvature": rows}

    def _directions(self) -> list[Run]:
        return [run for run in self.runs if run.delta is not None]

    def _touched(self) -> list[str]:
        return sorted({name for run in self._directions() for name in run.open() or ()})

    def _along_deltas(self, operator: Operator) -> Rows:
        runs = self._directions()
        columns = [
            operator.flatten({name: entry.dense() for name, entry in (run.open() or {}).items()}) for run in runs
        ]
        directions = torch.stack([column / column.norm() for column in columns], 1)
        values = (directions * operator.matmat(directions)).sum(0)
        return [
            {"quantity": "directional", "name": run.name, "value": float(value)}
            for run, value in zip(runs, values, strict=True)
        ]


def _spectrum(operator: Operator, settings: CurvatureSettings) -> Rows:
    generator = torch.Generator().manual_seed(settings.seed)
    start, probes = (
        rademacher(operator.n, k, generator, dtype=operator.dtype, device=operator.device)
        for k in (1, settings.slq_probes)
    )
    extremes = extreme_eigenvalues(
        operator.matmat, start, settings.top_k, max_steps=settings.max_steps, tolerance=settings.tolerance
    )
    spectrum = lanczos_quadrature(operator.matmat, probes, settings.slq_steps, extremes)
    trace, trace_error = spectrum.trace()
    rows: Rows = [
        {"quantity": "eigenvalue", "index": i, "value": float(value), "error": float(residual)}
        for i, (value, residual) in enumerate(zip(extremes.values, extremes.residuals, strict=True))
    ]
    rows.append({"quantity": "min_eigenvalue", "value": extremes.minimum, "error": extremes.minimum_residual})
    rows.append({"quantity": "trace", "value": float(trace), "error": float(trace_error)})
    for index, (nodes, weights) in enumerate(zip(spectrum.nodes, spectrum.weights, strict=True)):
        rows += [
            {"quantity": "ritz", "index": index, "x": float(x), "value": float(w)}
            for x, w in zip(nodes, weights, strict=True)
        ]
    grid, width = _grid(extremes, settings)
    rows += [
        {"quantity": "density", "index": i, "x": float(x), "value": float(value), "error": float(error)}
        for i, (x, value, error) in enumerate(zip(grid, *spectrum.density(grid, width), strict=True))
    ]
    return rows


def _grid(extremes: Extremes, settings: CurvatureSettings) -> tuple[np.ndarray, float]:
    """Abscissas four smoothing widths beyond the extreme eigenvalues, and the width."""
    low, high = extremes.minimum, float(extremes.values[0])
    width = settings.density_width * max(high - low, 1e-30)
    return np.linspace(low - 4 * width, high + 4 * width, settings.density_points), width
