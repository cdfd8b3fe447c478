"""Stage 2: the graded rollouts, read or sampled, checked, split and tokenised; the same table for every loss."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from raygeo.cluster.execution import Executor, in_process, run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.data.exam import Exam
from raygeo.data.grading import NO_MARKER, RULES, Choice, Grading, GradingChoice, gold_answer
from raygeo.data.incoming import PART_ROWS, PARTS, RECORDS, RECORDS_REVISION, record_parts
from raygeo.data.interventions import set_negative_share, shuffle_rewards
from raygeo.data.merging import Part, assemble, count_marks, number, select, token_blocks, token_lengths
from raygeo.data.preview import first_row
from raygeo.data.readers import AnyReader, Prompt, read_prompts
from raygeo.data.revisions import text_revisions
from raygeo.data.sampling import DecodingSettings, Sampling, SamplingElsewhere
from raygeo.data.scanning import SCANS, Limit, Scan, Scanner
from raygeo.data.teacher import TOP_COLUMNS, refuse_other_tokens
from raygeo.data.tokens import write_tokens
from raygeo.data.validation import GRADED, NOTED, Record, counts, recorded_grading, split_heldout
from raygeo.data.verdicts import VERDICTS, Grade
from raygeo.errors import DataError
from raygeo.generation.endpoint import EndpointSettings
from raygeo.generation.engine import EngineSettings, check_prompts
from raygeo.generation.renderer import MARKS, Renderer, renderer_for
from raygeo.models.loading import Loading, context_length, load_tokenizer, read_config
from raygeo.pipeline.config import RolloutRules, SamplingSettings, Study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.journal import AnswerJournal
from raygeo.pipeline.plan import RoundSampling
from raygeo.pipeline.precomputed import is_taken, take_units
from raygeo.pipeline.problems import benchmark_problems, builtin_prompts
from raygeo.pipeline.published import KIND
from raygeo.pipeline.student import Student, provide_model
from raygeo.settings import content_key, unit_key
from raygeo.store import AnyPath, Store, outdated_units
from raygeo.tables import SCHEMAS
from raygeo.workload import Workload

TOKENS = "tokens"
_LONG = ("prompt", "gold", "completion", "logprobs", *TOP_COLUMNS)
DROPPED = "dropped for negative_share"
ROUND_TABLES = ("rollouts", "set_aside", "counts")
"""Tables of the unit that holds the rollouts of a round."""


@dataclass(frozen=True)
class Rollouts:
    """The study's rollouts: their unit in the store, the tokens of the training split, how the student reads texts, how
    they were graded, and what is said of them in the table ``counts``.
    """

    key: str
    store: Store
    tokens_key: str
    tokens: AnyPath
    renderer: Renderer
    grading: Grading
    counts: pa.Table
    teacher: str | None = None
    """The key of the model that losses learn from and how it is asked, if the study names one."""

    @property
    def pad_id(self) -> int:
        """The token that batches are padded with."""
        return self.renderer.pad_id

    @property
    def train(self) -> pa.Table:
        """Rows that losses learn from, in the order of the tokens, without their texts and log-probabilities."""
        return self._read("train", [name for name in SCHEMAS["rollouts"].names if name not in _LONG])

    @property
    def train_prompts(self) -> set[str]:
        """Prompts that losses learn from."""
        return set(self._read("train", ["prompt"])["prompt"].unique().to_pylist())

    @property
    def heldout(self) -> pa.Table:
        """Rows of the prompts kept out of training."""
        return self._read("heldout", [name for name in SCHEMAS["rollouts"].names if name not in TOP_COLUMNS])

    @cached_property
    def training_problems(self) -> list[Prompt]:
        """Training prompts with a gold answer that can be graded against, each once, in the order of the table."""
        return _problems(self._read("train", ["prompt_id", "prompt", "gold"]), self)

    def _read(self, split: str, columns: Sequence[str]) -> pa.Table:
        return self.store.read_rows("rollouts", self.key, columns, {"split": split})


def provide_rollouts(context: StudyContext, student: Student) -> Rollouts:
    """Read or sample the rollouts, set bad rows aside, hold prompts out, tokenise.

    Raises:
        DataError: too many rows are bad, or no row is left; or ``max_tokens`` is more than the student reads.
        StudentError: prompts are too long for the teacher that is to answer them.
    """
    store, settings = context.store, context.study.rollouts
    if store.has_table("usage"):
        store.publish("usage", [])  # an earlier study's is not this one's
    renderer = renderer_for(load_tokenizer(student.folder), context.study.student.chat)
    room = context_length(read_config(student.folder))
    made = store.finished(("rollouts", "set_aside", "counts"))
    if not made:
        check_max_tokens(context.study, room)
    limit = row_limit(context.study, room)
    asked = _asked_grading(context, renderer)
    source = _sampled(context, student, renderer, asked.grading) if settings.sample else _read(settings.read)
    most = None if limit is None else limit.tokens
    made_of = (RolloutRules.of(settings), asked.grading, renderer.identity, source.key, student.key, most)
    key = unit_key((RULES, renderer.revision, *source.revisions), "rollouts", *made_of)
    tokens_key = content_key("tokens", key, student.key)
    finished = store.finished(("rollouts", "set_aside", "counts"))
    if key in finished and store.has_folder(TOKENS, tokens_key):
        context.count(0, 1)
    else:
        if outdated := outdated_units(finished, [key]):
            context.progress.say(f"  rollouts: {outdated}")
        for reader in source.readers:
            context.progress.say(f"  {escape(first_row(reader))}")
        _make(context, source, asked, Scanner(renderer, student.key, limit), key, tokens_key, settings)
        context.count(1, 0)
    store.publish_large("rollouts", [key], text_revisions([type(renderer)]) | source.made_by)
    set_aside = store.publish("set_aside", [key])
    counted = store.publish_rows("counts", _with_reason(store.read_unit("counts", key), asked))
    tokens = store.stored(TOKENS, tokens_key)
    rollouts = Rollouts(
        key, store, tokens_key, tokens, renderer, recorded_grading(counted), counted, _taught_by(context, student)
    )
    for line in _findings(context.study, rollouts, set_aside, counted):
        context.progress.say(f"  {escape(line)}")
    for line in _warnings(context.study, rollouts, counted):
        context.progress.say(f"  [yellow]{escape(line)}[/yellow]")
    _check_rounds(context.study, rollouts)
    return rollouts


def row_limit(study: Study, room: int | None) -> Limit | None:
    """How long a row may be: what the study says, or else the ``room`` that the student's context has."""
    most = study.rollouts.max_tokens
    if most is not None:
        return Limit(most, "max_tokens")
    return None if room is None else Limit(room)


