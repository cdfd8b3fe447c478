"""What a study will ask of the cluster: checked as soon as it is connected, hours before the last stage asks."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from raygeo.cluster.nodes import are_several
from raygeo.cluster.preflight import check_fits, listed_resources
from raygeo.data.reference import REFERENCE_STATES
from raygeo.data.teacher import TEACHER_TOP
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import ClusterError
from raygeo.footprint.need import Texts
from raygeo.losses.base import Loss
from raygeo.models.loading import read_config
from raygeo.pipeline.budget.check import check_disk, check_memory
from raygeo.pipeline.budget.cluster import Cluster, cluster_connected
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.chains import chain_of
from raygeo.pipeline.config import HELDOUT, Study, study_yaml
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.foreseen import Learned
from raygeo.pipeline.problems import benchmark_problems
from raygeo.pipeline.published import KIND
from raygeo.pipeline.revisions import outdated_tables
from raygeo.pipeline.rollouts import TOKENS, Rollouts, heldout_problems
from raygeo.pipeline.search import is_settled
from raygeo.pipeline.standing import made_page
from raygeo.pipeline.student import Student
from raygeo.pipeline.train import REFERENCE
from raygeo.settings import split_key
from raygeo.store import Store
from raygeo.training.settings import RunSpec
from raygeo.training.sweep import run_shape

SETTLED = ("finished", "diverged", "stopped")
LONGEST = 100
"""Problems of a benchmark that are tokenised."""
SHORTEST = Texts(1, 2.0, 2)
"""Stands for texts of which nothing is known."""


def is_made(study: Study, store: Store) -> bool:
    """Whether all stages of this very study have ended, with the code as it is."""
    return made_page(store) == study_yaml(study) and not outdated_tables(store)


def check_demands(study: Study, store: Store, stages: tuple[str, ...]) -> None:
    """Refuse a study of which some stage, of those that are to run, asks for more than the living nodes can hold.

    What the store shows to be made is not asked for again, so a study trained on one cluster may be analysed on
    another.

    Raises:
        ClusterError: naming everything that does not fit.
    """
    if is_made(study, store):
        return
    refused = []
    for what, demand, count in _demands(study, store, stages):
        try:
            check_fits(what, demand, count)
        except ClusterError as error:
            refused.append(str(error))
    if refused:
        raise ClusterError("\n".join(refused))


def check_cores(study: Study, store: Store, stages: tuple[str, ...], cores: int) -> None:
    """As ``check_demands``, of one machine with so many ``cores`` alone and nothing else.

    Raises:
        ClusterError: naming everything that asks for more of them.
    """
    refused = [
        f"{what} asks for {count} x ({listed_resources(demand)})"
        for what, demand, count in _demands(study, store, stages)
        if count * demand.get("CPU", 0) > cores
    ]
    if refused:
        raise ClusterError(f"{'; '.join(refused)}, and this machine has {cores} CPUs.")


def check_engines(study: Study, store: Store, stages: tuple[str, ...]) -> None:
    """See that the engines that are still to write in ``stages`` can, as far as it is known here: servers, which are
    asked from here, and what is to be installed on this machine alone. One that has written rollouts is not asked: it
    may be that it need not write more, and be gone.

    Raises:
        RaygeoError: why one cannot.
    """
    lacking = set() if is_made(study, store) else _lacking(store, stages)
    sample, engines = study.rollouts.sample, []
    if sample is not None and "rollouts" in lacking and not store.units("rollouts"):
        engines.append(sample.engine)
    evaluated = "evaluate" in lacking and (study.answered.shifts or study.evaluation.monitor is not None)
    if evaluated or ("train" in lacking and _samples(study, store)):
        engines.append(study.evaluation.engine)
    for engine in engines:
        if engine.elsewhere or not are_several():
            engine.check_here()


def _samples(study: Study, store: Store) -> bool:
    """Whether a run that is still to be trained learns from what it writes itself."""
    ended = _settled(store)
    runs = (run for run in study.plan.trials() if _named(run.spec) not in ended)
    return any(stage.rounds is not None for run in runs for stage in run.stages)


def cluster_to_check(study: Study, say: Callable[[str], None]) -> Cluster | None:
    """What the study's memory is checked against, asked once while nothing runs; None, which is said, where that is
    not known.
    """
    cluster = cluster_connected(study)
    if cluster is None:
        say("  whether the study fits the memory is not checked: no GPU has answered, or Ray does not know the memory")
    return cluster


def check_student(study: Study, store: Store, stages: tuple[str, ...], cluster: Cluster) -> None:
    """Refuse a study whose student cannot be trained even on the shortest texts, before it has made any rollouts.

    Students that are made here, or whose configuration is not here yet, are left for later; only ``stages`` are looked
    at, and nothing that the store has.

    Raises:
        ClusterError: as ``check_memory``.
    """
    folder = Path(study.student.model).expanduser()
    if not (folder / "config.json").is_file() or made_page(store) == study_yaml(study):
        return
    texts = SHORTEST
    benchmarks = {benchmark.name: texts for benchmark in study.evaluation.benchmarks}
    facts = Facts(read_config(folder), texts, texts, texts, 1.0, benchmarks, (), _settled_trainings(study, store))
    check_memory(study, facts, cluster, lambda said: None, _lacking(store, stages) - {"geometry"})
    if "train" in stages:
        check_disk(study, facts, cluster, store.free_bytes(), lambda said: None, ("train",))


def check_rollouts(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    stages: tuple[str, ...],
    cluster: Cluster,
    learned: Mapping[Loss, Learned],
) -> None:
    """Refuse a study of which some stage after this is known not to fit, now that its rows are.

    Rows that no loss learns from, as they are truncated, do not count; nor does what the store has. ``learned`` says
    what losses learn from, as far as that is known.

    Raises:
        ClusterError: as ``check_memory``.
    """
    study, store = context.study, context.store
    lacking = _lacking(store, stages) - {"student", "rollouts"}
    if not lacking:
        return
    tokens = RolloutTokens.open(rollouts.tokens)
    lengths = tokens.lengths
    whole = lengths[~rollouts.train["truncated"].fill_null(False).to_numpy()]
    rows = Texts(len(lengths), float(np.mean(lengths)), int(np.max(lengths)))
    train = Texts(len(whole), float(np.mean(whole)), int(np.max(whole))) if len(whole) else SHORTEST
    asked = {HELDOUT: heldout_problems(rollouts)}
    asked |= {benchmark.name: benchmark_problems(study, benchmark) for benchmark in study.evaluation.benchmarks}
    trained_on = rollouts.train_prompts
    benchmarks = {
        name: _lengths(rollouts, left)
        for name, problems in asked.items()
        if (left := [problem.prompt for problem in problems if problem.prompt not in trained_on])
    }
    scheduler = study.plan.sweep.scheduler
    keys = {spec.name: spec.key(student.key, rollouts.key, rollouts.teacher) for spec in study.plan.points()}
    chains = [chain_of(context, student, rollouts, run) for run in study.plan.trials() if run.is_chain]
    keys |= {link.spec.name: link.key for chain in chains for link in chain.links}
    settled = frozenset(name for name, key in keys.items() if is_settled(store, key, scheduler))
    heldout = benchmarks.get(HELDOUT, SHORTEST)
    if not study.evaluation.heldout:
        benchmarks.pop(HELDOUT, None)

    def selected(loss: Loss) -> int | None:
        return learned[loss].longest if loss in learned else None

    share = float(tokens.completion_offsets[-1] / lengths.sum())
    facts = Facts(read_config(student.folder), rows, train, heldout, share, benchmarks, (), settled, selected)
    check_memory(study, facts, cluster, context.progress.say, lacking)
    if "train" in stages:
        check_disk(study, facts, cluster, store.free_bytes(), context.progress.say, lacking)


def _lengths(rollouts: Rollouts, prompts: list[str]) -> Texts:
    """Problems, and how long some of those that read longest are."""
    some = sorted(prompts, key=len)[-LONGEST:]
    lengths = [len(rollouts.renderer.prompt_ids(prompt)) for prompt in some]
    return Texts(len(prompts), float(np.mean(lengths)), max(lengths))


def _lacking(store: Store, stages: tuple[str, ...]) -> set[str]:
    """Those of the stages of which the store has nothing that a machine must have held before."""
    had = {
        "student": store.folders(KIND),
        "rollouts": store.folders(TOKENS),
        "reference": store.folders(REFERENCE) or store.folders(REFERENCE_STATES) or store.folders(TEACHER_TOP),
        "evaluate": store.units("answers"),
    }
    return {stage for stage in stages if not had.get(stage)}


def _settled(store: Store) -> set[tuple[str, str]]:
    """Names and revisions of the runs that the store's table of runs has and that need not be trained."""
    rows = store.table("runs").to_pylist()
    return {(row["run"], split_key(row["key"])[1]) for row in rows if row["status"] in SETTLED}


