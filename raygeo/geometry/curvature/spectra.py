"""Spectra of the Hessian (and Gauss-Newton matrix) of one scalar at every run, in several spaces, and along deltas."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor, nn

from raygeo.geometry.curvature.draws import named_generator, rademacher
from raygeo.geometry.curvature.journal import Journals, journaled
from raygeo.geometry.curvature.lanczos import MatMat, extreme_eigenvalues
from raygeo.geometry.curvature.operators import GGN, Hessian, Operator
from raygeo.geometry.curvature.quadrature import Spectrum, gauss_quadrature
from raygeo.geometry.curvature.shares import balanced_shares
from raygeo.geometry.curvature.spaces import SPAN, Space, spaces_of_weights
from raygeo.geometry.curvature.span import Span, expand, span
from raygeo.geometry.curvature.trace import hutch_plus_plus
from raygeo.geometry.probes import Probe, nll
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.checkpoint import Checkpoint
from raygeo.students.delta import Delta
from raygeo.students.encoding import Batch
from raygeo.students.factors import factored
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.tables import LORA
from raygeo.workload import Rows, Task, Workload

_OPERATORS: dict[str, type[Operator]] = {kind.name: kind for kind in (Hessian, GGN)}


class CurvatureSettings(Settings):
    """What is computed of the curvature of the probe's token-mean NLL, where, and how finely."""

    spaces: tuple[Space, ...] = Field(("delta", "span"), min_length=1)
    """``delta``: merged weights that any run's delta touches; ``all``: all weights; ``attention``: merged q, k, v, o;
    ``blocks``: each transformer block by itself; ``lora``: the factors A and B of a LoRA run, a space that depends on
    how its delta is factored and compares with no other; ``span``: the span of all deltas, where the loss along every
    path is predicted. Figures and summaries show the first."""
    ggn: bool = False
    """Also the generalised Gauss-Newton matrix, the positive semi-definite part of the Hessian."""
    top_k: int = Field(5, ge=1)
    """Number of largest eigenvalues."""
    bottom_k: int = Field(1, ge=1)
    """Number of smallest eigenvalues."""
    max_steps: int = Field(40, ge=1)
    """Most Lanczos steps for the eigenvalues, one product with ``block_size`` vectors each; 15 to 25 usually do."""
    tolerance: float = Field(1e-2, gt=0)
    """Largest residual of an eigenvalue, relative to it."""
    slq_probes: int = Field(4, ge=2)
    """Random vectors for the density; its errors fall with the square root of their number."""
    slq_steps: int = Field(8, ge=1)
    """Lanczos steps for each random vector, one product each; more of them resolve the density further."""
    trace_probes: int = Field(8, ge=2)
    """Random vectors for the trace outside the Krylov space of the eigenvalues, one product each."""
    block_size: int = Field(1, ge=1)
    """Vectors multiplied together: the block that eigenvalues are sought from, which finds one repeated as often as
    that; the random vectors of one task; products in the span. Without ``keep_graphs`` they share their graphs."""
    path_points: int = Field(11, ge=3)
    """Evenly spaced points of every path, both ends included, where the loss is predicted in the span and measured."""
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


Term = Callable[[], AbstractContextManager[Operator]]
Gather = Callable[[Operator, Sequence[Term]], AbstractContextManager[Any]]
"""Makes one operator, as a context, of a term in this process and of recipes of terms for other processes."""

Part = Literal["extremes", "density", "span", "path"]


@dataclass(frozen=True)
class Job:
    """One task: ``part`` of the curvature of ``operator`` at ``run`` in the space ``label`` of kind ``space``.

    ``probes`` number the random vectors of a part of the density; ``end`` is the other end of a path.
    """

    part: Part
    run: Run
    space: Space
    label: str
    operator: str | None
    probes: tuple[int, ...] = ()
    end: Run | None = None
    key: str = ""


@dataclass
class _State:
    model: nn.Module
    weights: MixedWeights
    batches: list[Batch]
    basis: Span | None = None