def check_max_tokens(study: Study, room: int | None) -> None:
    """Refuse rows for which the student's context has no ``room``.

    Raises:
        DataError: they may be longer.
    """
    most = study.rollouts.max_tokens
    if room is not None and most is not None and most > room:
        raise DataError(
            f"rollouts.max_tokens is {most}, and the student reads {room} tokens at most (its context); leave it out, "
            "or set it lower."
        )


def _check_rounds(study: Study, rollouts: Rollouts) -> None:
    """Raise ``DataError`` where runs are trained in rounds and nothing that they write could be graded."""
    rounds = next((run.name for run in study.plan.trials() if any(s.rounds is not None for s in run.stages)), None)
    if rounds is not None and not rollouts.training_problems:
        raise DataError(
            f"run {rounds!r} is trained in rounds, whose rollouts are graded against the gold answers of training "
            "prompts, and none has one"
            + (" that is a number" if rollouts.grading == "exact" else "")
            + "; name the field that holds it (rollouts.read, fields: gold), or leave rounds out."
        )


def _taught_by(context: StudyContext, student: Student) -> str | None:
    settings = context.study.teacher
    if settings is None or student.taught_by is None:
        return None
    return content_key("teacher", student.taught_by, settings.top_k, *Loading.of(settings).keyed)


def _with_reason(counted: pa.Table, asked: "_Asked") -> pa.Table:
    """The counts of a unit, in which this study's reason for the grading stands for that of the one that made it."""
    if asked.grading == "auto":
        return counted
    said = f"{GRADED}{asked.grading}: {asked.reason}"
    column = counted.schema.get_field_index("name")
    names = [said if name.startswith(GRADED) else name for name in counted["name"].to_pylist()]
    return counted.set_column(column, counted.schema.field(column), pa.array(names, counted.schema.types[column]))