def _settled_trainings(study: Study, store: Store) -> frozenset[str]:
    """Names of trainings that the store shows to need no more: those in its table of runs, and those of runs in it."""
    ended = _settled(store)
    names = {spec.name for spec in study.plan.points() if _named(spec) in ended}
    whole = (run for run in study.plan.trials() if _named(run.spec) in ended)
    return frozenset(names | {spec.name for run in whole for spec in run.trainings})


def _named(spec: RunSpec) -> tuple[str, str]:
    return spec.name, ".".join(map(str, spec.revisions))


def _demands(study: Study, store: Store, stages: tuple[str, ...]) -> list[tuple[str, dict[str, float], int]]:
    """What is asked for, the resources of one process, and how many of them at once."""
    demands = []
    student = study.student
    made_here = student.model.startswith("builtin:") or student.from_run is not None
    if made_here and student.gpus > 0 and not store.folders("students"):
        demands.append(("making the student", {"GPU": student.gpus}, 1))  # it takes what CPUs there are
    if set(stages) - {"student", "train", "report"}:
        demands.append(("an actor (actors)", study.actors.demand, 1))
    if "train" in stages:
        settled = _settled_trainings(study, store)
        shapes = defaultdict(list)
        for spec in study.plan.points():
            if spec.name not in settled:
                shapes[run_shape(spec)].append(spec.name)
        for shape, (first, *others) in shapes.items():
            also = f" (and {len(others)} others)" if others else ""
            demands.append((f"run {first}{also}", shape.resources, shape.workers))
    return demands
