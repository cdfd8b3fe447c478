"""What can go from a store: what killed writers left, what no study needs, and what somebody names."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from raygeo.errors import ConfigError
from raygeo.nearest import hint
from raygeo.store.contents import CHECKPOINTS, DELTAS, JOURNALS, RAY, SNAPSHOTS, Contents, Item
from raygeo.store.files import SCRATCH
from raygeo.store.ledger import FOLDER, Ledger
from raygeo.store.manifest import COMPLETE
from raygeo.store.process import is_alive, machine
from raygeo.store.store import Store

_OWN_TABLES = ("runs", "training_curves")
_OWN_FILES = ("study.yaml", "comparison.yaml", "report.html", "report.json")
COMPARISON = "comparison"
"""What a comparison is called among the studies of a store."""


@dataclass(frozen=True)
class Removal:
    """Something that is to go, and why."""

    item: Item
    why: str
    files: tuple[str, ...] = ()
    """The files of it that go; all of them if none is named."""

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(self.item.files[path] for path in self.files) if self.files else self.item.size


def left_overs(contents: Contents) -> list[Removal]:
    """What killed writers left, while no one else writes to the store."""
    removals = [Removal(item, "a write that did not end") for item in contents.of(SCRATCH) if not _in_use(item)]
    removals += [Removal(item, "Ray's notes on a training that ended") for item in contents.of(RAY)]
    finished = set.intersection(*(contents.finished(table) for table in _OWN_TABLES))
    newest: dict[str, str] = {}
    for item in contents.of(CHECKPOINTS):
        if item.complete:
            key = item.name.rpartition("-")[0]
            newest[key] = max(newest.get(key, ""), item.name)
    needed = {key for ledger in contents.studies.values() for keys in ledger.folders.values() for key in keys}
    for item in contents.folders:
        key = item.name.rpartition("-")[0]
        if ".tmp" in item.name:
            removals.append(Removal(item, "a write that did not end"))
        elif item.kind == CHECKPOINTS and key in finished:
            removals.append(Removal(item, "a checkpoint of a run that is trained"))
        elif item.kind == CHECKPOINTS and item.name < newest.get(key, ""):
            removals.append(Removal(item, "a checkpoint before the newest"))
        elif not item.complete and item.kind != CHECKPOINTS and item.name not in needed and contents.studies:
            removals.append(Removal(item, "a folder that is incomplete"))
        elif item.complete:
            removals += _other_versions(contents, item)
    units = {key for item in contents.units for key in item.keys}
    removals += [Removal(i, "the journal of a unit that is finished") for i in contents.of(JOURNALS) if i.name in units]
    return removals


def _in_use(item: Item) -> bool:
    """Whether the process that makes something in ``scratch/`` is one of this machine and alive."""
    by, _, rest = item.name.partition("-")
    pid = rest.partition("-")[0]
    return by == machine() and pid.isdigit() and is_alive(int(pid))


def _other_versions(contents: Contents, item: Item) -> list[Removal]:
    """Files of a complete folder in an object store that belong to a version of it that is not the one which counts."""
    if contents.store.is_local:
        return []
    manifest = contents.store.manifest(item.kind, item.name)
    if manifest is None or not manifest.version:
        return []
    kept = (f"{item.path}/{manifest.version}/", f"{item.path}/{COMPLETE}")
    files = tuple(path for path in item.files if not path.startswith(kept))
    return [Removal(item, "another process's files of the same folder", files)] if files else []


def unneeded(contents: Contents) -> tuple[list[Removal], str]:
    """Units and folders that no study in the store needs; where that cannot be known, none, and the reason."""
    studies = contents.studies
    if not studies:
        return [], "what studies need was not noted in this store: run its study once more, and what it needs is kept"
    ended = {ledger.name for ledger in studies.values() if ledger.whole}
    if others := sorted(set(studies) - ended):
        return [], (
            f"{', '.join(others)} did not come to an end, so what it needs is not known: run it to its end, or remove "
            f"it (raygeo store rm STORE {others[0]!r})"
        )
    return _beyond(contents, studies.values()), ""


def _beyond(contents: Contents, studies: Iterable[Ledger]) -> list[Removal]:
    """What none of these ``studies`` needs."""
    units, folders = _needs(studies)
    removals = [
        Removal(item, "no study needs it")
        for item in contents.units
        if not units[item.kind.removeprefix("units/")] & set(item.keys)
    ]
    gone = {key for removal in removals for key in removal.item.keys}
    return removals + [
        Removal(item, "no study needs it")
        for item in contents.folders
        if item.kind != CHECKPOINTS and item.name not in folders[item.kind] and (item.complete or item.name in gone)
    ]


def _needs(studies: Iterable[Ledger]) -> tuple[defaultdict[str, set[str]], defaultdict[str, set[str]]]:
    units: defaultdict[str, set[str]] = defaultdict(set)
    folders: defaultdict[str, set[str]] = defaultdict(set)
    for ledger in studies:
        for table, keys in ledger.units.items():
            units[table] |= keys
        for kind, keys in ledger.folders.items():
            folders[kind] |= keys
    return units, folders


def named(contents: Contents, what: str) -> list[Removal]:
    """What goes with ``what``: a run, a study, a kind of folder or a table of units.

    Raises:
        ConfigError: there is nothing of that name.
    """
    runs = {row["run"]: row["key"] for row in contents.store.table("runs").to_pylist() if row["key"]}
    kinds = {item.kind for item in (*contents.units, *contents.folders, *contents.of(JOURNALS))}
    if what in runs:
        return _of_run(contents, what, runs[what])
    if what in contents.studies:
        return _of_study(contents, what)
    if what in kinds or f"units/{what}" in kinds:
        tables = {what, f"units/{what}"} & kinds
        return [Removal(item, f"{item.kind} were named") for item in contents.items.values() if item.kind in tables]
    known = [*runs, *contents.studies, *sorted(kind.removeprefix("units/") for kind in kinds)]
    said = hint(what, known, "there are")
    raise ConfigError(f"{what!r} is no run, study or kind in {contents.store.shown}; {said}")


def _of_run(contents: Contents, name: str, key: str) -> list[Removal]:
    """The weights, checkpoints and record of a run; what was measured of it stays."""
    found = [item for item in contents.folders if item.kind in (DELTAS, SNAPSHOTS) and item.name == key]
    found += [item for item in contents.of(CHECKPOINTS) if item.name.rpartition("-")[0] == key]
    found += [item for table in _OWN_TABLES for item in contents.of(f"units/{table}") if item.keys == (key,)]
    return [Removal(item, f"of the run {name}") for item in found]


def _of_study(contents: Contents, name: str) -> list[Removal]:
    """A study's ledger, and what it names that no other study needs; of an only one, all there is.

    Its tables and its page go too, if the store holds them.
    """
    ledger = contents.studies[name]
    others = [other for other in contents.studies.values() if other.name != name]
    units, folders = _needs([ledger])
    removals = [
        removal
        for removal in _beyond(contents, others)
        if (not ledger.whole and not others)
        or set(removal.item.keys) & units[removal.item.kind.removeprefix("units/")]
        or removal.item.name in folders[removal.item.kind]
    ]
    own = [item for item in contents.of(FOLDER) if item.path == ledger.file]
    if current_study(contents.store) == name:
        own += [*contents.of("tables"), *(item for item in contents.of("") if item.name in _OWN_FILES)]
    return [Removal(item, f"of the study {name}") for item in (*(removal.item for removal in removals), *own)]


def current_study(store: Store) -> str | None:
    """The name of the study, or ``COMPARISON``, whose tables and page the store holds."""
    study = store.read_bytes("study.yaml")
    try:
        found = yaml.safe_load(study or b"")
    except yaml.YAMLError:
        found = None
    if isinstance(found, dict):
        return str(found.get("name"))
    return COMPARISON if study is None and store.read_bytes("comparison.yaml") is not None else None


def remove(store: Store, removals: Sequence[Removal]) -> None:
    """Remove these, units before folders, so that no unit is left whose files are gone.

    Raises:
        StoreError: something cannot be removed.
    """
    for removal in sorted(removals, key=lambda removal: not removal.item.keys):
        item = removal.item
        with store.writing(store.path(item.path)):
            if removal.files or list(item.files) == [item.path]:
                for path in removal.files or item.files:
                    store.filesystem.delete_file(store.path(path))
            elif item.kind == SCRATCH:
                store.filesystem.delete_dir(store.path(item.path))
            else:
                store.delete_folder(item.kind, item.name)


def clear_scratch(store: Store) -> None:
    """Remove from ``scratch/`` what processes of this machine that are gone have left."""
    folder = Path(store.root) / SCRATCH
    if not store.is_local or not folder.is_dir():
        return
    mine = [name for name in os.listdir(folder) if name.startswith(f"{machine()}-")]
    left = [Item(SCRATCH, name, {f"{SCRATCH}/{name}": 0} if (folder / name).is_file() else {}) for name in mine]
    remove(store, [Removal(item, "") for item in left if not _in_use(item)])
