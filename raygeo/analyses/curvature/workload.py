"""What all tasks of curvature share: where it is taken, the operator there, and its products."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.pairs import Pairs, paired
from raygeo.data.probes import Probe
from raygeo.geometry.curvature.difference_operator import DifferenceHessian
from raygeo.geometry.curvature.draws import Layout, random_signs
from raygeo.geometry.curvature.journal import Journals, journaled
from raygeo.geometry.curvature.lanczos import MatMat
from raygeo.geometry.curvature.operators import GGN, Gather, Hessian, Operator
from raygeo.geometry.curvature.shares import balanced_shares
from raygeo.geometry.curvature.spaces import Space, spaces_of_weights
from raygeo.models.batches import Batch
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.factors import factored
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import LORA, schema
from raygeo.workload import Task, Workload

CURVATURE = schema(
    """`quantity` is eigenvalue, min_eigenvalue, trace, density, density_width (its smoothing), directional, overlap,
    nll or gradient_norm; product_error, of products by differences of gradients, relative, along the first eigenvector:
    against the exact product or, where `name` is step, between lengths of the step `x`; and what a density is made of:
    ritz and coarse ritz (nodes `x` and weights of random vector `index`), component (share of random vector `index`
    along the vector of the eigenvalue number `x` of quantity `name`). `name` is else the run of a direction, `x` a
    density's abscissa or the overlap of a random direction, `parameters` the dimension of `space`. `error` is an
    eigenvalue's residual, else a standard error between random vectors; `low` and `high` are the ends of the 95 %
    interval.""",
    "run, space, operator, quantity, name: text; index: int; x, value, error, low, high: float; parameters, "
    "tokens: int",
)
EXPANSIONS = schema(
    """The NLL of the path from a to b on the curvature probe: to second order about the run `at`, by the Hessian or the
    GGN, or, where `at` is null, measured.""",
    "run_a, run_b, at, operator: text; alpha, nll: float; tokens: int",
)

_OPERATORS: dict[str, type[Operator]] = {kind.name: kind for kind in (Hessian, GGN)}


@dataclass(frozen=True)
class Place:
    """Where curvature is taken: ``operator`` at ``run``, in the space ``label`` of kind ``space``.

    ``key`` is that of the task, ``vectors`` the numbers of its random vectors, where a task takes some of many.
    """

    run: Run
    space: Space
    label: str
    operator: str
    key: str = ""
    vectors: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.run.name} ({self.operator}, {self.label})"


@dataclass
class State:
    """The base student, and the probe's batches."""

    model: nn.Module
    weights: MixedWeights
    batches: list[Batch]


