"""Stage 1: the student, and its teacher where it has one: made, fetched or linked into the store."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygeo.cluster.remote import call
from raygeo.config import TEXT, WORD_PROBLEMS
from raygeo.errors import StudentError
from raygeo.rollouts.readers import read_prompts
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.store import AnyPath, Store
from raygeo.students.builtin import make_base, make_teacher
from raygeo.students.loading import load_student
from raygeo.students.text import make_text_student

KIND = "students"


@dataclass(frozen=True)
class Student:
    """A student in the store; ``teacher`` is the key of the built-in teacher that comes with it, if any."""

    key: str
    folder: AnyPath
    teacher: str | None
    description: str


def provide_student(context: Context) -> Student:
    """Make, fetch or link the study's student.

    Raises:
        StudentError: the model cannot be found, loaded, or given a tokenizer.
    """
    settings, store = context.study.student, context.store
    if settings.model == WORD_PROBLEMS:
        recipe = settings.word_problems
        key = content_key("word-problems", recipe.model_dump(mode="json", exclude={"teacher"}))
        _make(context, key, "base student", lambda folder, tick: make_base(recipe, folder, tick))
        teacher = content_key("word-problems-teacher", key, recipe.teacher)
        if context.study.rollouts.sample is not None and context.study.rollouts.sample.teacher == "builtin":
            base = store.stored(KIND, key)
            _make(context, teacher, "teacher", lambda folder, tick: make_teacher(recipe, base, folder, tick))
        return Student(key, store.stored(KIND, key), teacher, f"{WORD_PROBLEMS}, made here")
    if settings.model == TEXT:
        texts = [(p.prompt, p.solution or p.gold) for reader in settings.text_from for p in read_prompts(reader)]
        recipe_text = settings.text
        key = content_key("text", recipe_text, hashlib.sha256(repr(texts).encode()).hexdigest())
        _make(context, key, "base student", lambda folder, tick: make_text_student(recipe_text, texts, folder, tick))
        return Student(key, store.stored(KIND, key), None, f"made here from {len(texts)} problems with solutions")
    key = provide_model(context, settings.model)
    return Student(key, store.stored(KIND, key), None, settings.model)


def provide_model(context: Context, model: str) -> str:
    """Put a local folder or a hub model into the store, and return its key: a hash of its files' contents."""
    source = Path(model).expanduser()
    if not source.is_dir():
        if model.startswith(("/", ".", "~")) or model.count("/") != 1:
            raise StudentError(f"the model {model!r} is neither a folder nor a hub id (owner/name).")
        source = _download(model)
    key = hash_folder(source)
    context.count(0, 1)
    if not context.store.has_folder(KIND, key):
        load_student(source)
        _link(source, context.store, key)
    return key


def hash_folder(folder: Path) -> str:
    """16 hex digits of SHA-256 over the names and contents of the model and tokenizer files in ``folder``."""
    digest = hashlib.sha256()
    for file in sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".model", ".txt", ".jinja")
    ):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise StudentError(f"the model {model!r} cannot be fetched from the hub: {error}") from error


def _link(source: Path, store: Store, key: str) -> None:
    """A local store links the model's files instead of copying gigabytes; a remote one gets a copy."""
    folder = store.scratch()
    for file in source.iterdir():
        if file.is_file():
            os.symlink(file.resolve(), folder / file.name)
    store.save_folder(KIND, key, folder)


def _make(context: Context, key: str, what: str, make: Callable[[Path, Any], None]) -> None:
    """Make a model where the cluster has room for it, unless the store has it."""
    store, settings = context.store, context.study.student
    if store.has_folder(KIND, key):
        context.count(0, 1)
        return

    def work(tick: Callable[[int, int, str], None]) -> None:
        folder = store.scratch()
        make(folder, lambda step, total, loss: tick(step, total, f"loss {loss:.3f}"))
        load_student(folder)
        store.save_folder(KIND, key, folder)

    call(work, what, context.progress, cpus=settings.cpus, gpus=settings.gpus)
    context.count(1, 0)
