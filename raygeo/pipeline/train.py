"""Stages 3 and 4: the base's log-probabilities where a loss needs them, and one trained run after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from raygeo.errors import DataError, FullStoreError, TrainingError
from raygeo.losses.base import FROM_BASE, Loss, Need
from raygeo.models.loading import Loading, context_length, read_config
from raygeo.models.run import Run
from raygeo.paths import without_credentials
from raygeo.pipeline.chains import Chain, Link, chain_of, finished_record, join, link_rows
from raygeo.pipeline.context import StudyContext, reason
from raygeo.pipeline.objectives import provide_objectives
from raygeo.pipeline.plan import Plan, PlannedRun
from raygeo.pipeline.probes import provide_heldout
from raygeo.pipeline.published import KIND
from raygeo.pipeline.rollouts import ROUND_TABLES, Rollouts, provide_round
from raygeo.pipeline.search import is_settled, measure_run, start_search
from raygeo.pipeline.student import Student, provide_continued
from raygeo.pipeline.tracked_data import base_key, learned_from
from raygeo.records import FINISHED, RunRecord
from raygeo.search.loop import Search
from raygeo.settings import content_key, unit_key
from raygeo.store import AnyPath, Store, outdated_units
from raygeo.tables import BASE, SCHEMAS, to_arrow
from raygeo.tracking import Tracking, TrialLogger, status_of
from raygeo.tracking.pages import CONFIGURATION_TAG
from raygeo.training.checkpoints import Checkpoints
from raygeo.training.inputs import RunInputs
from raygeo.training.order import step_count
from raygeo.training.selections import keep_selection, open_selection
from raygeo.training.settings import RunSpec
from raygeo.training.sweep import run_sweep
from raygeo.training.worker import DELTAS, SNAPSHOTS, TABLES, delta_folder, run_record
from raygeo.training.workers import Measure

REFERENCE = "reference"
MISMATCHED = "mismatched"


def select_examples(
    context: StudyContext, rollouts: Rollouts, specs: Sequence[RunSpec], counted: Sequence[pa.Table] = ()
) -> dict[str, int]:
    """Let every loss select its examples; how many each run has, by run name.

    What each loss saw, used and dropped goes to the table ``counts``, with what else was ``counted``, the examples to
    the store for the workers.

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
    context.store.publish_rows("counts", pa.concat_tables([rollouts.counts, to_arrow("counts", rows), *counted]))
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


def provide_references(
    context: StudyContext, student: Student, rollouts: Rollouts, spec: RunSpec | None = None
) -> References:
    """Compute, once a study, what its losses need of the base; for whole logits, runs with adapters ask it themselves.
    Ask the teacher, too, or lay out what it left with the rollouts.

    With ``spec``, what the loss of this training needs of ``student``, which is what it refers to, and of ``rollouts``.

    What fails is left out, and with it the runs whose losses need it.

    Raises:
        FullStoreError: the store's disk is full.
    """
    specs = context.study.plan.referring() if spec is None else [spec]
    whose, of = "the base's", ""
    if spec is not None:
        whose, of = "the base's" if spec.reference == "base" else "the start's", f" for {spec.name}"
    needs = {need for spec in specs for need in spec.needs}
    held = {(spec.training.precision, spec.training.attn_implementation) for spec in specs if spec.needs & FROM_BASE}
    [(precision, attention)] = held or {("fp32", None)}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    loading = _loading(context, attention)
    found: dict[str, AnyPath] = {}
    failed: dict[Need, str] = {}

    @contextmanager
    def meeting(need: Need, what: str) -> Iterator[None]:
        try:
            yield
        except FullStoreError:
            raise
        except Exception as error:
            context.leave_out(what + of, error)
            failed[need] = f"it needs {what}, which could not be made: {reason(error)}"

    if "reference" in needs:
        with meeting("reference", f"{whose} log-probabilities"):
            found["logprobs"] = _reference_logprobs(
                context, student, rollouts.tokens, rollouts.tokens_key, dtype, loading, publish=spec is None
            )
    if "reference_logits" in needs:
        with meeting("reference_logits", f"{whose} final states"):
            found["states"] = _reference_states(context, student, rollouts, dtype, loading)
    if "mismatched" in needs:
        with meeting("mismatched", f"{whose} log-probabilities of mismatched completions"):
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
    return lay_out_teacher(context, student, rollouts)


