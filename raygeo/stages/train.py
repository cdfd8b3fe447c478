"""Stages 3 and 4: the base's log-probabilities where a loss needs them, and one trained run after the other."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from rich.markup import escape

from raygeo.errors import TrainingError
from raygeo.losses.base import FROM_BASE
from raygeo.plan import Plan, PlannedRun
from raygeo.rollouts.mismatched import mismatch
from raygeo.rollouts.reference import REFERENCE_STATES, ReferenceLogprobs, ReferenceStates, save_reference
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.stages.objectives import provide_objectives
from raygeo.stages.probes import provide_heldout
from raygeo.stages.rollouts import Rollouts, context_length
from raygeo.stages.search import is_settled, measure_run, start_search
from raygeo.stages.student import Student
from raygeo.store import AnyPath
from raygeo.students.run import Run
from raygeo.tables import BASE, to_arrow
from raygeo.tracking import Tracking, TrialLogger
from raygeo.training.inputs import RunInputs
from raygeo.training.order import step_count
from raygeo.training.overhead import Overhead
from raygeo.training.settings import RunSpec
from raygeo.training.sweep import run_sweep
from raygeo.training.worker import SNAPSHOTS

REFERENCE = "reference"
MISMATCHED = "mismatched"


def select_examples(context: Context, rollouts: Rollouts, specs: Sequence[RunSpec]) -> dict[str, int]:
    """Let every loss select its examples; how many each run has, by run name.

    What each loss saw, used and dropped goes to the table ``counts``.

    Raises:
        DataError: a loss finds nothing to learn from.
    """
    train = rollouts.train
    selections = {loss: loss.select(train) for loss in {spec.loss for spec in specs}}
    rows = [
        {"stage": spec.name, "name": name, "value": value}
        for spec in specs
        for name, value in selections[spec.loss].counts.items()
    ]
    key = content_key("selection", rollouts.key, [[spec.name, spec.loss.model_dump()] for spec in specs])
    context.store.write_unit(key, {"counts": rows})
    context.store.publish("counts", [rollouts.key, key])
    return {spec.name: len(selections[spec.loss].examples) for spec in specs}


@dataclass(frozen=True)
class References:
    """What the base says of the rollouts, in the precision of the runs that need it; None where no loss does."""

    logprobs: AnyPath | None = None
    states: AnyPath | None = None
    mismatched: AnyPath | None = None
    mismatched_logprobs: AnyPath | None = None


def provide_references(context: Context, student: Student, rollouts: Rollouts) -> References:
    """Compute, once a study, what its losses need of the base, so that no training worker holds it."""
    specs = context.study.plan.points()
    needs = {need for spec in specs for need in spec.loss.needs}
    if not needs & FROM_BASE:
        return References()
    [precision] = {spec.training.precision for spec in specs if spec.loss.needs & FROM_BASE}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    store = context.store
    logprobs = states = mismatched = mismatched_logprobs = None
    if "reference" in needs:
        logprobs = _reference_logprobs(context, student, rollouts.tokens, rollouts.tokens_key, dtype, publish=True)
    if "reference_logits" in needs:
        states = _reference_states(context, student, rollouts, dtype)
    if "mismatched" in needs:
        key = content_key("mismatched", rollouts.tokens_key)
        if not store.has_folder(MISMATCHED, key):
            folder = store.scratch()
            prompts = rollouts.train["prompt_id"].to_pylist()
            mismatch(RolloutTokens.open(rollouts.tokens), prompts, context_length(student.folder)).save(folder)
            store.save_folder(MISMATCHED, key, folder)
        mismatched = store.stored(MISMATCHED, key)
        mismatched_logprobs = _reference_logprobs(context, student, mismatched, key, dtype)
    return References(logprobs, states, mismatched, mismatched_logprobs)


def _reference_logprobs(
    context: Context, student: Student, tokens: AnyPath, tokens_key: str, dtype: torch.dtype, *, publish: bool = False
) -> AnyPath:
    store, settings = context.store, context.study.reference
    key = content_key("reference", tokens_key, student.key, settings, str(dtype))
    workload = ReferenceLogprobs(settings, student.folder, tokens, key, dtype)
    result = context.run(workload)
    if not store.has_folder(REFERENCE, key):
        folder = store.scratch()
        table = pa.concat_tables([store.read_unit("reference", unit) for unit in result.keys])
        save_reference(table, RolloutTokens.open(tokens), folder)
        store.save_folder(REFERENCE, key, folder)
    if publish:
        store.publish("reference", result.keys)
    return store.stored(REFERENCE, key)


def _reference_states(context: Context, student: Student, rollouts: Rollouts, dtype: torch.dtype) -> AnyPath:
    store, settings = context.store, context.study.reference
    key = content_key("reference-states", rollouts.tokens_key, student.key)
    workload = ReferenceStates(settings, student.folder, rollouts.tokens, key, store, dtype)
    context.run(workload)
    if not store.has_folder(REFERENCE_STATES, workload.folder_key):
        store.complete_folder(REFERENCE_STATES, workload.folder_key)
    return store.stored(REFERENCE_STATES, workload.folder_key)


def train_runs(
    context: Context, student: Student, rollouts: Rollouts, references: References, tracking: Tracking
) -> tuple[list[Run], list[PlannedRun]]:
    """Train every run the store lacks, and those the sweep chooses; publish ``runs`` and ``curves``.

    Returns the runs that finished, the base first, and all runs with what was chosen for them. A run that diverged,
    failed or was stopped early is a row with its reason; the others are not disturbed by it.

    Raises:
        TrainingError: no run finished.
    """
    store, plan = context.store, context.study.plan
    planned = plan.trials()
    examples = select_examples(context, rollouts, [run.spec for run in planned])
    keys = {run.name: run.spec.key(student.key, rollouts.key) for run in planned}
    specs = {keys[run.name]: run.spec for run in planned}
    missing = {key: spec for key, spec in specs.items() if not is_settled(store, key, plan.sweep.scheduler)}
    context.count(0, len(specs) - len(missing))
    steps = sum(_step_count(spec, examples[spec.name]) for spec in missing.values())
    params = {key: run_params(spec) for key, spec in missing.items()}
    search = measure = None
    if plan.open_entries():

        def meet(run: PlannedRun) -> None:
            planned.append(run)
            keys[run.name] = run.spec.key(student.key, rollouts.key)
            params[keys[run.name]] = run_params(run.spec)

        objectives = provide_objectives(context, student, rollouts)
        search = start_search(context, student, rollouts, objectives, meet)
        measure = partial(measure_run, objectives, store)
        steps += _expected_steps(plan, rollouts)
    failures: dict[str, str] = {}
    if missing or (search is not None and search.has_next()):
        inputs = RunInputs(
            rollouts=rollouts.key,
            student=student.folder,
            student_key=student.key,
            tokens=rollouts.tokens,
            pad_id=rollouts.pad_id,
            reference=references.logprobs,
            reference_states=references.states,
            mismatched=references.mismatched,
            mismatched_reference=references.mismatched_logprobs,
            heldout=provide_heldout(context, student, rollouts),
        )
        before = store.finished(("runs", "curves"))
        context.pool.close()  # its CPUs are the workers' now
        overhead = Overhead()
        with context.progress.bar("training steps", steps) as bar:
            failures = run_sweep(
                missing,
                inputs,
                store,
                content_key(sorted(missing), search is not None),
                [TrialLogger(tracking, params, bar, context.progress.say), overhead],
                scheduler=plan.sweep.scheduler,
                search=search,
                examples=plan.points(),
                measure=measure,
            )
        if told := overhead.describe():
            context.progress.say(f"  {told}")
        context.count(len(set(keys.values()) & store.finished(("runs", "curves")) - before), 0)
    if search is not None:
        select_examples(context, rollouts, [run.spec for run in planned])
    runs = _publish(context, student, [(run.name, keys[run.name], run.spec) for run in planned], failures, tracking)
    if not runs:
        reasons = "; ".join(
            f"{row['run']}: {row['reason']}" for row in store.table("runs").to_pylist() if row["reason"]
        )
        raise TrainingError(f"no run finished, so there is nothing to compare. {reasons}")
    return [Run(BASE, content_key(student.key, BASE), None), *runs], planned


def _step_count(spec: RunSpec, examples: int) -> int:
    training = spec.training
    return step_count(examples, training.batch_size, training.steps, training.epochs)


def _expected_steps(plan: Plan, rollouts: Rollouts) -> int:
    """How many steps the runs that a search chooses take, if their entries come up equally often."""
    total = 0
    for index in plan.open_entries():
        runs = plan.runs_of(index, {place: domain.at(0.0) for place, domain in plan.searched(index).items()})
        examples = len(runs[0].spec.loss.select(rollouts.train).examples)
        total += plan.sweep.samples * sum(_step_count(run.spec, examples) for run in runs)
    return total


def run_params(spec: RunSpec) -> dict[str, Any]:
    """The parameters shown for a run in MLflow: few, flat, named so that its pages, which sort them, begin with the
    three a reader asks for: loss, lr, seed; ``setting.*`` are the loss's options, ``training.*`` the rest.
    """
    training = spec.training
    rest = {
        "init_seed": training.init_seed,
        "method": "full" if training.lora is None else f"lora-r{training.lora.r}",
        "batch_size": training.batch_size,
        "steps": training.steps or f"{training.epochs or 1} epochs",
        "schedule": training.schedule,
        "precision": training.precision,
        "zero_stage": training.zero_stage,
    }
    return (
        {"loss": spec.loss.type, "lr": training.lr, "seed": training.seed}
        | {f"setting.{name}": value for name, value in spec.loss.model_dump().items() if name != "type"}
        | {f"training.{name}": value for name, value in rest.items()}
    )


def _publish(
    context: Context,
    student: Student,
    names: list[tuple[str, str, RunSpec]],
    failures: dict[str, str],
    tracking: Tracking,
) -> list[Run]:
    """Gather the tables of all runs under the names this study gives them."""
    store = context.store
    rows: list[dict[str, Any]] = []
    curves: list[pa.Table] = []
    runs = []
    base_id = tracking.child(f"{student.key}:base", BASE, {"loss": "none", "lr": 0.0, "seed": 0})
    tracking.end(base_id)
    finished = store.finished(("runs", "curves"))
    for name, key, spec in names:
        child = tracking.child(key, name, run_params(spec))
        if key not in finished:
            reason = failures.get(key, "no result was stored").strip().splitlines()[-1]
            rows.append(
                {"run": name, "loss": spec.loss.type, "lr": spec.training.lr, "seed": spec.training.seed,
                 "init_seed": spec.training.init_seed, "status": "failed", "reason": reason, "key": key,
                 "params": json.dumps({"loss": spec.loss.model_dump(), "training": spec.training.model_dump()}),
                 "mlflow_run_id": child}
            )  # fmt: skip
            context.progress.say(f"  [red]{name} failed[/red]: {escape(reason)}")
            tracking.tags(child, {"status": "failed", "reason": reason})
            tracking.end(child, failed=True)
            continue
        row = store.read_unit("runs", key).to_pylist()[0] | {"run": name, "mlflow_run_id": child}
        if row["status"] == "finished":
            row["delta"] = store.path("deltas", key) if store.is_local else f"{store.location}/deltas/{key}"
            kept = store.stored(SNAPSHOTS, key) if store.has_folder(SNAPSHOTS, key) else None
            runs.append(Run(name, content_key(key, name), store.stored("deltas", key), kept))
        else:
            context.progress.say(f"  [yellow]{name} {row['status']}[/yellow]: {escape(row['reason'])}")
        curve = store.read_unit("curves", key)
        curves.append(curve.set_column(0, "run", pa.array([name] * curve.num_rows, pa.string())))
        tracking.curves(child, curve.to_pylist())
        tracking.tags(child, {"status": row["status"], "reason": row["reason"] or ""})
        tracking.end(child, failed=row["status"] != "finished")
        rows.append(row)
    key = content_key("published-runs", [[name, unit] for name, unit, _ in names], failures)
    store.write_unit(key, {"runs": to_arrow("runs", rows), "curves": pa.concat_tables(curves) if curves else []})
    store.publish("runs", [key])
    store.publish("curves", [key])
    return runs