class Curvature(Workload):
    """Spectra of every run in every space, the curvature along all deltas, and paths predicted from it.

    The tasks of one run, operator and space are independent, so that actors share them:

    * its extreme eigenvalues (``eigenvalue``, ``min_eigenvalue``; ``error`` is the Ritz residual), the NLL and the norm
      of its gradient there, and how much of a delta lies among the top eigenvectors: ``overlap`` of the delta ``name``,
      |V'd|^2 / |d|^2 with ``x`` = k/n, which a random direction has in the mean. At the base that is every delta, at a
      run its own, each restricted to the space. With them goes the trace, by Hutch++ over the Krylov basis that found
      the eigenvalues, ``error`` being the standard error between random vectors;
    * its density, ``block_size`` random vectors a task: rows "ritz" hold nodes (``x``) and weights (``value``) of the
      quadrature, ``index`` being the random vector. ``conclude`` makes "density" of them, ``error`` being the standard
      error between random vectors.

    On the Hessian of a student of 0.15 M weights (505 tokens, trace 690) one random vector has a standard deviation of
    208 without a basis, 120 outside the 5 top eigenvectors, 122 outside a random sketch of 8 (16 further products) and
    85 outside the Krylov basis of 25 steps, which is why the trace is taken there. The density's random vectors are not
    deflated, so that its tasks wait for no eigenvectors.

    In the span of all deltas the whole matrix is taken at every run: its eigenvalues and trace; along each delta d,
    ``directional`` d'Hd / d'd, named after d's run; and in table ``expansions`` the loss to second order about the run
    (``at``) of every path that it is an end of, and about the base of all paths. Tasks of their own measure the loss of
    each path (``at`` is null).

    Products of an interrupted task are read from its journal, if there are ``journals``. Where ``gather`` is given and
    several processes fit for every task, each holds a share of the probe's batches and adds its term to every product.

    Args:
        settings: spaces, operators and effort.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
        journals: where tasks keep their products until they are done.
        gather: how the terms of one operator in several processes become one operator.
    """

    name = "curvature"
    tables = ("curvature", "expansions")

    def __init__(
        self,
        settings: CurvatureSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        journals: Journals | None = None,
        gather: Gather | None = None,
    ):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.journals = journals
        self.gather = gather
        self.processes = 1

    def widen(self, processes: int) -> bool:
        """Divide every operator among so many processes, if there is a way to gather its terms."""
        self.processes = processes if self.gather is not None else 1
        return self.processes > 1

    def tasks(self) -> list[Task]:
        """Spaces in the order asked for; a new run leaves the keys of others' spectra alone unless it widens "delta".

        What the base's eigenvectors and the span are compared with is all deltas, so these change with them.
        """
        probe, touched = Probe.load(self.probe), self._touched()
        names = Checkpoint(self.base).names()
        jobs: list[tuple[Job, float]] = []
        for space in self.settings.spaces:
            if space == "span":
                jobs += self._span_jobs()
            elif space == "lora":
                for run in self._directions():
                    if run.open().low_rank:  # type: ignore[union-attr]
                        jobs += self._spectrum_jobs(run, space, LORA)
            else:
                for label in spaces_of_weights(space, names, touched):
                    for run in self.runs:
                        jobs += self._spectrum_jobs(run, space, label)
        tasks = []
        for job, products in jobs:
            job = replace(job, key=self._key(job, probe.key, touched))
            tasks.append(Task(job.key, products * probe.tokens, job, _describe(job)))
        return tasks

    def setup(self) -> _State:
        """Load the base student and the probe's batches."""
        model, tokenizer = load_student(self.base, device=default_device())
        batches = Probe.load(self.probe).batches(tokenizer.pad_token_id, self.settings.batch_size)
        return _State(model, MixedWeights(model, self._touched()), batches)

    def compute(self, state: _State, payload: Job) -> dict[str, Rows]:
        """Compute one task at its run's weights, then put the base back."""
        job = payload
        if job.part == "path":
            return {"expansions": self._measured(state, job)}
        with self._operator(state, job) as operator:
            matmat: MatMat = operator.matmat
            if self.journals is not None:
                matmat = journaled(matmat, self.journals(job.key))
            common = {
                "run": job.run.name,
                "space": job.label,
                "operator": job.operator,
                "parameters": operator.n,
                "tokens": operator.tokens,
            }
            if job.part == "span":
                rows, expansions = self._expanded(state, job, operator, matmat)
                return {"curvature": [common | row for row in rows], "expansions": expansions}
            if job.part == "extremes":
                found = self._extremes(job, operator, matmat)
            else:
                found = self._ritz(job, operator, matmat)
        return {"curvature": [common | row for row in found]}

    @contextmanager
    def term(self, state: _State, job: Job, index: int) -> Iterator[Operator]:
        """Share ``index`` of the operator of a job: the term of its batches, which are padded as in one process."""
        assert job.operator is not None
        batches = state.batches
        shares = balanced_shares([batch.input_ids.numel() for batch in batches], self._shares(state))
        with self._at(state, job) as parameters:
            yield _OPERATORS[job.operator](
                state.model,
                [batches[i] for i in shares[index]],
                parameters,
                keep_graphs=self.settings.keep_graphs,
                tokens=sum(batch.tokens for batch in batches),
            )

    def settle(self, task: Task) -> None:
        """Delete the task's journal."""
        if self.journals is not None:
            self.journals(task.key).clear()

    def conclude(self, tables: Mapping[str, pa.Table]) -> dict[str, Rows]:
        """The density of every run, operator and space, from four smoothing widths below to four above its spectrum."""
        found: defaultdict[tuple, defaultdict[str, Rows]] = defaultdict(lambda: defaultdict(list))
        for row in tables["curvature"].to_pylist():
            found[row["run"], row["space"], row["operator"]][row["quantity"]].append(row)
        rows: Rows = []
        for (run, space, operator), parts in found.items():
            ritz = parts["ritz"]
            if not ritz:
                continue
            common = {"run": run, "space": space, "operator": operator}
            common |= {column: ritz[0][column] for column in ("parameters", "tokens")}
            nodes, weights = defaultdict(list), defaultdict(list)
            for row in ritz:
                nodes[row["index"]].append(row["x"])
                weights[row["index"]].append(row["value"])
            spectrum = Spectrum([np.array(x) for x in nodes.values()], [np.array(w) for w in weights.values()])
            ends = [row["value"] for name in ("eigenvalue", "min_eigenvalue") for row in parts[name]]
            ends += [x for xs in nodes.values() for x in xs]
            width = self.settings.density_width * max(max(ends) - min(ends), 1e-30)
            grid = np.linspace(min(ends) - 4 * width, max(ends) + 4 * width, self.settings.density_points)
            rows += [
                common | {"quantity": "density", "index": i, "x": float(x), "value": float(y), "error": float(error)}
                for i, (x, y, error) in enumerate(zip(grid, *spectrum.density(grid, width), strict=True))
            ]
        return {"curvature": rows} if rows else {}

    # -- tasks ----------------------------------------------------------------------------------------------------

    def _spectrum_jobs(self, run: Run, space: Space, label: str) -> list[tuple[Job, float]]:
        """The tasks of one run in one space, with the single products that each takes."""
        settings = self.settings
        jobs: list[tuple[Job, float]] = []
        for operator in self._operators():
            job = Job("extremes", run, space, label, operator)
            jobs.append((job, settings.max_steps * settings.block_size + settings.trace_probes))
            for first in range(0, settings.slq_probes, settings.block_size):
                probes = tuple(range(first, min(first + settings.block_size, settings.slq_probes)))
                jobs.append((replace(job, part="density", probes=probes), settings.slq_steps * len(probes)))
        return jobs

    def _span_jobs(self) -> list[tuple[Job, float]]:
        count = len(self._directions())
        if not count:
            return []
        jobs = [
            (Job("span", run, "span", SPAN, operator), float(count))
            for run in self.runs
            for operator in self._operators()
        ]
        return jobs + [
            (Job("path", a, "span", SPAN, None, end=b), self.settings.path_points / 4)
            for a, b in combinations(self._ends(), 2)
        ]

    def _key(self, job: Job, probe: str, touched: list[str]) -> str:
        """Content key of a job: exactly what its rows depend on."""
        settings = self.settings
        means = {
            "extremes": (
                "top_k",
                "bottom_k",
                "max_steps",
                "tolerance",
                "block_size",
                "trace_probes",
                "keep_graphs",
                "seed",
            ),
            "density": ("slq_steps", "keep_graphs", "seed"),
            "span": ("path_points", "block_size", "keep_graphs"),
            "path": ("path_points",),
        }[job.part]
        chosen = {name: getattr(settings, name) for name in ("batch_size", *means)}
        compared: object = job.probes
        if job.part == "span" or (job.part == "extremes" and job.run.delta is None):
            compared = [[run.name, run.key] for run in self.runs]
        elif job.end is not None:
            compared = [job.end.name, job.end.key]
        space = touched if job.space == "delta" or job.part == "span" else job.label
        where = [job.run.name, job.run.key, job.operator, space, probe]
        return content_key(self.name, job.part, chosen, where, compared)

    def _operators(self) -> list[str]:
        return list(_OPERATORS) if self.settings.ggn else [Hessian.name]

    def _directions(self) -> list[Run]:
        return [run for run in self.runs if run.delta is not None]

    def _deltas(self) -> list[Delta]:
        return [delta for run in self._directions() if (delta := run.open()) is not None]

    def _ends(self) -> list[Run]:
        """The ends of paths, the base first."""
        return sorted(self.runs, key=lambda run: run.delta is not None)

    def _touched(self) -> list[str]:
        return sorted({name for delta in self._deltas() for name in delta})

    # -- computation ----------------------------------------------------------------------------------------------

    @contextmanager
    def _operator(self, state: _State, job: Job) -> Iterator[Operator]:
        """The operator of a job, in as many processes as there are shares."""
        with self.term(state, job, 0) as own:
            count = self._shares(state)
            if count == 1 or self.gather is None:
                yield own
            else:
                with self.gather(own, [partial(_elsewhere, self, job, i) for i in range(1, count)]) as whole:
                    yield whole

    def _shares(self, state: _State) -> int:
        return min(self.processes, len(state.batches))

    @contextmanager
    def _at(self, state: _State, job: Job) -> Iterator[list[str]]:
        """The model at the job's run, and the names of the parameters of its space."""
        if job.space == "lora":
            delta = job.run.open()
            assert delta is not None
            with factored(state.model, delta) as names:
                yield names
        else:
            names = [name for name, _ in state.model.named_parameters()]
            touched = self._touched()
            with state.weights.mixed(job.run.mixture()):
                yield touched if job.space == "span" else spaces_of_weights(job.space, names, touched)[job.label]

    def _extremes(self, job: Job, operator: Operator, matmat: MatMat) -> Rows:
        settings = self.settings
        start = _signs(operator, "lanczos", settings.seed, range(settings.block_size))
        found = extreme_eigenvalues(
            matmat,
            start,
            settings.top_k,
            bottom=settings.bottom_k,
            max_steps=settings.max_steps,
            tolerance=settings.tolerance,
        )
        rows: Rows = [
            {"quantity": quantity, "index": i, "value": float(value), "error": float(residual)}
            for quantity, values, residuals in (
                ("eigenvalue", found.top, found.top_residuals),
                ("min_eigenvalue", found.bottom, found.bottom_residuals),
            )
            for i, (value, residual) in enumerate(zip(values, residuals, strict=True))
        ]
        probes = _signs(operator, "trace", settings.seed, range(settings.trace_probes))
        trace, error = hutch_plus_plus(matmat, found.basis, found.basis_trace, probes)
        rows.append({"quantity": "trace", "value": trace, "error": error})
        for run in [] if job.space == "lora" else self._directions() if job.run.delta is None else [job.run]:
            delta = run.open()
            assert delta is not None
            direction = operator.flatten({name: delta[name].dense() for name in delta if name in operator.parameters})
            energy = float(direction.double().square().sum())
            if energy > 0:
                inside = float((found.vectors.T @ direction).double().square().sum()) / energy
                share = found.vectors.shape[1] / operator.n
                index = found.vectors.shape[1]
                rows.append({"quantity": "overlap", "name": run.name, "index": index, "x": share, "value": inside})
        if job.operator == Hessian.name:
            rows += [
                {"operator": None, "quantity": "nll", "value": operator.nll},
                {"operator": None, "quantity": "gradient_norm", "value": float(operator.gradient().norm())},
            ]
        return rows

    def _ritz(self, job: Job, operator: Operator, matmat: MatMat) -> Rows:
        probes = _signs(operator, "density", self.settings.seed, job.probes)
        nodes, weights = gauss_quadrature(matmat, probes, self.settings.slq_steps)
        return [
            {"quantity": "ritz", "index": index, "x": float(x), "value": float(w)}
            for index, row in zip(job.probes, weights, strict=True)
            for x, w in zip(nodes, row, strict=True)
        ]

    def _expanded(self, state: _State, job: Job, operator: Operator, matmat: MatMat) -> tuple[Rows, Rows]:
        if state.basis is None:
            state.basis = span(self._deltas())
        basis, runs = state.basis, self._directions()
        points = {run: basis.coordinates[:, i] for i, run in enumerate(runs)}
        origin = np.zeros(basis.dimension)
        around = expand(operator, matmat, basis, points.get(job.run, origin), self.settings.block_size)
        values = np.linalg.eigvalsh(around.hessian)[::-1]
        common = {"parameters": basis.dimension}
        rows: Rows = [common | {"quantity": "eigenvalue", "index": i, "value": float(v)} for i, v in enumerate(values)]
        rows.append(common | {"quantity": "trace", "value": float(values.sum())})
        for run, norm in zip(runs, basis.norms, strict=True):
            along = float(points[run] @ around.hessian @ points[run] / norm**2)
            rows.append(common | {"quantity": "directional", "name": run.name, "value": along})
        alphas = np.linspace(0, 1, self.settings.path_points)
        expansions: Rows = []
        for a, b in combinations(self._ends(), 2):
            if job.run in (a, b) or job.run.delta is None:
                path = np.outer(1 - alphas, points.get(a, origin)) + np.outer(alphas, points.get(b, origin))
                expansions += [
                    {"run_a": a.name, "run_b": b.name, "at": job.run.name, "operator": job.operator}
                    | {"alpha": float(alpha), "loss": float(loss), "tokens": operator.tokens}
                    for alpha, loss in zip(alphas, around.at(path), strict=True)
                ]
        return rows, expansions

    def _measured(self, state: _State, job: Job) -> Rows:
        assert job.end is not None
        rows: Rows = []
        tokens = sum(batch.tokens for batch in state.batches)
        for alpha in np.linspace(0, 1, self.settings.path_points).tolist():
            with state.weights.mixed([*job.run.mixture(1 - alpha), *job.end.mixture(alpha)]) as model:
                loss = nll(model, state.batches)
            rows.append({"run_a": job.run.name, "run_b": job.end.name, "alpha": alpha, "loss": loss, "tokens": tokens})
        return rows


@contextmanager
def _elsewhere(curvature: Curvature, job: Job, index: int) -> Iterator[Operator]:
    """A term of a job's operator in a process that holds nothing yet."""
    with curvature.term(curvature.setup(), job, index) as operator:
        yield operator


def _signs(operator: Operator, purpose: str, seed: int, indices: Sequence[int]) -> Tensor:
    """Rademacher vectors [n, len(indices)], each from a stream of its own."""
    columns = [
        rademacher(operator.n, 1, named_generator(purpose, seed, i), dtype=operator.dtype, device=operator.device)
        for i in indices
    ]
    return (
        torch.cat(columns, 1) if columns else torch.zeros(operator.n, 0, dtype=operator.dtype, device=operator.device)
    )


def _describe(job: Job) -> str:
    if job.end is not None:
        return f"loss from {job.run.name} to {job.end.name}"
    what = {"extremes": "extreme eigenvalues", "span": "Hessian in the span"}.get(job.part, job.part)
    if job.probes:
        what += f" ({', '.join(map(str, job.probes))})"
    return f"{what} of {job.run.name} ({job.operator}, {job.label})"
