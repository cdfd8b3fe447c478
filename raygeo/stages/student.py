"""Stage 1: the student, and its teacher where it has one: made, fetched, or taken from an earlier study's run."""

import difflib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raygeo.cluster.remote import call
from raygeo.config import TEXT, WORD_PROBLEMS
from raygeo.errors import ConfigError, StudentError
from raygeo.rollouts.readers import read_prompts
from raygeo.settings import content_key
from raygeo.stages.context import Context
from raygeo.store import AnyPath, Store
from raygeo.students.builtin import make_base, make_teacher
from raygeo.students.loading import load_student
from raygeo.students.merge import merge_run
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
        ConfigError: the earlier run cannot be gone on from.
        StoreError: there is no earlier store.
    """
    settings, store = context.study.student, context.store
    if settings.from_run is not None and settings.from_store is not None:
        return _continued(context, settings.from_run, Store(settings.from_store, create=False))
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


def _continued(context: Context, name: str, earlier: Store) -> Student:
    """The student that the run ``name`` of an earlier study left: what it was trained from, its delta added.

    All that this study measures is relative to it: its deltas, paths and reference log-probabilities start there.
    """
    if earlier.location == context.store.location:
        raise ConfigError(
            f"student.from_store is this study's own store, {earlier.location}, whose table of runs will be this "
            "study's; give this study another store."
        )
    run = _finished_run(earlier, name)
    base, delta = earlier.stored(KIND, run["student"]), earlier.stored("deltas", run["key"])
    key = content_key("merged", run["student"], run["key"])
    _make(context, key, f"student from {name}", lambda folder, tick: merge_run(base, delta, folder))
    said = f"{name} of {earlier.location}, its delta added to the student it was trained from"
    return Student(key, context.store.stored(KIND, key), None, said)


def _finished_run(store: Store, name: str) -> dict[str, Any]:
    """The row of a finished run whose student and delta are in ``store``."""
    runs = {row["run"]: row for row in store.table("runs").to_pylist()}
    if name not in runs:
        near = difflib.get_close_matches(name, runs, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(runs) or 'none yet; run its study first'}."
        raise ConfigError(f"student.from_run {name!r} is no run of {store.location}; {hint}")
    run = runs[name]
    if run["status"] != "finished":
        raise ConfigError(
            f"student.from_run {name!r} of {store.location} has no weights to go on from: {run['status']}, "
            f"{run['reason'] or 'no reason was recorded'}. Choose a finished run."
        )
    if run["student"] is None:
        raise ConfigError(
            f"student.from_run {name!r}: {store.location} does not say which student it was trained from; "
            "run its study again with this version of raygeo."
        )
    for kind, key in ((KIND, run["student"]), ("deltas", run["key"])):
        if not store.has_folder(kind, key):
            missing = store.path(kind, key)
            raise ConfigError(f"student.from_run {name!r} needs {missing}; run its study again to make it.")
    return run


def provide_model(context: Context, model: str) -> str:
    """Put a local folder or a hub model into the store, and return its key: a hash of its files' contents."""
    source = find_model(model)
    key = hash_folder(source)
    context.count(0, 1)
    if not context.store.has_folder(KIND, key):
        load_student(source)
        link_folder(context.store, KIND, key, source)
    return key


def find_model(model: str) -> Path:
    """Folder of a model or adapter: the one named, which never touches the network, or that of a hub id, fetched.

    Raises:
        StudentError: there is no such folder, or it cannot be fetched.
    """
    source = Path(model).expanduser()
    if source.is_dir():
        return source
    if model.startswith(("/", ".", "~")) or model.count("/") != 1:
        raise StudentError(f"the model {model!r} is neither a folder nor a hub id (owner/name).")
    return _download(model)


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


def link_folder(store: Store, kind: str, key: str, source: Path) -> None:
    """Put the files of ``source`` into the store as ``<kind>/<key>``.

    A local store links them instead of copying gigabytes; a remote one gets a copy.
    """
    folder = store.scratch()
    for file in source.iterdir():
        if file.is_file():
            os.symlink(file.resolve(), folder / file.name)
    store.save_folder(kind, key, folder)


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