def _make(
    context: StudyContext,
    source: "_Source",
    asked: "_Asked",
    scanner: Scanner,
    key: str,
    tokens_key: str,
    settings: RolloutRules,
) -> None:
    """Make the unit ``key`` and its tokens, a part of the records at a time: scanned and graded wherever there is room.

    Parts stay in the store, so that other splits and ablations of the same rollouts need neither tokeniser nor grader.
    """
    store = context.store
    records = _laid_down(store, source)
    with _spread(context, len(records)) as run:
        scans = run(Scan(store, records, scanner))
        parts = [
            Part(
                partial(store.read_columns, RECORDS, "rollout_records", one),
                partial(store.read_columns, SCANS, "rollout_scans", other),
            )
            for one, other in zip(records, scans, strict=True)
        ]
        selected = select(parts, asked.grading, settings.max_set_aside)
        if asked.grading != "auto":
            selected = replace(selected, grading=Choice(asked.grading, asked.reason))
        graded = run(Grade(store, records, scans, selected.grading.grading, scanner.renderer))
    verdicts = (store.read_unit("rollout_verdicts", unit, VERDICTS) for unit in graded)
    valid = number(parts, selected, verdicts, settings.max_set_aside)
    rollouts, done = _intervened(split_heldout(valid.rollouts, settings.heldout, settings.heldout_seed), settings)
    rows = counts(rollouts, valid, ["text_key"])
    for found in (dict(sorted(count_marks(parts, rollouts).items())), done):
        rows += [{"stage": "rollouts", "name": name, "value": value} for name, value in found.items()]
    train = rollouts.filter(pc.equal(rollouts["split"], "train"))
    with store.making(TOKENS, tokens_key) as folder:
        write_tokens(folder, token_lengths(train), train["prompt_tokens"].to_numpy(), token_blocks(parts, train))
    store.write_unit(key, {"rollouts": assemble(parts, rollouts), "set_aside": valid.set_aside, "counts": rows})


def _laid_down(store: Store, source: "_Source") -> list[str]:
    """Units that hold the records of ``source``, in order; the list itself is a unit, written last."""
    whole = unit_key((RECORDS_REVISION, *source.revisions), "rollout parts", source.key, PART_ROWS)
    if whole not in store.units("rollout_parts"):
        keys: list[str] = []
        for part in record_parts(source.records, PART_ROWS):
            keys.append(
                unit_key((RECORDS_REVISION, *source.revisions), "rollout records", source.key, PART_ROWS, len(keys))
            )
            store.write_unit(keys[-1], {"rollout_records": part})
        store.write_unit(whole, {"rollout_parts": pa.table({"part": keys}, schema=PARTS)})
    return store.read_unit("rollout_parts", whole, PARTS)["part"].to_pylist()


@contextmanager
def _spread(context: StudyContext, parts: int) -> Iterator[Callable[[Workload], list[str]]]:
    """What runs workloads of so many parts, none of which needs a GPU, and gives the keys of their units."""
    with ExitStack() as stack:
        execute: Executor = in_process
        if parts > 1:
            own = context.study.actors.gpus > 0
            execute = (
                stack.enter_context(ActorPool(say=context.progress.say, study=context.study.name))
                if own
                else context.pool
            )
        yield lambda workload: run_workload(workload, context.store, execute, context.progress).keys


def _intervened(table: pa.Table, settings: RolloutRules) -> tuple[pa.Table, dict[str, int]]:
    """The rollouts as the study's ablations and controls want them, and what was done to how many rows."""
    done = {}
    if settings.negative_share is not None:
        before, table = table.num_rows, set_negative_share(table, settings.negative_share, settings.negative_seed)
        done[DROPPED] = before - table.num_rows
    if settings.shuffle_rewards is not None:
        before, table = table["correct"], shuffle_rewards(table, settings.shuffle_rewards)
        done["verdicts changed by shuffle_rewards"] = pc.sum(pc.not_equal(before, table["correct"])).as_py()
    return table, done


class _Asked(NamedTuple):
    """The grading as far as it is known before any rollout is read, and why."""

    grading: GradingChoice
    reason: str


def _asked_grading(context: StudyContext, renderer: Renderer) -> _Asked:
    """What the study and its benchmarks want; where rollouts are sampled and graded at once, never "auto".

    Raises ``DataError`` when a benchmark cannot be read, put to the student, or graded as the study says.
    """
    study = context.study
    asked, sample = study.rollouts.grading, study.rollouts.sample
    for benchmark in study.evaluation.benchmarks:
        found = benchmark_problems(study, benchmark)
        for problem in found:
            if (why := renderer.unfit_prompt(problem.prompt)) is not None:
                raise DataError(f"benchmark {benchmark.name!r}: {why} ({problem.prompt[:80]!r}, ...).")
        golds = [problem.gold for problem in found]
        unreadable = [gold for gold in golds if gold_answer(gold) is None]
        if unreadable and asked == "exact":
            raise DataError(
                f"benchmark {benchmark.name!r}: {len(unreadable)} of {len(golds)} gold answers are not numbers "
                f"({unreadable[0][-80:]!r}, ...); set rollouts.grading to 'math' or 'auto'."
            )
        if unreadable and asked == "auto":
            return _Asked("math", f"gold answers of the benchmark {benchmark.name!r} are not all numbers")
    if asked != "auto" or sample is None:
        return _Asked(asked, "the study says so")
    if isinstance(sample.prompts, int):
        return _Asked("exact", "answers to built-in problems stand after ####")
    return _Asked("math", "how a sampled model names its answers is not known beforehand")


