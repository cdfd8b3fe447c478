"""Stage 1: the student, and its teacher where it has one: made, fetched, or taken from an earlier study's run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygeo.cluster.nodes import are_several
from raygeo.cluster.remote import call
from raygeo.data.readers import read_prompts
from raygeo.data.teacher import refuse_other_tokens
from raygeo.errors import ConfigError, StudentError
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.attention import check_attention
from raygeo.models.checkpoint import is_model
from raygeo.models.folder import SUFFIXES, check_links, weight_files
from raygeo.models.hub import find_model, here
from raygeo.models.loading import load_tokenizer, read_config
from raygeo.models.merge import merge_run
from raygeo.models.parameters import CONVERTED, INDEX, REVISION, index_parameters, save_index
from raygeo.models.soundness import check_student
from raygeo.pipeline.config import GYM, TAUGHT, TEXT, WORD_PROBLEMS, StudentSettings, Study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.precomputed import is_taken, take_folder
from raygeo.pipeline.problems import made_config
from raygeo.pipeline.published import KIND, continued_from, finished_run
from raygeo.settings import content_key
from raygeo.store import AnyPath, Store
from raygeo.toy.builtin import make_base, make_teacher
from raygeo.toy.gym.problems import gym_version
from raygeo.toy.gym.student import REVISION as GYM_REVISION
from raygeo.toy.gym.student import make_gym_base, make_gym_teacher
from raygeo.toy.pretrain import REVISION as PRETRAINING
from raygeo.toy.text import make_text_student
from raygeo.training.fitness import check_trainable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_PLAIN = f"{PlainRenderer.identity}-{PlainRenderer.revision}"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
"""Names that cannot be mistaken for digests where both are hashed one after the other."""


@dataclass(frozen=True)
class Student:
    """A student in the store; ``teacher`` is the key of the built-in teacher that comes with it, if any."""

    key: str
    folder: AnyPath
    teacher: str | None
    description: str
    taught_by: str | None = None
    """The key of the model in the store that losses learn from, if the study names one and a loss does."""


def provide_student(context: StudyContext) -> Student:
    """Make, fetch or link the study's student, and the teacher that its losses learn from.

    Raises:
        StudentError: as ``_provided``; or the teacher cannot be used, or has another tokenizer.
        ConfigError: as ``_provided``.
        StoreError: as ``_provided``.
    """
    student, settings = _provided(context), context.study.teacher
    if settings is None or not any("teacher" in spec.needs for spec in context.study.plan.points()):
        return student
    if settings.model == "builtin" and student.teacher is not None:
        key = student.teacher
    elif settings.model == "student":
        key = student.key
    else:
        key = provide_model(context, settings.model)
    teacher = context.store.stored(KIND, key)
    refuse_other_tokens(load_tokenizer(student.folder), load_tokenizer(teacher), settings.model)
    return replace(student, taught_by=key)


def check_fitting(study: Study, configuration: Callable[[], PreTrainedConfig]) -> None:
    """Refuse what a student of this configuration, which is read if need be, cannot have of what the study wants.

    Raises:
        StudentError: as ``check_trainable``; or it cannot be held with the attention that is named.
    """
    check_trainable(configuration, [spec.training for spec in study.plan.points()])
    if study.student.attn_implementation is not None:
        check_attention(configuration(), study.student.attn_implementation)


def check_models(study: Study) -> None:
    """Refuse models that the study names and that are neither hub ids nor folders here with weights that are read.

    Raises:
        StudentError: as ``here`` and ``weight_files``.
    """
    student, sample = study.student, study.rollouts.sample
    made = student.model in (*TAUGHT, TEXT) or student.from_run is not None
    named = [] if made else [student.model]
    teachers = [each.model if (each := study.teacher) is not None else "builtin"]
    teachers += ["builtin" if sample is None or sample.engine.elsewhere else sample.teacher]
    for model in [*named, *(each for each in teachers if each not in ("builtin", "student"))]:
        if (folder := here(model)) is not None:
            weight_files(folder)


def _provided(context: StudyContext) -> Student:
    """Make, fetch or link the study's student.

    Raises:
        StudentError: the model cannot be found, loaded, given a tokenizer, or used; or a run's adapters do not fit it,
            which is known before it is made.
        ConfigError: the earlier run cannot be continued from.
        StoreError: there is no earlier store.
    """
    settings, store = context.study.student, context.store
    check_fitting(context.study, lambda: _configuration(settings))
    if settings.from_run is not None and settings.from_store is not None:
        return _continued(context, settings.from_run, Store(settings.from_store, create=False))
    if settings.model == WORD_PROBLEMS:
        recipe = settings.word_problems
        key = content_key("word-problems", PRETRAINING, _PLAIN, recipe.model_dump(mode="json", exclude={"teacher"}))
        teacher = content_key("word-problems-teacher", key, recipe.teacher)
        return _taught(context, key, teacher, partial(make_base, recipe), partial(make_teacher, recipe))
    if settings.model == GYM:
        gym = settings.gym
        made_with = (GYM_REVISION, gym_version(), PRETRAINING, _PLAIN)
        key = content_key("reasoning-gym", made_with, gym.keyed)
        teacher = content_key("reasoning-gym-teacher", key, gym.teacher)
        return _taught(context, key, teacher, partial(make_gym_base, gym), partial(make_gym_teacher, gym))
    if settings.model == TEXT:
        texts = [(p.prompt, p.solution or p.gold) for reader in settings.text_from for p in read_prompts(reader)]
        recipe_text = settings.text
        key = content_key("text", PRETRAINING, _PLAIN, recipe_text, hashlib.sha256(repr(texts).encode()).hexdigest())
        _make(context, key, "base student", lambda folder, tick: make_text_student(recipe_text, texts, folder, tick))
        return Student(key, store.stored(KIND, key), None, f"made here from {len(texts)} problems with solutions")
    key = provide_model(context, settings.model)
    return Student(key, store.stored(KIND, key), None, settings.model)


def _taught(
    context: StudyContext,
    key: str,
    teacher: str,
    make_base: Callable[..., None],
    make_teacher: Callable[..., None],
) -> Student:
    """A student that is made here, and its teacher where the study samples or learns from it."""
    _make(context, key, "base student", lambda folder, tick: make_base(folder, tick))
    study, base = context.study, context.store.stored(KIND, key)
    sample = study.rollouts.sample
    sampled = sample is not None and sample.teacher == "builtin" and not sample.engine.elsewhere
    if sampled or (study.teacher is not None and study.teacher.model == "builtin"):
        _make(context, teacher, "teacher", lambda folder, tick: make_teacher(base, folder, tick))
    origin = "comes with raygeo" if is_taken(context.store, KIND, key) else "made here"
    return Student(key, base, teacher, f"{study.student.model}, {origin}")


def _configuration(settings: StudentSettings) -> PreTrainedConfig:
    """The configuration of the student to be, but for the vocabulary of one made from text."""
    if (earlier := continued_from(settings)) is not None:
        return read_config(earlier)
    if settings.model in (*TAUGHT, TEXT):
        return made_config(settings)
    return read_config(find_model(settings.model))


def _continued(context: StudyContext, name: str, earlier: Store) -> Student:
    """The student that the run ``name`` of an earlier study left: what it was trained from, its delta added.

    All that this study measures is relative to it: its deltas, paths and reference log-probabilities start there.
    """
    if earlier.location == context.store.location:
        raise ConfigError(
            f"student.from_store is this study's own store, {earlier.location}, whose table of runs will be this "
            "study's; give this study another store."
        )
    run = finished_run(earlier, name, f"student.from_run {name!r}")
    base, delta = earlier.stored(KIND, run["student"]), earlier.stored("deltas", run["key"])
    key = continued_key(run["student"], run["key"])
    _make(context, key, f"student from {name}", lambda folder, tick: merge_run(base, delta, folder))
    said = f"{name} of {earlier.location}, its delta added to the student it was trained from"
    return Student(key, context.store.stored(KIND, key), None, said)


def continued_key(student_key: str, run_key: str) -> str:
    """Key of the student that the run ``run_key`` leaves, which was trained from ``student_key``."""
    return content_key("merged", student_key, run_key)


def provide_continued(context: StudyContext, student: Student, trainings: Sequence[str], name: str) -> Student:
    """The student that ``trainings`` of this store leave, by key, of which the first was trained from ``student`` and
    each other from where the one before it ended; ``name`` is that of the last.
    """
    store, key = context.store, student.key
    for training in trainings:
        key = continued_key(key, training)
    first, *later = (store.stored("deltas", training) for training in trainings)
    _make(context, key, f"student after {name}", lambda folder, tick: merge_run(student.folder, first, folder, *later))
    return replace(student, key=key, folder=store.stored(KIND, key), description=f"what {name} left")


def provide_model(context: StudyContext, model: str) -> str:
    """Put a local folder or a hub model into the store, and return its key: a hash of its files' contents."""
    source = find_model(model)
    key = hash_folder(source)
    context.count(0, 1)
    if not context.store.has_folder(KIND, key):
        link_folder(context.store, KIND, key, source, check_student(source))
    hold_files(context.store, KIND, key)
    return key


