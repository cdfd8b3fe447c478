"""A study's rollouts tried beforehand: read, graded and split as a run would, into a store that is gone at the end."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from raygeo.cluster.execution import in_process
from raygeo.data.readers import read_prompts
from raygeo.data.scanning import Limit
from raygeo.data.validation import Record, heldout_count, refuse_too_many, set_aside_row
from raygeo.errors import DataError, RaygeoError, StudentError, UnusableError
from raygeo.generation.engine import check_prompts
from raygeo.generation.renderer import Renderer, renderer_for
from raygeo.models.folder import CONFIG
from raygeo.models.loading import context_length, load_tokenizer, read_config
from raygeo.pipeline.budget.facts import SAMPLE
from raygeo.pipeline.config import SamplingSettings, StudentSettings, Study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.foreseen import foresee
from raygeo.pipeline.problems import builtin_prompts, made_config, made_tokenizer
from raygeo.pipeline.published import KIND, continued_from
from raygeo.pipeline.rollouts import check_max_tokens, provide_rollouts, row_limit
from raygeo.pipeline.student import Student
from raygeo.progress import Progress
from raygeo.store import AnyPath, Store


@dataclass(frozen=True)
class Tried:
    """What a run would say of its rollouts, line by line, and the error that it would end with, as far as is known."""

    said: tuple[str, ...] = ()
    error: RaygeoError | None = None


def try_rollouts(study: Study, stages: Sequence[str]) -> Tried:
    """Try what a run with these ``stages`` would make of rollouts that are read, or are to be sampled.

    Of many rows the first ``SAMPLE`` are tried, and what others may make good is said and counts as no error. Where the
    student's tokenizer is not here, nothing is known.
    """
    if "rollouts" not in stages:
        return Tried()
    with TemporaryDirectory(prefix="raygeo-") as place:
        try:
            folder = _texts_folder(study.student, Path(place) / "student")
            if study.rollouts.sample is not None:
                _check_sampled(study, study.rollouts.sample, folder)
            elif folder is not None:
                return _try_read(study, stages, folder, Store(Path(place) / "store"))
        except RaygeoError as error:
            return Tried(error=error)
    return Tried()


def _texts_folder(settings: StudentSettings, place: Path) -> AnyPath | None:
    """A folder with the student's configuration and tokenizer, made in ``place`` if need be; None if they are not here.

    Raises:
        RaygeoError: there is no run that the student could continue.
    """
    if settings.built_in:
        made_config(settings).save_pretrained(place)
        made_tokenizer(settings).save_pretrained(place)
        return place
    folder = continued_from(settings) or Path(settings.model).expanduser()
    try:
        load_tokenizer(folder)
        read_config(folder)
    except StudentError:
        return None
    return folder


def _check_sampled(study: Study, sample: SamplingSettings, folder: AnyPath | None) -> None:
    """Refuse prompts of which too few are left to learn from, or to which there is no room to answer.

    Raises:
        DataError: they are too few, or too long to be learned from.
        StudentError: they leave the teacher no room.
    """
    if isinstance(sample.prompts, int):
        prompts = [problem.prompt for problem in builtin_prompts(study, sample.prompts, sample.prompts_seed)]
    else:
        prompts = [problem.prompt for problem in read_prompts(sample.prompts)]
    heldout_count(len(prompts), study.rollouts.heldout)
    if folder is None:
        return
    renderer, room = renderer_for(load_tokenizer(folder), study.student.chat), context_length(read_config(folder))
    check_max_tokens(study, room)
    limit = row_limit(study, room)
    bad = [
        set_aside_row(Record("prompts", line, text=prompt), why)
        for line, prompt in enumerate(prompts, 1)
        if (why := _unfit(renderer, limit, prompt)) is not None
    ]
    refuse_too_many(bad, len(prompts), study.rollouts.max_set_aside, "rollouts.sample.prompts")
    if sample.teacher in ("builtin", "student") and not sample.engine.elsewhere:
        check_prompts(renderer, prompts, sample.decoding.max_new_tokens, sample.engine.longest(room), "teacher")


def _unfit(renderer: Renderer, limit: Limit | None, prompt: str) -> str | None:
    """Why no rollout of a prompt can be learned from, or None."""
    why = renderer.unfit_prompt(prompt)
    if why is None and limit is not None and len(renderer.prompt_ids(prompt)) >= limit.tokens:
        return f"prompt longer than {limit}"
    return why


def _try_read(study: Study, stages: Sequence[str], folder: AnyPath, store: Store) -> Tried:
    check_max_tokens(study, context_length(read_config(folder)))
    readers = study.rollouts.read
    rows = chain.from_iterable(reader.rollouts() for reader in readers)
    whole = next(islice(rows, SAMPLE, None), None) is None
    if not whole:
        most = -(-SAMPLE // len(readers))
        few = tuple(each.model_copy(update={"limit": min(each.limit or most, most)}) for each in readers)
        study = study.model_copy(update={"rollouts": study.rollouts.model_copy(update={"read": few})})
    said, error = io.StringIO(), None
    progress = Progress(Console(file=said, width=10_000))
    context = StudyContext(store, in_process, progress, study=study)  # type: ignore[arg-type]
    student = Student("student", folder, None, study.student.model, _teacher(study, folder, store))
    if student.taught_by is not None and not store.has_folder(KIND, student.taught_by):
        stages = [stage for stage in stages if stage != "reference"]
    try:
        rollouts = provide_rollouts(context, student)
        foresee(context, student, rollouts, tuple(stages))
    except RaygeoError as found:
        error = found
    lines = tuple(line.strip() for line in said.getvalue().splitlines())
    if whole or not isinstance(error, DataError | None) or isinstance(error, UnusableError):
        return Tried(lines, error)
    return Tried((f"of the first {SAMPLE:,} rows alone:", *_indented([*lines, *str(error or "").splitlines()])))


def _indented(lines: Sequence[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _teacher(study: Study, folder: AnyPath, store: Store) -> str | None:
    """What stands for the key of the teacher that losses learn from; its configuration is in the ``store`` if it is
    here. None where the study names no teacher.
    """
    if study.teacher is None:
        return None
    model = folder if study.teacher.model == "student" else Path(study.teacher.model).expanduser()
    if (config := Path(model) / CONFIG).is_file():
        with store.making(KIND, "teacher") as made:
            shutil.copyfile(config, made / CONFIG)
    return "teacher"