def lay_out_teacher(context: StudyContext, student: Student, rollouts: Rollouts) -> AnyPath:
    """The folder of the likeliest tokens that came with the rollouts.

    Raises:
        DataError: a row has none, or not what belongs there.
    """
    store, width = context.store, read_config(student.folder).get_text_config().vocab_size
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
) -> Trained:
    """Train every run the store lacks, and those the sweep chooses; publish ``runs``, ``stages`` and
    ``training_curves``.

    Stages and rounds are trained one after the other, all runs that have come as far together. A run that diverged,
    failed or was stopped early is a row with its reason; the others are not disturbed by it. If no run finished, there
    is the base alone, and the training is left out.

    Raises:
        KeyboardInterrupt: the process was asked to stop; it says what is finished.
    """
    return _Training(context, student, rollouts, references, tracking).run()


@dataclass(frozen=True)
class Trained:
    """The runs that finished, the base first, and all runs with what was chosen for them."""

    runs: list[Run]
    planned: list[PlannedRun]


class _Training:
    """The training stage of a study: what is known of its runs as it goes."""

    def __init__(
        self, context: StudyContext, student: Student, rollouts: Rollouts, references: References, tracking: Tracking
    ):
        self.context, self.student, self.rollouts, self.tracking = context, student, rollouts, tracking
        self.references = references
        self.store, self.plan = context.store, context.study.plan
        self.before = self.store.finished(TABLES)
        self.chains: dict[str, Chain] = {}
        self.failures: dict[str, str] = {}
        self.params: dict[str, dict[str, Any]] = {}

    def run(self) -> Trained:
        """Train level by level, add up, publish."""
        for run in self.plan.trials():
            self._add(run)
        examples = select_examples(self.context, self.rollouts, self._on_study_rollouts())
        for level in range(max([len(chain.links) for chain in self.chains.values()], default=1)):
            self._train_level(level, examples)
        counted = self._counted_in_rounds()
        if self.plan.open_entries() or counted:
            select_examples(self.context, self.rollouts, self._on_study_rollouts(), counted)
        join(self.context, self.student, self.chains.values())
        runs = _publish(self.context, self.student, self.rollouts, self._shown(), self.failures, self.tracking)
        self.store.publish_rows("stages", to_arrow("stages", link_rows(self.store, self.chains.values())))
        if not runs:
            reasons = "; ".join(
                f"{row['run']}: {row['reason']}" for row in self.store.table("runs").to_pylist() if row["reason"]
            )
            self.context.leave_out(
                "training", TrainingError(f"no run finished, so there is nothing to compare. {reasons}")
            )
        loading = Loading.of(self.context.study.student)
        base = Run(BASE, content_key(self.student.key, BASE, *loading.keyed), None, loading=loading)
        return Trained([base, *runs], [chain.run for chain in self.chains.values()])

    def _add(self, run: PlannedRun) -> Chain:
        chain = chain_of(self.context, self.student, self.rollouts, run)
        self.chains[run.name] = chain
        return chain

    def _on_study_rollouts(self) -> list[RunSpec]:
        links = [link for chain in self.chains.values() for link in chain.links]
        return [link.spec for link in links if link.sampled is None]

    def _counted_in_rounds(self) -> list[pa.Table]:
        """What losses select of the rollouts of every round that were drawn, by this command or an earlier one."""
        drawn = self.store.finished(ROUND_TABLES)
        counts: dict[tuple[Loss, str], dict[str, int]] = {}
        rows = []
        for link in (link for chain in self.chains.values() for link in chain.links):
            if link.sampled is None or link.sampled.key not in drawn:
                continue
            asked = link.spec.loss, link.sampled.key
            if asked not in counts:
                counts[asked] = {}
                with suppress(DataError):  # which ended the run, and is said there
                    counts[asked] = link.spec.loss.select(replace(self.rollouts, key=link.sampled.key).train).counts
            rows += [{"stage": link.spec.name, "name": name, "value": n} for name, n in counts[asked].items()]
        return [to_arrow("counts", rows)] if rows else []

    def _train_level(self, level: int, examples: Mapping[str, int]) -> None:
        """Train the stage or round number ``level`` of every run that has it and has come so far."""
        scheduler, store = self.plan.sweep.scheduler, self.store
        links = self._links(level)
        missing = {key: link for key, link in links.items() if not is_settled(store, key, scheduler)}
        self._provide_starts(missing.values())
        inputs = {key: made for key, link in missing.items() if (made := self._inputs(link)) is not None}
        missing = {key: link for key, link in missing.items() if key in inputs}
        self._say_outdated(missing)
        self.context.count(0, len(links) - len(missing) - len(links.keys() & self.failures.keys()))
        self.params |= {key: run_params(link.spec) for key, link in missing.items()}
        steps = sum(
            _step_count(link.spec, examples.get(link.spec.name) or self._selected(link)) for link in missing.values()
        )
        search = measure = None
        if level == 0 and self.plan.open_entries():
            search, measure = self._search()
            steps += _expected_steps(self.plan, self.rollouts)
        if missing or (search is not None and search.has_next()):
            self.context.pool.close()  # its CPUs are the workers' now
            with self.context.progress.bar("training steps", steps) as bar:
                try:
                    self.failures |= run_sweep(
                        {key: link.spec for key, link in missing.items()},
                        self._base_inputs(),
                        store,
                        content_key(sorted(missing), search is not None),
                        [TrialLogger(self.tracking, self.params, bar, self.context.progress.say)],
                        scheduler=scheduler,
                        search=search,
                        examples=self.plan.points() if search is not None else (),
                        measure=measure,
                        study=self.context.study.name,
                        own=inputs,
                        say=self.context.progress.say,
                    )
                except KeyboardInterrupt:
                    raise KeyboardInterrupt(_standing(store, self._known())) from None
            ended = {link.key for chain in self.chains.values() for link in chain.links[level : level + 1]}
            self.context.count(len(ended & store.finished(TABLES) - self.before), 0)
        for start in {link.start.key for link in links.values()} - {self.student.key}:
            store.delete_folder(KIND, start)  # as large as the student; whoever needs it makes it again

    def _links(self, level: int) -> dict[str, Link]:
        """The trainings number ``level`` of all runs that have come so far, by key; one that several share is named
        after the run that it is all of, or else the first.
        """
        found: dict[str, Link] = {}
        for chain in self.chains.values():
            if len(chain.links) <= level:
                continue
            link = chain.links[level]
            if level and finished_record(self.store, chain.links[level - 1].key) is None:
                continue
            if link.key not in found or not chain.run.is_chain:
                found[link.key] = link
        return found

    def _provide_starts(self, links: Collection[Link]) -> None:
        """Make the students that trainings start from; where that fails, it is noted."""
        later = {link.start.key: link for link in links if link.before}
        if later:
            self.context.pool.close()  # one may need its CPUs
        for link in later.values():
            try:
                trained = [earlier.key for earlier in link.before]
                provide_continued(self.context, self.student, trained, link.before[-1].spec.name)
            except FullStoreError:
                raise
            except Exception as error:
                self.failures |= {each.key: reason(error) for each in links if each.start.key == link.start.key}

    def _inputs(self, link: Link) -> RunInputs | None:
        """What a training reads, made if need be; None where that fails, which is noted."""
        if link.key in self.failures:
            return None
        if link.sampled is None and link.start.key == self.student.key:
            if why := self.references.lacking(link.spec.needs):
                self.failures[link.key] = why
                return None
            return self._base_inputs()
        try:
            return self._own_inputs(link)
        except FullStoreError:
            raise
        except Exception as error:
            self.failures[link.key] = reason(error)
            return None

    def _own_inputs(self, link: Link) -> RunInputs:
        """What a training reads that starts from another student, or learns from other rollouts, than the study's."""
        context, start, rollouts = self.context, link.start, self.rollouts
        if link.sampled is not None:
            rollouts = provide_round(context, rollouts, self.student, link.sampled, link.spec.name)
            selection = link.spec.loss.select(rollouts.train)
            keep_selection(self.store, link.spec.loss, rollouts.key, selection.examples)
        referred = self.student if link.spec.reference == "base" else start
        references = self.references
        if referred is not self.student or link.sampled is not None:
            references = provide_references(context, referred, rollouts, link.spec)
        if why := references.lacking(link.spec.needs):
            raise TrainingError(why)
        return self._with(references, rollouts, start, referred)

    def _selected(self, link: Link) -> int:
        """How many examples a training on rollouts of its own has."""
        assert link.sampled is not None
        return len(open_selection(self.store, link.spec.loss, link.sampled.key))

    def _base_inputs(self) -> RunInputs:
        return self._with(self.references, self.rollouts, self.student, self.student)

    def _with(self, references: References, rollouts: Rollouts, start: Student, referred: Student) -> RunInputs:
        return RunInputs(
            rollouts=rollouts.key,
            student=start.folder,
            student_key=start.key,
            tokens=rollouts.tokens,
            pad_id=rollouts.pad_id,
            reference=references.logprobs,
            reference_states=references.states,
            mismatched=references.mismatched,
            mismatched_reference=references.mismatched_logprobs,
            heldout=provide_heldout(self.context, self.student, self.rollouts),
            referred=None if referred.key == start.key else referred.folder,
            teacher=references.teacher,
            teacher_key=rollouts.teacher,
        )

    def _search(self) -> tuple[Search[PlannedRun], Measure]:
        """The search that chooses runs, and what it goes by."""
        for index in self.plan.open_entries():
            spec = _examples_of(self.plan, index)[0].spec
            if why := self.references.lacking(spec.needs):
                raise TrainingError(f"runs {index} ({spec.loss.type}) cannot be searched: {why}")

        def add_planned(run: PlannedRun) -> None:
            [link] = self._add(run).links
            self.params[link.key] = run_params(run.spec)
            self._say_outdated([link.key])

        objectives = provide_objectives(self.context, self.student, self.rollouts)
        search = start_search(self.context, self.student, self.rollouts, objectives, add_planned)
        return search, partial(measure_run, objectives, self.store)

    def _say_outdated(self, wanted: Iterable[str]) -> None:
        if outdated := outdated_units(self.before, (key for key in wanted if key not in self.before)):
            self.context.progress.say(f"  training: {outdated}")

    def _known(self) -> dict[str, str]:
        """The keys of all trainings, by name."""
        return {link.spec.name: link.key for chain in self.chains.values() for link in chain.links}

    def _shown(self) -> list[_Shown]:
        """The runs that this study names, in order: each, and behind it its stages where it has several."""
        found: dict[str, _Shown] = {}
        taken = {chain.key for chain in self.chains.values()}
        for chain in self.chains.values():
            run, stages = chain.run, chain.stages
            found[run.name] = _Shown(run.name, chain.key, run.spec, stages, ended=self._ended(chain.links))
            if len(run.stages) == 1:
                continue
            for number, stage in enumerate(run.stages):
                key = chain.stage_key(number)
                assert stages is not None
                if number == 0 and key in taken:
                    continue  # another run of the study, or the first stage of one that is shown already
                taken.add(key)
                alone = number == 0 and stage.rounds is None
                found[stage.spec.name] = _Shown(
                    stage.spec.name,
                    key,
                    stage.spec,
                    None if alone else stages[: number + 1],
                    None if number == 0 else number + 1,
                    run.name,
                    self._ended([link for link in chain.links if link.stage <= number]),
                )
        return list(found.values())

    def _ended(self, links: Sequence[Link]) -> tuple[str, str] | None:
        """Status and reason of the first training that did not finish, where there are several; None if all did."""
        for link in links if len(links) > 1 else ():
            if finished_record(self.store, link.key) is not None:
                continue
            if link.key in self.store.finished(TABLES):
                [row] = self.store.read_unit("runs", link.key).to_pylist()
                return row["status"], f"{link.spec.name}: {row['reason']}"
            return "failed", f"{link.spec.name}: {self.failures.get(link.key, 'no result was stored')}"
        return None


