"""How far a study or comparison has come, kept in its store, so that its page can be written whatever ends it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

import yaml
from pydantic import TypeAdapter

from raygeo.errors import StoreError
from raygeo.paths import without_credentials
from raygeo.pipeline.config import own_asked
from raygeo.pipeline.context import StageContext, reason, timed_stage
from raygeo.pipeline.missing import forget_missing, note_missing
from raygeo.pipeline.written import read_yaml
from raygeo.progress import Progress, StageTime
from raygeo.report.page import PageContext
from raygeo.store import Store

ABOUT = "report.json"
STUDY, COMPARISON = "study.yaml", "comparison.yaml"
_ABOUT = TypeAdapter(PageContext)
COMPARED = "Models that were fine-tuned from one base are compared by their weights."
"""The purpose of a comparison."""


class Standing:
    """What the page of a study says besides its tables, written anew as its stages end.

    Of stages that an earlier call with the same settings brought to an end, it is known that they have ended until they
    begin again; likewise what was missing of them.
    """

    def __init__(self, store: Store, about: PageContext, times: list[StageTime], progress: Progress):
        self.store, self.about, self.times, self.progress = store, about, times, progress
        before = read_about(store)
        if before is not None and before.settings_yaml == about.settings_yaml:
            self.about = replace(about, student=before.student, timings=before.timings)
        else:
            forget_missing(store)
        self.note()
        for time in times:
            self._end(time)

    @contextmanager
    def stage(self, name: str, context: StageContext) -> Iterator[None]:
        """Announce a stage and time it; note when it has ended, or why it could not."""
        forget_missing(self.store, name)
        self.note(timings=[timing for timing in self.about.timings if timing[0] != name])
        try:
            with timed_stage(name, self.times, self.progress, context):
                yield
        except Exception as error:
            with suppress(StoreError):
                note_missing(self.store, name, f"the stage {name}", reason(error))
            raise
        if name in self.about.stages:
            self._end(self.times[-1])

    def _end(self, time: StageTime) -> None:
        others = [timing for timing in self.about.timings if timing[0] != time.stage]
        ended = [*others, (time.stage, time.seconds, time.made, time.reused)]
        places = {stage: place for place, stage in enumerate(self.about.stages)}
        self.note(timings=sorted(ended, key=lambda timing: places.get(timing[0], -1)))

    def note(self, **known: Any) -> None:
        """Note what is known now."""
        self.about = PageContext(**_shown(asdict(replace(self.about, created=now(), **known))))
        self.store.write_bytes(ABOUT, json.dumps(asdict(self.about), indent=1).encode())


def _shown(value: Any) -> Any:
    """Plain data whose texts have lost the credentials of their URIs."""
    if isinstance(value, dict):
        return {name: _shown(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_shown, value))
    return without_credentials(value) if isinstance(value, str) else value


def now() -> str:
    """The time of a page."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_about(store: Store) -> PageContext | None:
    """What was noted last; None if nothing was, or if it cannot be read."""
    written = store.read_bytes(ABOUT)
    try:
        noted = json.loads(written or b"null")
        known = {field.name for field in fields(PageContext)}
        return _ABOUT.validate_python({name: _shown(value) for name, value in noted.items() if name in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def known_about(store: Store) -> PageContext:
    """What was noted last; of a store where nothing was, what its settings say.

    Raises:
        NoStoreError: it holds neither a study nor a comparison.
    """
    about = read_about(store)
    if about is not None:
        return about
    study, comparison = store.read_bytes(STUDY), store.read_bytes(COMPARISON)
    if study is None and comparison is None and not store.names():
        raise store.unused()
    settings = without_credentials((study or comparison or b"").decode(errors="replace"))
    raw = _plain(settings)
    compared = study is None and comparison is not None
    about = PageContext(
        title=str(raw.get("name") or store.shown.rstrip("/").rpartition("/")[2]),
        student=f"Base: {raw.get('base')}" if compared else _model(raw.get("student")),
        reference_run=str(raw.get("reference_run") or ""),
        created=now(),
        settings_yaml=settings,
        caveats=[
            f"{ABOUT} of the store is missing or damaged, so it is not known which stages came to an end, with what "
            "versions, and how long they took."
        ],
    )
    return replace(about, purpose=COMPARED) if compared else about


def own_analyses(store: Store) -> tuple[str, ...]:
    """What the study or comparison asks for as ``module:name`` under ``geometry``."""
    settings = store.read_bytes(STUDY) or store.read_bytes(COMPARISON) or b""
    return own_asked(_plain(settings.decode(errors="replace")).get("geometry"))


def _plain(settings: str) -> dict[str, Any]:
    try:
        raw = read_yaml(settings)
    except yaml.YAMLError:
        raw = None
    return raw if isinstance(raw, dict) else {}


def _model(student: Any) -> str:
    return str(student.get("model") or "") if isinstance(student, dict) else ""


def made_page(store: Store) -> str | None:
    """The settings of the study or comparison of which the store holds all stages, complete or not; None if of none."""
    about = read_about(store)
    if about is None or set(about.stages) - {stage for stage, *_ in about.timings}:
        return None
    return about.settings_yaml