def hash_folder(folder: Path) -> str:
    """16 hex digits of SHA-256 over the names and contents of all files in ``folder`` that a model is made of.

    Raises:
        StudentError: its index names weights that are not safetensors in the folder; or a file is a link out of it, is
            no ordinary file, or has a name that the files of models do not have.
    """
    digest = hashlib.sha256(f"{REVISION} ".encode())
    names = model_files(folder)
    check_links(folder, names)
    for name in names:
        digest.update(name.encode())
        with (folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def model_files(folder: Path) -> list[str]:
    """Paths within ``folder`` of all that a model, adapter or delta and its tokenizer are read from, sorted."""
    found = {p.name for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES}
    weights = set(weight_files(folder).values()) if is_model(folder) else set()
    missing = sorted(name for name in weights if not (folder / name).is_file())
    if missing:
        raise StudentError(f"{folder} lacks {', '.join(missing[:3])}, which its index names; fetch the model again.")
    if odd := sorted(name for name in found | weights if _NAME.fullmatch(name) is None):
        raise StudentError(
            f"{folder} holds {odd[0]!r}; the files of models have names of letters, digits, '.', '_' and '-' alone. "
            "Rename it, or take it out."
        )
    return sorted((found | weights) - {INDEX, CONVERTED})


def link_folder(store: Store, kind: str, key: str, source: Path, model: PreTrainedModel | None = None) -> None:
    """Put the files of ``source`` into the store as ``<kind>/<key>``, those of a model with an index of its parameters.

    ``model`` is what is loaded from it, if it is (``index_parameters``).

    A local store links them instead of copying gigabytes; a remote one gets a copy.
    """
    with store.making(kind, key) as folder:
        for name in model_files(source):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink((source / name).resolve(), folder / name)
        if is_model(source) and (source / "config.json").is_file():
            save_index(index_parameters(source, folder, model), folder)


def hold_files(store: Store, kind: str, key: str) -> None:
    """Replace links in a folder of a local store by files, where there are nodes that may not see what they lead to.

    Files on the store's file system are linked hard, others are copied.
    """
    if not store.is_local or not are_several():
        return
    for file in Path(store.path(kind, key)).rglob("*"):
        if file.is_symlink():
            staged = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
            with store.writing(str(file)):
                try:
                    os.link(file.resolve(), staged)
                except OSError:
                    shutil.copyfile(file, staged)
                os.replace(staged, file)


def _make(context: StudyContext, key: str, what: str, make: Callable[[Path, Any], None]) -> None:
    """Make a model where the cluster has room for it, unless the store has it or it comes with raygeo."""
    store, settings = context.store, context.study.student
    if store.has_folder(KIND, key):
        context.count(0, 1)
        return
    if take_folder(store, KIND, key):
        context.progress.say(f"  {what}: comes with raygeo")
        context.count(0, 1)
        return

    def work(tick: Callable[[int, int, str], None]) -> None:
        with store.making(KIND, key) as folder:
            make(folder, lambda step, total, loss: tick(step, total, f"loss {loss:.3f}"))
            save_index(index_parameters(folder, folder, check_student(folder)), folder)

    call(work, what, context.progress, cpus=settings.cpus, gpus=settings.gpus)
    context.count(1, 0)