class CurvatureWorkload(Workload):
    """One kind of task of the analysis; ``affecting`` is the model of the settings that its numbers depend on.

    Products of an interrupted task are read from its journal, if there are ``journals``. Where ``gather`` is given and
    several processes fit for every task, each holds a share of the probe's batches and adds its term to every product.

    Args:
        settings: spaces, operators and effort.
        runs: the runs, the base (without delta) among them.
        base: folder of the base student.
        probe: probe file.
        journals: where tasks keep their products until they are done.
        gather: how the terms of one operator in several processes become one operator.
        chosen: the pairs whose paths are followed unless all are asked for; None where these are all.
    """

    affecting: ClassVar[type[Settings]]
    batch_settings: ClassVar = ("batch_size", "keep_graphs")

    def __init__(
        self,
        settings: CurvatureSettings,
        runs: Sequence[Run],
        base: AnyPath,
        probe: AnyPath,
        journals: Journals | None = None,
        gather: Gather | None = None,
        chosen: Pairs | None = None,
    ):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.journals = journals
        self.gather = gather
        self.chosen = None if settings.pairs == "all" else chosen
        self.processes = 1

    def smaller(self) -> dict[str, int] | None:
        """First no graph is kept: all of them together are as large, however the texts are batched."""
        if self.settings.keep_graphs:
            return self.batches | {"keep_graphs": False}
        halved = max(1, self.settings.batch_size // 2)
        return None if halved == self.settings.batch_size else self.batches | {"batch_size": halved}

    def set_parallelism(self, processes: int) -> bool:
        """Divide every operator among so many processes, if there is a way to gather its terms.

        One by differences of gradients is not divided: the step is chosen for the whole.
        """
        divisible = self.gather is not None and self.settings.product != "gradient_difference"
        self.processes = processes if divisible else 1
        return self.processes > 1

    def setup(self) -> State:
        """Load the base student and the probe's batches."""
        student = ResidentStudent.load(self.base, self.runs, dtype=torch.float32)
        batches = Probe.load(self.probe).batches(student.pad_id, self.settings.batch_size)
        return State(student.model, student.weights, batches)

    def on_stored(self, task: Task) -> None:
        """Delete the task's journal."""
        if self.journals is not None:
            self.journals(task.key).clear()

    @contextmanager
    def term(self, state: State, place: Place, index: int) -> Iterator[Operator]:
        """Share ``index`` of the operator at a place: the term of its batches, which are padded as in one process."""
        batches = state.batches
        shares = balanced_shares([batch.input_ids.numel() for batch in batches], self._shares(state))
        with self._at(state, place) as parameters:
            difference = self.settings.product == "gradient_difference"
            yield (DifferenceHessian if difference else _OPERATORS[place.operator])(
                state.model,
                [batches[i] for i in shares[index]],
                parameters,
                keep_graphs=self.settings.keep_graphs,
                by_layer=self.settings.product == "by_layer",
                tokens=sum(batch.tokens for batch in batches),
            )

    # -- for the kinds of tasks -----------------------------------------------------------------------------------

    @cached_property
    def touched(self) -> list[str]:
        """The parameters that any run's delta changes, sorted."""
        return sorted({name for run in self.directions for name in run.open() or ()})

    @property
    def directions(self) -> list[Run]:
        """The runs that have a delta."""
        return [run for run in self.runs if run.delta is not None]

    @property
    def paths(self) -> list[tuple[Run, Run]]:
        """The ends of every path, the base first."""
        ordered = sorted(self.runs, key=lambda run: run.delta is not None)
        return paired(ordered, self.chosen, lambda run: run.name)

    @property
    def operators(self) -> list[str]:
        """Names of the operators asked for."""
        return list(_OPERATORS) if self.settings.ggn else [Hessian.name]

    def places(self) -> list[Place]:
        """Every run and operator in every space of weights asked for, spaces in the order asked for."""
        names = Checkpoint(self.base).names()
        found: list[Place] = []
        for space in self.settings.spaces:
            runs = self.runs
            if space == "lora":
                labels, runs = [LORA], [run for run in self.directions if run.open().low_rank]  # type: ignore[union-attr]
            else:
                labels = list(spaces_of_weights(space, names, self.touched))
            found += [
                Place(run, space, label, operator) for label in labels for run in runs for operator in self.operators
            ]
        return found

    def affected(self) -> Settings:
        """The settings that the numbers of these tasks depend on."""
        return self.affecting(**{name: getattr(self.settings, name) for name in self.affecting.model_fields})

    def task(self, place: Place, what: str, products: float, probe: Probe, *compared: Any) -> Task:
        """The task at a place: what it is called, how many products it takes, and what else its rows depend on.

        A new run leaves the keys of others' tasks alone unless it widens "delta".
        """
        space = self.touched if place.space in ("delta", "span") else place.label
        where = [place.run.name, place.run.key, place.operator, space, probe.key]
        key = self.key(self.affected(), where, place.vectors, *compared)
        return Task(key, products * probe.tokens, replace(place, key=key), f"{what} of {place}")

    @contextmanager
    def operator(self, state: State, place: Place) -> Iterator[Operator]:
        """The operator at a place, in as many processes as there are shares; the base is put back in the end."""
        with self.term(state, place, 0) as own:
            count = self._shares(state)
            if count == 1 or self.gather is None:
                yield own
            else:
                with self.gather(own, [partial(_elsewhere, self, place, i) for i in range(1, count)]) as whole:
                    yield whole

    def kept(self, place: Place, operator: Operator) -> Callable[[MatMat], MatMat]:
        """A wrapper of products: with vectors where they are held, and kept by the task's journal if there is one."""
        journal = journaled(self.journals(place.key)) if self.journals is not None else _as_it_is
        device = operator.device
        return lambda matmat: journal(lambda vectors: matmat(vectors.to(device)).to(vectors.device))

    def random_signs(self, operator: Operator, purpose: str, indices: Sequence[int]) -> Tensor:
        """``draws.random_signs`` of the settings' seed, where vectors are held."""
        held = Layout(operator.n, operator.dtype, torch.device(self.settings.vectors_on or operator.device))
        return random_signs(held, purpose, indices, self.settings.seed)

    # -- within ---------------------------------------------------------------------------------------------------

    def _shares(self, state: State) -> int:
        return min(self.processes, len(state.batches))

    @contextmanager
    def _at(self, state: State, place: Place) -> Iterator[list[str]]:
        """The model at the place's run, and the names of the parameters of its space."""
        if place.space == "lora":
            delta = place.run.open()
            assert delta is not None
            with factored(state.model, delta) as names:
                yield names
        else:
            names = [name for name, _ in state.model.named_parameters()]
            spaces = {place.label: self.touched}
            if place.space != "span":
                spaces = spaces_of_weights(place.space, names, self.touched)
            with state.weights.mixed(place.run.mixture()):
                yield spaces[place.label]


def columns(place: Place, operator: Operator) -> dict[str, Any]:
    """What all rows of table ``curvature`` say of a place."""
    return {
        "run": place.run.name,
        "space": place.label,
        "operator": place.operator,
        "parameters": operator.n,
        "tokens": operator.tokens,
    }


@contextmanager
def _elsewhere(workload: CurvatureWorkload, place: Place, index: int) -> Iterator[Operator]:
    """A term of the operator at a place in a process that holds nothing yet."""
    with workload.term(workload.setup(), place, index) as operator:
        yield operator


def _as_it_is(matmat: MatMat) -> MatMat:
    return matmat
