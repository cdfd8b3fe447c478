"""Stage 6: every analysis of the trained weights, fanned out over the pool."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from raygeo.cluster.settings import ActorSettings
from raygeo.cluster.sharded import ShardedOperator
from raygeo.config import GeometrySettings
from raygeo.errors import DataError
from raygeo.geometry.connectivity.curves import Curves
from raygeo.geometry.connectivity.layerwise import Layerwise
from raygeo.geometry.connectivity.paths import MatchedPaths, Paths
from raygeo.geometry.connectivity.planes import Planes
from raygeo.geometry.connectivity.soups import Soups
from raygeo.geometry.connectivity.wise import Wise
from raygeo.geometry.curvature.sharpness import Sharpness
from raygeo.geometry.curvature.spectra import Curvature
from raygeo.geometry.representation.cka import CKA
from raygeo.geometry.representation.drift import Drift
from raygeo.geometry.representation.layers import LayerCKA
from raygeo.geometry.representation.outputs import Outputs
from raygeo.geometry.weights.conditions import Condition
from raygeo.geometry.weights.norms import Norms
from raygeo.geometry.weights.off_principal import OffPrincipal
from raygeo.geometry.weights.similarity import Similarity
from raygeo.geometry.weights.subspaces import Subspaces
from raygeo.geometry.weights.trajectories import Trajectories
from raygeo.geometry.weights.yardsticks import Yardsticks
from raygeo.journal import StoreJournal
from raygeo.losses import AnyLoss, Loss
from raygeo.rollouts.grading import Grading
from raygeo.settings import content_key
from raygeo.stages.context import Context, Workbench
from raygeo.stages.evaluate import heldout_problems
from raygeo.stages.probes import provide_probes
from raygeo.stages.report import reference_run
from raygeo.stages.rollouts import Rollouts
from raygeo.stages.student import Student
from raygeo.store import AnyPath, Store
from raygeo.students.run import Run
from raygeo.training.coherence import Coherence
from raygeo.workload import Workload


@dataclass(frozen=True)
class Training:
    """The loss of every run by name, the unit key of the rollouts, and the folder of their tokens."""

    losses: Mapping[str, Loss]
    rollouts: str
    tokens: AnyPath


@dataclass(frozen=True)
class Material:
    """What analyses are made of.

    ``geometry`` says what is asked for; ``store`` holds the tables made so far; ``base`` is the folder of the base
    model; ``runs`` are the base and what was trained from it; ``reference`` names the run others are compared with;
    ``steps`` is the last step of every run whose training is known; ``make_probes`` gives probe files by name,
    ``solutions`` and ``curvature`` among them, or none; ``problems`` are prompts with gold answers, and ``grading``
    says how answers are judged. ``actors`` says what each process of a divided task takes. ``training`` is what runs
    learned from, where that is known.
    """

    geometry: GeometrySettings
    store: Store
    base: AnyPath
    runs: list[Run]
    reference: str
    steps: Mapping[str, int]
    make_probes: Callable[[], Mapping[str, AnyPath]]
    problems: list[tuple[str, str]]
    grading: Grading
    actors: ActorSettings
    training: Training | None = None

    @property
    def conditions(self) -> dict[str, Condition]:
        """How every run was trained, by name; where that is not known, each in a way of its own."""
        if self.training is None:
            return {run.name: Condition(run.name, run.name, 0, None) for run in self.runs}
        return {row["run"]: _condition(json.loads(row["params"])) for row in self.store.table("runs").to_pylist()}

    @cached_property
    def probes(self) -> Mapping[str, AnyPath]:
        """Probe files by name.

        Raises:
            DataError: there is nothing to make them of.
        """
        probes = self.make_probes()
        if not probes:
            raise DataError(
                "no held-out prompt has a correct solution, so there is nothing to measure likelihood and curvature "
                "on; hold out more prompts (rollouts.heldout) or sample more."
            )
        return probes

    @property
    def likelihood_probes(self) -> dict[str, AnyPath]:
        """The probes whose likelihood is followed between runs."""
        return {name: path for name, path in self.probes.items() if name != "curvature"}

    @property
    def barriers(self) -> dict[tuple[str, str], float]:
        """Lower ends of the intervals of straight-line barriers of the solutions, by pair, once paths are measured."""
        rows = self.store.table("barriers").to_pylist() if self.geometry.paths is not None else []
        return {(row["run_a"], row["run_b"]): row["chord_low"] for row in rows if row["probe"] == "solutions"}

    @property
    def seed_groups(self) -> dict[str, list[str]]:
        """Names of the runs that differ in nothing but seeds, by what they share; none where training is not known."""
        groups: dict[str, list[str]] = {}
        for row in self.store.table("runs").to_pylist() if self.training is not None else []:
            if row["run"] in {run.name for run in self.runs}:
                params = json.loads(row["params"])
                shared = {k: v for k, v in params["training"].items() if k not in ("seed", "init_seed")}
                groups.setdefault(content_key(params["loss"], shared), []).append(row["run"])
        return {f"seeds of {names[0]}": names for names in groups.values()}


@dataclass(frozen=True)
class Analysis:
    """A workload, and what it is made of besides its settings."""

    kind: type[Workload]
    arguments: Callable[[Material], tuple[Any, ...]]


ANALYSES: dict[str, Analysis] = {
    "norms": Analysis(Norms, lambda of: (of.runs, of.base)),
    "trajectories": Analysis(Trajectories, lambda of: (of.runs, of.base, of.steps, of.reference)),
    "similarity": Analysis(Similarity, lambda of: (of.runs, of.base)),
    "yardsticks": Analysis(Yardsticks, lambda of: (of.runs, of.base, of.conditions, of.reference)),
    "subspaces": Analysis(Subspaces, lambda of: (of.runs, of.base)),
    "off_principal": Analysis(OffPrincipal, lambda of: (of.runs, of.base)),
    "paths": Analysis(Paths, lambda of: (of.runs, of.base, of.likelihood_probes, of.problems, of.grading)),
    "matched_paths": Analysis(
        MatchedPaths, lambda of: (of.runs, of.base, of.likelihood_probes, of.problems, of.grading)
    ),
    "curves": Analysis(Curves, lambda of: (of.runs, of.base, of.probes["solutions"], of.barriers)),
    "layerwise": Analysis(Layerwise, lambda of: (of.runs, of.base, of.probes["solutions"], of.reference)),
    "soups": Analysis(
        Soups, lambda of: (of.runs, of.base, of.probes["solutions"], of.problems, of.grading, of.seed_groups)
    ),
    "wise": Analysis(Wise, lambda of: (of.runs, of.base, of.probes["solutions"], of.problems, of.grading)),
    "planes": Analysis(Planes, lambda of: (of.runs, of.base, of.probes["solutions"], of.reference)),
    "cka": Analysis(CKA, lambda of: (of.runs, of.base, of.probes["solutions"])),
    "layer_cka": Analysis(LayerCKA, lambda of: (of.runs, of.base, of.probes["solutions"], of.reference)),
    "drift": Analysis(Drift, lambda of: (of.runs, of.base, of.probes["solutions"])),
    "outputs": Analysis(Outputs, lambda of: (of.runs, of.base, of.probes["solutions"], of.reference)),
    "coherence": Analysis(Coherence, lambda of: _learned(of)),
    "curvature": Analysis(Curvature, lambda of: (of.runs, of.base, of.probes["curvature"], *_processes(of))),
    "sharpness": Analysis(Sharpness, lambda of: (of.runs, of.base, of.probes["curvature"])),
}
"""Every analysis by its field in ``GeometrySettings``, in the order they run: curves are trained where paths rise."""


def analyse_runs(context: Context, student: Student, rollouts: Rollouts, runs: list[Run]) -> None:
    """Publish the tables of all analyses the study asks for."""
    table = context.store.table("runs")
    material = Material(
        geometry=context.study.geometry,
        store=context.store,
        base=student.folder,
        runs=runs,
        reference=reference_run(context.study, table),
        steps={row["run"]: row["steps"] for row in table.to_pylist()},
        make_probes=lambda: provide_probes(context, student, rollouts),
        problems=[(problem.prompt, problem.gold) for problem in heldout_problems(rollouts)],
        grading=context.study.rollouts.grading,
        actors=context.study.actors,
        training=Training(_losses(table), rollouts.key, rollouts.tokens),
    )
    analyse(context, material)


def _learned(of: Material) -> tuple[Any, ...]:
    if of.training is None:
        raise DataError("how the models were trained is not known, so their losses' gradients cannot be compared.")
    return of.runs, of.base, of.training.losses, of.store, of.training.rollouts, of.training.tokens


def _processes(of: Material) -> tuple[Any, ...]:
    """Where products are kept until a spectrum is done, and how an operator is divided among processes."""
    return partial(StoreJournal, of.store), partial(ShardedOperator, settings=of.actors)


def _losses(runs: pa.Table) -> dict[str, Loss]:
    parse = TypeAdapter(AnyLoss).validate_python
    return {row["run"]: parse(json.loads(row["params"])["loss"]) for row in runs.to_pylist()}


def analyse(bench: Workbench, material: Material) -> None:
    """Publish the tables of all analyses that the material's settings ask for, and empty those of all others."""
    for name, analysis in ANALYSES.items():
        settings = getattr(material.geometry, name)
        if settings is not None:
            bench.publish(analysis.kind(settings, *analysis.arguments(material)))  # type: ignore[call-arg]
            continue
        for table in analysis.kind.tables:
            if bench.store.table(table).num_rows:
                bench.store.publish(table, [])
    if material.geometry.norms is not None:
        _fill_norms(bench.store)


def _condition(params: Mapping[str, Any]) -> Condition:
    """The condition of a run from its parameters, ``{"loss": ..., "training": ...}`` as in the table ``runs``."""
    training = dict(params["training"])
    seed, init_seed = training.pop("seed"), training.pop("init_seed")
    loss, settings = (json.dumps(part, sort_keys=True) for part in (params["loss"], training))
    return Condition(loss, settings, seed, None if training["lora"] is None else init_seed)


def _fill_norms(store: Store) -> None:
    """Write the global norms of the deltas into the table ``runs``."""
    norms = {row["run"]: row for row in store.table("deltas").to_pylist() if row["scope"] == "global"}
    runs = store.table("runs")
    for column, source in (("delta_norm", "norm"), ("relative_norm", "relative_norm")):
        values = [norms[run][source] if run in norms else np.nan for run in runs["run"].to_pylist()]
        array = pa.array(values, pa.float64(), from_pandas=True)
        runs = runs.set_column(runs.schema.get_field_index(column), column, array)
    key = content_key("runs-with-norms", runs["key"].to_pylist(), runs["run"].to_pylist(), runs["status"].to_pylist())
    store.write_unit(key, {"runs": runs})
    store.publish("runs", [key])