@dataclass(frozen=True)
class Round:
    """The rollouts of a round, before they are drawn: what draws them, and the keys of what comes of them."""

    sampling: Sampling
    key: str
    tokens_key: str
    rules: RolloutRules


def plan_round(
    context: StudyContext, rollouts: Rollouts, student: Student, current: Student, sampling: RoundSampling, number: int
) -> Round:
    """How the rollouts of round ``number`` (from 1) are drawn from ``current``, the student as it is then.

    They are of training prompts of ``rollouts`` that have a gold answer, put, answered and graded as in the study.
    """
    study = context.study
    sample = study.rollouts.sample
    decoding = sampling.decoding(DecodingSettings() if sample is None else sample.decoding, number)
    drawn = Sampling(
        decoding,
        current.folder,
        current.key,
        rollouts.renderer,
        drawn_problems(rollouts.training_problems, sampling, number),
        rollouts.grading,
        rollouts.renderer.end_texts,
        Loading.of(study.student),
        study.evaluation.engine,
        "student",
    )
    limit = study.rollouts.max_tokens or context_length(read_config(student.folder))
    rules = RolloutRules(heldout=0, max_set_aside=study.rollouts.max_set_aside)
    drawn_as = content_key([task.key for task in drawn.tasks()])
    made_of = (rules, rollouts.grading, rollouts.renderer.identity, drawn_as, rollouts.key, student.key, limit)
    key = unit_key((RULES, rollouts.renderer.revision), "round", *made_of)
    return Round(drawn, key, content_key("tokens", key, student.key), rules)


def provide_round(context: StudyContext, rollouts: Rollouts, student: Student, round: Round, name: str) -> Rollouts:
    """Draw, grade and tokenise the rollouts of a round of the run ``name``, unless the store has them.

    Raises:
        DataError: too many are bad.
    """
    store = context.store
    if round.key not in store.finished(ROUND_TABLES) or not store.has_folder(TOKENS, round.tokens_key):
        keys = context.run(round.sampling).keys
        rows = (row for key in keys for row in store.read_unit("rollouts", key).to_pylist())
        records = (Record(row["source"], line, row) for line, row in enumerate(rows, 1))
        limit = row_limit(context.study, context_length(read_config(student.folder)))
        asked = _Asked(rollouts.grading, "as the study's rollouts")
        scanner = Scanner(rollouts.renderer, student.key, limit)
        source = _Source(records, content_key(keys), {})
        _make(context, source, asked, scanner, round.key, round.tokens_key, round.rules)
        context.count(1, 0)
    else:
        context.count(0, 1)
    counted = store.read_unit("counts", round.key)
    tokens = store.stored(TOKENS, round.tokens_key)
    found = replace(rollouts, key=round.key, tokens_key=round.tokens_key, tokens=tokens, counts=counted)
    values = dict(zip(counted["name"].to_pylist(), counted["value"].to_pylist(), strict=True))
    context.progress.say(f"  {escape(name)}: {values['rows']} rollouts sampled, {values['correct']} right")
    return found


