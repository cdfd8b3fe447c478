"""Stages 3 and 4: the base's log-probabilities where a loss needs them, and one trained run after the other."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.markup import escape

from raygeo.data.mismatched import REVISION as MISMATCH
from raygeo.data.mismatched import save_mismatched
from raygeo.data.reference import REFERENCE_STATES, ReferenceLogprobs, ReferenceStates, save_reference
from raygeo.data.teacher import BATCH_ROWS, TEACHER_TOP, TOP_COLUMNS, TeacherTop, save_teacher_top
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import TrainingError
from raygeo.losses.base import FROM_BASE, Need
from raygeo.models.loading import Loading, context_length, read_config
from raygeo.models.run import Run
from raygeo.paths import without_credentials
from raygeo.pipeline.context import StudyContext, reason
from raygeo.pipeline.objectives import provide_objectives
from raygeo.pipeline.plan import Plan, PlannedRun
from raygeo.pipeline.probes import provide_heldout
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.search import is_settled, measure_run, start_search
from raygeo.pipeline.student import KIND, Student
from raygeo.records import FINISHED, RunRecord
from raygeo.settings import content_key, unit_key
from raygeo.store import AnyPath, Store, outdated_units
from raygeo.tables import BASE, SCHEMAS, to_arrow
from raygeo.tracking import Tracking, TrialLogger, status_of
from raygeo.training.checkpoints import Checkpoints
from raygeo.training.inputs import RunInputs
from raygeo.training.order import step_count
from raygeo.training.selections import keep_selection
from raygeo.training.settings import RunSpec
from raygeo.training.sweep import run_sweep
from raygeo.training.worker import DELTAS, SNAPSHOTS, TABLES, delta_folder, run_record

REFERENCE = "reference"
MISMATCHED = "mismatched"


def select_examples(context: StudyContext, rollouts: Rollouts, specs: Sequence[RunSpec]) -> dict[str, int]:
    """Let every loss select its examples; how many each run has, by run name.

    What each loss saw, used and dropped goes to the table ``counts``, the examples to the store for the workers.

    Raises:
        DataError: a loss finds nothing to learn from.
    """
    train = rollouts.train
    selections = {loss: loss.select(train) for loss in {spec.loss for spec in specs}}
    for loss, selection in selections.items():
        keep_selection(context.store, loss, rollouts.key, selection.examples)
    rows = [
        {"stage": spec.name, "name": name, "value": value}
        for spec in specs
        for name, value in selections[spec.loss].counts.items()
    ]
    context.store.publish_rows("counts", pa.concat_tables([rollouts.counts, to_arrow("counts", rows)]))
    return {spec.name: len(selections[spec.loss].examples) for spec in specs}


@dataclass(frozen=True)
class References:
    """What the base says of the rollouts, in the precision and with the attention of the runs that need it, and what a
    ``teacher`` does; None where no loss needs it.

    ``failed`` holds, for each need that could not be met, the reason; the runs whose losses have it cannot be trained.
    """

    logprobs: AnyPath | None = None
    states: AnyPath | None = None
    mismatched: AnyPath | None = None
    mismatched_logprobs: AnyPath | None = None
    teacher: AnyPath | None = None
    failed: Mapping[Need, str] = field(default_factory=dict)

    def lacking(self, needs: frozenset[Need]) -> str | None:
        """Why a run with these needs cannot be trained, or None."""
        return next((self.failed[need] for need in sorted(needs) if need in self.failed), None)


def provide_references(context: StudyContext, student: Student, rollouts: Rollouts) -> References:
    """Compute, once a study, what its losses need of the base; for whole logits, runs with adapters ask it themselves.
    Ask the teacher, too, or lay out what it left with the rollouts.

    What fails is left out, and with it the runs whose losses need it.

    Raises:
        FullStoreError: the store's disk is full.
    """
    specs = context.study.plan.points()
    needs = {need for spec in specs for need in spec.needs}
    held = {(spec.training.precision, spec.training.attn_implementation) for spec in specs if spec.needs & FROM_BASE}
    [(precision, attention)] = held or {("fp32", None)}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    loading = _loading(context, attention)
    found: dict[str, AnyPath] = {}
    failed: dict[Need, str] = {}

    @contextmanager
    def meeting(need: Need, what: str) -> Iterator[None]:
        with context.surviving(what):
            yield
        if what in context.missing:
            failed[need] = f"it needs {what}, which could not be made: {reason(context.missing[what])}"

    if "reference" in needs:
        with meeting("reference", "the base's log-probabilities"):
            found["logprobs"] = _reference_logprobs(
                context, student, rollouts.tokens, rollouts.tokens_key, dtype, loading, publish=True
            )
    if "reference_logits" in needs:
        with meeting("reference_logits", "the base's final states"):
            found["states"] = _reference_states(context, student, rollouts, dtype, loading)
    if "mismatched" in needs:
        with meeting("mismatched", "the base's log-probabilities of mismatched completions"):
            mismatched, key = _mismatched(context.store, student, rollouts)
            found["mismatched"] = mismatched
            found["mismatched_logprobs"] = _reference_logprobs(context, student, mismatched, key, dtype, loading)
    if "teacher" in needs:
        with meeting("teacher", "the teacher's likeliest tokens"):
            found["teacher"] = _teacher_top(context, student, rollouts)
    return References(**found, failed=failed)


def _teacher_top(context: StudyContext, student: Student, rollouts: Rollouts) -> AnyPath:
    """The folder of the likeliest tokens: of the model that the study names, or of what came with the rollouts."""
    store, settings = context.store, context.study.teacher
    width = read_config(student.folder).get_text_config().vocab_size
    if settings is not None and student.taught_by is not None:
        source, loading = content_key("teacher-top", rollouts.tokens_key, rollouts.teacher, width), Loading.of(settings)
        model = store.stored(KIND, student.taught_by)
        workload = TeacherTop(
            context.study.reference, model, rollouts.tokens, source, store, settings.top_k, width, loading
        )
        keys, key = context.run(workload).keys, workload.folder_key
        if not store.has_folder(TEACHER_TOP, key):
            store.complete_folder(TEACHER_TOP, key)
        parts = pa.concat_tables(store.read_units("teacher_top", keys))
        tail, count = pc.sum(parts["tail"]).as_py(), pc.sum(parts["tokens"]).as_py()
        context.progress.say(
            f"  teacher: its {settings.top_k} likeliest tokens hold {1 - tail / max(1, count):.2%} of its law"
        )
        return store.stored(TEACHER_TOP, key)
    key = content_key("teacher-top", rollouts.key, rollouts.tokens_key, width)
    if not store.has_folder(TEACHER_TOP, key):
        batches = store.row_batches("rollouts", rollouts.key, TOP_COLUMNS, {"split": "train"}, BATCH_ROWS)
        tokens = RolloutTokens.open(rollouts.tokens)
        with store.making(TEACHER_TOP, key) as folder:
            tail = save_teacher_top(batches, tokens, width, folder)
        context.progress.say(
            f"  teacher: the tokens that came with the rollouts hold {1 - tail / tokens.completion_offsets[-1]:.2%} of "
            "its law"
        )
    return store.stored(TEACHER_TOP, key)


def _mismatched(store: Store, student: Student, rollouts: Rollouts) -> tuple[AnyPath, str]:
    """Tokens of every prompt with a completion of another one, and their key."""
    key = unit_key(MISMATCH, "mismatched", rollouts.tokens_key)
    if not store.has_folder(MISMATCHED, key):
        prompts = rollouts.train["prompt_id"].to_pylist()
        limit = context_length(read_config(student.folder))
        with store.making(MISMATCHED, key) as folder:
            save_mismatched(RolloutTokens.open(rollouts.tokens), prompts, limit, folder)
    return store.stored(MISMATCHED, key), key


def _reference_logprobs(
    context: StudyContext,
    student: Student,
    tokens: AnyPath,
    tokens_key: str,
    dtype: torch.dtype,
    loading: Loading,
    *,
    publish: bool = False,
) -> AnyPath:
    store, settings = context.store, context.study.reference
    source = content_key("reference", tokens_key, student.key, settings, str(dtype), *loading.keyed)
    result = context.run(ReferenceLogprobs(settings, student.folder, tokens, source, dtype, loading))
    key = unit_key(ReferenceLogprobs.revision, source)
    if not store.has_folder(REFERENCE, key):
        units = (store.read_unit("reference", unit) for unit in result.keys)
        with store.making(REFERENCE, key) as folder:
            save_reference(units, RolloutTokens.open(tokens), folder)
    if publish:
        store.publish_large("reference", result.keys, {ReferenceLogprobs.name: ReferenceLogprobs.revision})
    return store.stored(REFERENCE, key)


def _loading(context: StudyContext, attention: str | None) -> Loading:
    """How the base is held while it is asked; in what dtype and with what ``attention``, the runs that use its answers
    say.
    """
    held = Loading.of(context.study.student)
    return held.model_copy(update={"dtype": "fp32", "attn_implementation": attention})


def _reference_states(
    context: StudyContext, student: Student, rollouts: Rollouts, dtype: torch.dtype, loading: Loading
) -> AnyPath:
    store, settings = context.store, context.study.reference
    key = content_key("reference-states", rollouts.tokens_key, student.key, *loading.keyed)
    workload = ReferenceStates(settings, student.folder, rollouts.tokens, key, store, dtype, loading)
    context.run(workload)
    if not store.has_folder(REFERENCE_STATES, workload.folder_key):
        store.complete_folder(REFERENCE_STATES, workload.folder_key)
    return store.stored(REFERENCE_STATES, workload.folder_key)


def train_runs(
    context: StudyContext, student: Student, rollouts: Rollouts, references: References, tracking: Tracking
) -> tuple[list[Run], list[PlannedRun]]:
    """Train every run the store lacks, and those the sweep chooses; publish ``runs`` and ``training_curves``.

    Returns the runs that finished, the base first, and all runs with what was chosen for them. A run that diverged,
    failed or was stopped early is a row with its reason; the others are not disturbed by it. If no run finished, there
    is the base alone, and the training is left out.

    Raises:
        KeyboardInterrupt: the process was asked to stop; it says what is finished.
    """
    store, plan = context.store, context.study.plan
    planned = plan.trials()
    examples = select_examples(context, rollouts, [run.spec for run in planned])
    keys = {run.name: run.spec.key(student.key, rollouts.key, rollouts.teacher) for run in planned}
    specs = {keys[run.name]: run.spec for run in planned}
    missing = {key: spec for key, spec in specs.items() if not is_settled(store, key, plan.sweep.scheduler)}
    failures = {key: why for key, spec in missing.items() if (why := references.lacking(spec.needs))}
    missing = {key: spec for key, spec in missing.items() if key not in failures}
    before = store.finished(TABLES)

    def say_outdated(wanted: Iterable[str]) -> None:
        if outdated := outdated_units(before, (key for key in wanted if key not in before)):
            context.progress.say(f"  training: {outdated}")

    say_outdated(missing)
    context.count(0, len(specs) - len(missing) - len(failures))
    steps = sum(_step_count(spec, examples[spec.name]) for spec in missing.values())
    params = {key: run_params(spec) for key, spec in missing.items()}
    search = measure = None
    if plan.open_entries():
        for index in plan.open_entries():
            spec = _examples_of(plan, index)[0].spec
            if why := references.lacking(spec.needs):
                raise TrainingError(f"runs {index} ({spec.loss.type}) cannot be searched: {why}")

        def add_planned(run: PlannedRun) -> None:
            planned.append(run)
            keys[run.name] = run.spec.key(student.key, rollouts.key, rollouts.teacher)
            params[keys[run.name]] = run_params(run.spec)
            say_outdated([keys[run.name]])

        objectives = provide_objectives(context, student, rollouts)
        search = start_search(context, student, rollouts, objectives, add_planned)
        measure = partial(measure_run, objectives, store)
        steps += _expected_steps(plan, rollouts)
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
            teacher=references.teacher,
            teacher_key=rollouts.teacher,
        )
        context.pool.close()  # its CPUs are the workers' now
        with context.progress.bar("training steps", steps) as bar:
            try:
                failures |= run_sweep(
                    missing,
                    inputs,
                    store,
                    content_key(sorted(missing), search is not None),
                    [TrialLogger(tracking, params, bar, context.progress.say)],
                    scheduler=plan.sweep.scheduler,
                    search=search,
                    examples=plan.points(),
                    measure=measure,
                    study=context.study.name,
                    say=context.progress.say,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_standing(store, keys)) from None
        context.count(len(set(keys.values()) & store.finished(TABLES) - before), 0)
    if search is not None:
        select_examples(context, rollouts, [run.spec for run in planned])
    runs = _publish(context, student, [(run.name, keys[run.name], run.spec) for run in planned], failures, tracking)
    if not runs:
        reasons = "; ".join(
            f"{row['run']}: {row['reason']}" for row in store.table("runs").to_pylist() if row["reason"]
        )
        context.leave_out("training", TrainingError(f"no run finished, so there is nothing to compare. {reasons}"))
    loading = Loading.of(context.study.student)
    return [Run(BASE, content_key(student.key, BASE, *loading.keyed), None, loading=loading), *runs], planned


def _standing(store: Store, keys: Mapping[str, str]) -> str:
    """How far the runs with these content keys, by name, have come."""
    finished = store.finished(TABLES)
    begun = {name: Checkpoints(store, key).last_step() for name, key in keys.items() if key not in finished}
    kept = [f"{name} has a checkpoint after step {step}" for name, step in begun.items() if step is not None]
    return "; ".join([f"{len(keys) - len(begun)} of {len(keys)} runs are trained", *kept])


def _step_count(spec: RunSpec, examples: int) -> int:
    training = spec.training
    return step_count(examples, training.batch_size, training.steps, training.epochs)


def _expected_steps(plan: Plan, rollouts: Rollouts) -> int:
    """How many steps the runs that a search chooses take, if their entries come up equally often."""
    total = 0
    for index in plan.open_entries():
        runs = _examples_of(plan, index)
        examples = len(runs[0].spec.loss.select(rollouts.train).examples)
        total += plan.sweep.samples * sum(_step_count(run.spec, examples) for run in runs)
    return total


def _examples_of(plan: Plan, index: int) -> list[PlannedRun]:
    """Runs of one of the configurations that a search may choose in an entry."""
    return plan.runs_of(index, {place: domain.at(0.0) for place, domain in plan.searched(index).items()})


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
        "lr_scheduler_type": training.lr_scheduler_type,
        "precision": training.precision,
        "zero_stage": training.zero_stage,
    }
    return (
        {"loss": spec.loss.type, "lr": training.lr, "seed": training.seed}
        | {f"setting.{name}": value for name, value in spec.loss.model_dump().items() if name != "type"}
        | {f"training.{name}": value for name, value in rest.items()}
    )


def _publish(
    context: StudyContext,
    student: Student,
    names: list[tuple[str, str, RunSpec]],
    failures: dict[str, str],
    tracking: Tracking,
) -> list[Run]:
    """Publish the records and curves of all runs under the names this study gives them; return those that finished."""
    store, loading = context.store, Loading.of(context.study.student)
    records: list[RunRecord] = []
    curves: list[pa.Table] = []
    runs = []
    base = tracking.child(f"{student.key}:base", BASE, {"loss": "none", "lr": 0.0, "seed": 0})
    tracking.end(base, "FINISHED")
    for name, key, spec in names:
        tracking.child(key, name, run_params(spec))
    tracking.flush()  # so that the table of runs has MLflow's ids
    ended = store.finished(TABLES)
    for name, key, spec in names:
        child = tracking.run_id(key)
        trained = key in ended and not (key in failures and not store.has_folder(DELTAS, key))
        if trained:
            [row] = store.read_unit("runs", key).to_pylist()
            record = replace(RunRecord.of(row), run=name, mlflow_run_id=child)
            curves.append(_renamed(store.read_unit("training_curves", key), name))
            tracking.curves(key)
        else:
            why = failures.get(key, "no result was stored")
            record = run_record(spec, key, "failed", student=student.key, reason=why, mlflow_run_id=child)
            context.leave_out(f"run {name}", TrainingError(why))
        if record.status == FINISHED:
            record = replace(record, delta=delta_folder(store, key))  # the store may have been moved
            snapshots = store.stored(SNAPSHOTS, key) if store.has_folder(SNAPSHOTS, key) else None
            measured = content_key(key, name, *loading.keyed)
            runs.append(Run(name, measured, store.stored(DELTAS, key), snapshots, loading=loading))
        elif trained:
            context.progress.say(f"  [yellow]{name} {record.status}[/yellow]: {escape(record.reason or '')}")
        tracking.tags(key, {"status": record.status, "reason": without_credentials(record.reason or "")})
        tracking.end(key, status_of(record.status))
        records.append(record)
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records]))
    store.publish_rows("training_curves", pa.concat_tables([SCHEMAS["training_curves"].empty_table(), *curves]))
    return runs


def _renamed(curves: pa.Table, run: str) -> pa.Table:
    """The curves of a run under the name this study gives it."""
    return curves.set_column(
        curves.schema.get_field_index("run"), "run", pa.array([run] * len(curves), pa.large_string())
    )