@dataclass(frozen=True)
class _Shown:
    """A run as this study names it: ``stages``, ``leg`` and ``leg_of`` as in its record, and how it ended where not
    all of its trainings have finished.
    """

    name: str
    key: str
    spec: RunSpec
    stages: list[dict[str, Any]] | None = None
    leg: int | None = None
    leg_of: str | None = None
    ended: tuple[str, str] | None = None


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
    three a reader asks for: loss, lr, seed; ``options/*`` are the loss's, ``training/*`` the rest.
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
        | {f"options/{name}": value for name, value in spec.loss.model_dump().items() if name != "type"}
        | {f"training/{name}": value for name, value in rest.items()}
    )


def _publish(
    context: StudyContext,
    student: Student,
    rollouts: Rollouts,
    shown: list[_Shown],
    failures: dict[str, str],
    tracking: Tracking,
) -> list[Run]:
    """Publish the records and curves of all runs under the names this study gives them; return those that finished."""
    store, loading = context.store, Loading.of(context.study.student)
    records: list[RunRecord] = []
    curves: list[pa.Table] = []
    runs = []
    base = tracking.child(base_key(student), BASE, {"loss": "none", "lr": 0.0, "seed": 0})
    tracking.tags(base, {"raygeo.loss": "none", CONFIGURATION_TAG: BASE})
    tracking.end(base, "FINISHED")
    ended = store.finished(TABLES)
    known = {
        run.key: RunRecord.of(store.read_unit("runs", run.key).to_pylist()[0]) for run in shown if run.key in ended
    }
    for run in shown:
        started = known[run.key].started if run.key in known else None
        tracking.child(run.key, run.name, run_params(run.spec), started)
    tracking.flush()  # so that the table of runs has MLflow's ids
    for run in shown:
        name, key = run.name, run.key
        child = tracking.run_id(key)
        trained = key in ended and not (key in failures and not store.has_folder(DELTAS, key))
        if trained:
            record = replace(known[key], run=name, mlflow_run_id=child)
            curves.append(_renamed(store.read_unit("training_curves", key), name))
            tracking.curves(key)
        else:
            status, why = run.ended or ("failed", failures.get(key, "no result was stored"))
            record = run_record(run.spec, key, status, student=student.key, reason=why, mlflow_run_id=child)
            if status == "failed":
                context.leave_out(f"run {name}", TrainingError(why))
            else:
                context.progress.say(f"  [yellow]{name} {status}[/yellow]: {escape(why)}")
        record = replace(record, stages=run.stages, leg=run.leg, leg_of=run.leg_of)
        if record.status == FINISHED:
            record = replace(record, delta=delta_folder(store, key))  # the store may have been moved
            snapshots = store.stored(SNAPSHOTS, key) if store.has_folder(SNAPSHOTS, key) else None
            measured = content_key(key, name, *loading.keyed)
            delta = store.stored(DELTAS, key)
            runs.append(Run(name, measured, delta, snapshots, leg=run.leg is not None, loading=loading))
        elif trained:
            context.progress.say(f"  [yellow]{name} {record.status}[/yellow]: {escape(record.reason or '')}")
        tracking.tags(key, run_tags(record))
        if not any(stage.get("rounds") for stage in run.stages or ()):
            tracking.inputs(key, "training", [learned_from(rollouts)])
        if record.delta is not None:
            tracking.model(key, record.delta)
        tracking.end(key, status_of(record.status), record.ended)
        records.append(record)
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records]))
    store.publish_rows("training_curves", pa.concat_tables([SCHEMAS["training_curves"].empty_table(), *curves]))
    return runs


def run_tags(record: RunRecord) -> dict[str, str]:
    """What runs are grouped and searched by in MLflow: how it ended, its loss, and its configuration: runs that differ
    in nothing but seeds have one.
    """
    tags = {"status": record.status, "reason": without_credentials(record.reason or "")}
    if (condition := record.condition) is None:
        return tags
    loss = str(record.label)
    return tags | {"raygeo.loss": loss, CONFIGURATION_TAG: f"{loss} {content_key(*condition.configuration)[:6]}"}


def _renamed(curves: pa.Table, run: str) -> pa.Table:
    """The curves of a run under the name this study gives it."""
    return curves.set_column(
        curves.schema.get_field_index("run"), "run", pa.array([run] * len(curves), pa.large_string())
    )