def drawn_problems(problems: Sequence[Prompt], sampling: RoundSampling, number: int) -> list[Prompt]:
    """The prompts of round ``number``: all, or as many as asked for in an order of their own, which is drawn again
    once fewer are left.
    """
    count = sampling.prompts
    if count is None or count >= len(problems):
        return list(problems)
    epoch, part = divmod(number - 1, len(problems) // count)
    order = np.random.default_rng([sampling.seed, epoch]).permutation(len(problems))
    return [problems[i] for i in order[part * count : (part + 1) * count]]


def heldout_problems(rollouts: Rollouts) -> list[Prompt]:
    """The held-out prompts with a gold answer that can be graded against, each once, in the order of the table."""
    return _problems(rollouts.heldout.select(["prompt_id", "prompt", "gold"]), rollouts)


def _problems(table: pa.Table, rollouts: Rollouts) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for row in table.to_pylist():
        if row["gold"] and (rollouts.grading == "math" or gold_answer(row["gold"]) is not None):
            first.setdefault(row["prompt_id"], Prompt(row["prompt_id"], row["prompt"], row["gold"], None))
    return list(first.values())


def heldout_exam(rollouts: Rollouts, engine: EngineSettings) -> Exam:
    """The held-out problems, put and judged as the study's rollouts were, answered by ``engine``."""
    problems = [(problem.prompt, problem.gold) for problem in heldout_problems(rollouts)]
    return Exam(problems, rollouts.grading, rollouts.renderer, engine)


def _findings(study: Study, rollouts: Rollouts, set_aside: pa.Table, counted: pa.Table) -> Iterator[str]:
    """What a person should hear of the rollouts at once."""
    values = dict(zip(counted["name"].to_pylist(), counted["value"].to_pylist(), strict=True))
    yield _counted(values)
    if set_aside.num_rows:
        reasons = Counter(set_aside["reason"].to_pylist()).most_common()
        said = ", ".join(f"{number} x {reason}" for reason, number in reasons[:3]) + (", ..." if reasons[3:] else "")
        total = values["rows"] + values.get(DROPPED, 0) + set_aside.num_rows
        yield f"{set_aside.num_rows} of {total} rows set aside: {said}; see the table set_aside"
    for name, count in values.items():
        if name.startswith(GRADED):
            yield f"{name}" + (f" ({count} rollouts had no verdict)" if count else "")
        elif name in MARKS:
            yield f"{count} of {values['rows']} rollouts: {name}"
        elif name.startswith(NOTED):
            yield f"{count} of {values['rows']} rollouts: {name.removeprefix(NOTED)}"
    if study.evaluation.heldout and (heldout := values["heldout_prompts"]):
        problems = len(heldout_problems(rollouts))
        if not problems:
            yield (
                f"no accuracy on held-out prompts: none of {heldout} has a gold answer"
                + (" that is a number" if rollouts.grading == "exact" else "")
                + "; name the field that holds it (rollouts.read, fields: gold), or give evaluation.benchmarks"
            )
        elif problems < heldout:
            yield f"{heldout - problems} of {heldout} held-out prompts have no gold answer to grade against"


def _counted(values: Mapping[str, int]) -> str:
    """The counts of rollouts in a line; those of nothing are left out but for verdicts."""
    parts = {"cut off": values["truncated"], "without an answer marker": values.get(f"{NOTED}{NO_MARKER}", 0)}
    parts |= {"set aside": values["set_aside"]}
    return (
        f"{values['rows']:,} rollouts: {values['correct']:,} right, {values['wrong']:,} wrong"
        + "".join(f", {count:,} {name}" for name, count in parts.items() if count)
        + f"; {values['prompts']:,} prompts: {values['mixed_prompts']:,} with both right and wrong ones, "
        f"{values['heldout_prompts']:,} held out"
    )


def _warnings(study: Study, rollouts: Rollouts, counted: pa.Table) -> Iterator[str]:
    """What of the verdicts is so odd that it is likely a mistake."""
    values = dict(zip(counted["name"].to_pylist(), counted["value"].to_pylist(), strict=True))
    graded = sum(count for name, count in values.items() if name.startswith(GRADED))
    unmarked = values.get(f"{NOTED}{NO_MARKER}", 0)
    if unmarked > graded / 2:
        yield (
            f"{unmarked} of {graded} completions name no answer after #### or A: and count as wrong; see how they end "
            "(raygeo data), and set rollouts.grading to 'math' if that can read them"
        )
    if values["rows"] == values["correct"]:
        yield "every rollout is right: losses that learn from wrong ones, or from pairs, find nothing"
    elif not values["correct"]:
        yield "no rollout is right: losses that learn from right ones, or from pairs, find nothing"
    else:
        return
    for row in rollouts.heldout.slice(0, 1).filter(pc.is_valid(pc.field("gold"))).to_pylist():
        yield f"one of them ends {row['completion'][-60:]!r}, and its gold answer is {row['gold'][-60:]!r}"
    if study.rollouts.read and not graded:
        yield "verdicts came with the rows; if they are not what was meant, name their field (rollouts.read, fields)"


class _Source(NamedTuple):
    """Records as they come, a key of what they are made of, revisions of the code that makes them, and the readers."""

    records: Iterator[Record]
    key: str
    made_by: dict[str, int]
    readers: tuple[AnyReader, ...] = ()

    @property
    def revisions(self) -> tuple[int, ...]:
        """Those of the readers."""
        return tuple(reader.reader_revision for reader in self.readers)


def _read(readers: Sequence[AnyReader]) -> _Source:
    """Records of all readers; the key is that of their settings and of the content of their files."""
    found = tuple(reader.resolved() for reader in readers)
    key = content_key([[reader.made_of(), reader.fingerprint()] for reader in found])
    made_by = text_revisions(readers=map(type, found))
    return _Source(chain.from_iterable(reader.rollouts() for reader in found), key, made_by, found)


def _sampled(context: StudyContext, student: Student, renderer: Renderer, grading: GradingChoice) -> _Source:
    """Records sampled from the teacher, in the order of the prompts; ``renderer`` is the student's."""
    settings = context.study.rollouts.sample
    assert settings is not None
    if isinstance(settings.prompts, int):
        prompts = builtin_prompts(context.study, settings.prompts, settings.prompts_seed)
    else:
        prompts = read_prompts(settings.prompts)
    assert grading != "auto"
    if isinstance(settings.engine, EndpointSettings):
        reads = renderer
        keys = _asked_of_server(context, settings, settings.engine, renderer, prompts, grading)
    else:
        teacher, teacher_key = _teacher(context, settings, student)
        reads = renderer_for(load_tokenizer(teacher), context.study.student.chat)
        longest = settings.engine.longest(context_length(read_config(teacher)))
        written = [prompt.prompt for prompt in prompts]
        check_prompts(reads, written, settings.decoding.max_new_tokens, longest, "teacher")
        if settings.decoding.top_logprobs:
            refuse_other_tokens(renderer.tokenizer, reads.tokenizer, settings.teacher)
        sampling = Sampling(
            settings.decoding,
            teacher,
            teacher_key,
            reads,
            prompts,
            grading,
            renderer.end_texts,
            Loading.of(context.study.student),
            settings.engine,
            settings.source,
        )
        if is_taken(context.store, KIND, teacher_key) and take_units(context.store, sampling):
            context.progress.say("  rollouts: come with raygeo")
        keys = context.run(sampling).keys
    rows = (row for key in keys for row in _rows(context.store.read_unit("rollouts", key)))
    made_by = {Sampling.name: Sampling.revision, **text_revisions([type(reads)], [type(settings.engine)])}
    return _Source((Record(row["source"], line, row) for line, row in enumerate(rows, 1)), content_key(keys), made_by)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table; lists of numbers as arrays, which take a tenth of the memory."""
    listed = [field.name for field in table.schema if pa.types.is_large_list(field.type)]
    for row, rest in enumerate(table.drop_columns(listed).to_pylist()):
        lists = {name: table[name][row].values for name in listed}
        yield rest | {name: each if each is None else each.to_numpy() for name, each in lists.items()}


def _teacher(context: StudyContext, settings: SamplingSettings, student: Student) -> tuple[AnyPath, str]:
    """The folder of the teacher in the store, and its key."""
    if settings.teacher == "builtin" and student.teacher is not None:
        key = student.teacher
    elif settings.teacher == "student":
        key = student.key
    else:
        key = provide_model(context, settings.teacher)
    return context.store.stored(KIND, key), key


def _asked_of_server(
    context: StudyContext,
    settings: SamplingSettings,
    engine: EndpointSettings,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    grading: Grading,
) -> list[str]:
    """Keys of the units sampled from a server, asked from here; what it took is published and said."""
    journal = AnswerJournal(context.store, f"answers-{content_key(engine.identity)}")
    workload = SamplingElsewhere(settings.decoding, renderer, prompts, grading, engine, journal)
    keys = context.run_here(workload).keys
    journal.clear()
    usage = context.store.publish("usage", keys).to_pylist()
    counts = {name: sum(row[name] for row in usage) for name in ("requests", "prompt_tokens", "completion_tokens")}
    costs = [row["cost"] for row in usage if row["cost"] is not None]
    context.progress.say(
        f"  {escape(engine.model)} answered {counts['requests']:,} requests: {counts['prompt_tokens']:,} tokens read, "
        f"{counts['completion_tokens']:,} written" + (f", which cost {sum(costs):,.2f}" if costs else "")
    )
    if left_out := sum(row["unknown_ends"] or 0 for row in usage):
        context.progress.say(
            f"  {left_out:,} answers ended neither by themselves nor at their greatest length (a content filter, "
            "perhaps); they are left out"
        )
    return keys
