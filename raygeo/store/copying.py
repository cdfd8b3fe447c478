"""A whole store copied to another place, in steps that can be taken up again, and seen to be what it was."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from raygeo.errors import BusyStoreError, StoreError
from raygeo.paths import without_credentials
from raygeo.store.contents import ARTIFACTS, DELTAS, LEASES, LOGS, MLFLOW, RAY, Contents, Item
from raygeo.store.files import SCRATCH
from raygeo.store.lease import find_lease, held
from raygeo.store.ledger import FOLDER as STUDIES
from raygeo.store.location import extended, is_uri, local_root, tracked_as
from raygeo.store.manifest import COMPLETE, Manifest, manifest_of
from raygeo.store.store import COPYING, Store
from raygeo.store.verification import Broken, broken

_LEFT_BEHIND = (SCRATCH, RAY)
_AFRESH = ("tables", STUDIES, LOGS, "")
"""What changes from one study to the next, and is copied anew whenever a copy is taken up again."""
_RUNS = ("tables", "runs.parquet")
_DELTA = re.compile(rf"/{DELTAS}/([^/?]+)(\?.*)?$")
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_LOCAL_ARTIFACTS = re.compile(rf"^(file:/+|/)(.*/)?{ARTIFACTS}(?=/|$)")
Tick = Callable[[Item], None]


def copy_store(
    source: Store,
    target: Store,
    *,
    wait: bool = False,
    say: Callable[[str], None] = print,
    tick: Tick = lambda item: None,
) -> list[Broken]:
    """Copy everything in ``source`` to ``target``, links followed; return what is broken in the copy, if anything is.

    A copy that was interrupted is taken up by the same call. MLflow's artifacts and the paths of deltas in the table
    ``runs`` lie in the copy.

    Raises:
        BusyStoreError: another process is at work on one of them, or was at work on ``source`` meanwhile.
        StoreError: ``target`` holds something else, or cannot be written, or ``source`` cannot be read.
    """
    check_copyable(source, target.location)
    _check_target(source, target)
    with held(target, f"copy of {source.shown}", wait=wait, say=say):
        _check_target(source, target)
        target.write_bytes(COPYING, json.dumps({"from": source.shown}).encode())
        contents, there = Contents(source), Contents(target)
        damaged = []
        for item in _in_order(contents):
            damaged += _copy(source, target, item, there)
            tick(item)
        _copy_database(source, target)
        _point_runs(source, target)
        _check_unused(source)
        if _files(Contents(source)) != _files(contents):
            raise BusyStoreError(
                f"the store {source.shown} was written to while it was copied, so the copy is not whole; the same "
                "command takes it up."
            )
        copied = Contents(target)
        found = [*damaged, *_lacking(contents, copied, {one.path for one in damaged}), *broken(copied)]
        if not found:
            target.filesystem.delete_file(target.path(COPYING))
    return found


def check_copyable(source: Store, to: str) -> None:
    """See that ``source`` may be copied to a place that need not be there yet.

    Raises:
        BusyStoreError: another process is at work on ``source``.
        StoreError: both are one place, or one is in the other, or ``to`` can be no place.
    """
    (here, on), (there, beside) = _folder(source.location), _folder(to)
    if on == beside and (here.startswith(there) or there.startswith(here)):
        shown = without_credentials(to)
        raise StoreError(f"{shown} and {source.shown} are one place or in each other; give another one.")
    _check_unused(source)


def _folder(location: str) -> tuple[str, str]:
    """A location as what the locations of all that is in it begin with, and the query that says where that is."""
    try:
        path, _, query = location.partition("?") if is_uri(location) else (str(local_root(location)), "", "")
    except ValueError as error:
        raise StoreError(f"{location!r} cannot be a store: {error}.") from error
    return f"{path.rstrip('/')}/", query


def _check_unused(source: Store) -> None:
    """See that nobody writes to ``source``. The copy takes no lease on it: that would keep its owner from working."""
    using = find_lease(source)
    if using is not None and not using.gone:
        raise BusyStoreError(
            f"the store {source.shown} is in use: {using.holder}. A copy of what is being written would not be whole; "
            "copy it when that has ended: what was copied before is kept."
        )


def _files(contents: Contents) -> dict[str, int]:
    """The files that are copied, and their sizes in bytes."""
    return {path: size for item in _in_order(contents) for path, size in item.files.items()}


def _check_target(source: Store, target: Store) -> None:
    """See that ``target`` is empty, or a copy of ``source`` that was begun."""
    listed = target.filesystem.get_file_info(fs.FileSelector(target.root))
    if all(info.base_name in (*LEASES, *_LEFT_BEHIND) for info in listed):
        return
    mark = target.read_bytes(COPYING)
    if mark is None:
        raise StoreError(f"{target.shown} already holds something; give a new place.")
    begun = json.loads(mark)["from"]
    if begun != source.shown:
        raise StoreError(f"{target.shown} holds a copy of {begun} that was begun; take that up, or give a new place.")


def _in_order(contents: Contents) -> Iterator[Item]:
    """What is copied: folders first, then units, and last what says that they are there."""
    wanted = [
        item
        for item in contents.items.values()
        if item.files and item.kind not in _LEFT_BEHIND and item.path not in (*LEASES, MLFLOW, COPYING)
        if not item.path.startswith(f"{MLFLOW}-")
    ]
    folders = {id(item) for item in contents.folders}
    yield from sorted(wanted, key=lambda i: (i.kind in _AFRESH, id(i) not in folders, not i.keys, i.path))


def _copy(source: Store, target: Store, item: Item, there: Contents) -> list[Broken]:
    """Copy an item unless it is there; a folder that is not what was once written is left out and returned."""
    known = there.items.get((item.kind, item.name))
    if item.complete:
        return _copy_folder(source, target, item, known is not None)
    for path, size in item.files.items():
        fresh = item.kind in _AFRESH and item.name != ARTIFACTS
        if fresh or known is None or known.files.get(path) != size:
            _copy_file(source, target, path)
    return []


def _copy_folder(source: Store, target: Store, item: Item, known: bool) -> list[Broken]:
    manifest = source.manifest(item.kind, item.name)
    assert manifest is not None
    if known:
        if (there := target.manifest(item.kind, item.name)) is not None and _same(there, manifest):
            return []
        target.delete_folder(item.kind, item.name)
    version = [manifest.version] if manifest.version else []
    with target.scratch_folder() as scratch:
        folder = scratch / "folder"
        folder.mkdir()
        with target.writing():
            fs.copy_files(source.path(item.kind, item.name, *version), str(folder), source_filesystem=source.filesystem)
        (folder / COMPLETE).unlink(missing_ok=True)
        made = manifest_of(folder)
        for name, size in manifest.sizes.items():
            if made.sizes.get(name) != size or made.digests[name] != manifest.digests.get(name, made.digests[name]):
                return [Broken(item.path, f"{name} is not what was written, so this folder was not copied")]
        target.save_folder(item.kind, item.name, folder)
    return []


def _same(one: Manifest, other: Manifest) -> bool:
    """Whether two folders hold the same, by their digests where both have them."""
    digests = all(one.digests.get(name, digest) == digest for name, digest in other.digests.items())
    return one.sizes == other.sizes and digests


def _copy_file(source: Store, target: Store, path: str) -> None:
    with target.scratch_folder() as folder:
        local = folder / "file"
        with target.writing():
            fs.copy_files(source.path(path), str(local), source_filesystem=source.filesystem)
        target.put_file(local, path)


def _lacking(contents: Contents, copied: Contents, but: set[str]) -> Iterator[Broken]:
    """What of a store a copy of it lacks."""
    folders = {id(item) for item in contents.folders}
    for item in _in_order(contents):
        there = copied.items.get((item.kind, item.name))
        if item.path in but or (item.kind, item.name) == _RUNS:
            continue
        if there is None or (id(item) in folders and item.complete and not there.complete):
            yield Broken(item.path, "it is missing from the copy")
        elif not item.complete:
            for path, size in item.files.items():
                if there.files.get(path) != size:
                    yield Broken(path, "it is not what it is in the store that was copied")


def _copy_database(source: Store, target: Store) -> None:
    """Copy MLflow's database: it names the store it lies in, and where that is local the artifacts beside it."""
    if source.filesystem.get_file_info(source.path(MLFLOW)).type != fs.FileType.File:
        return
    with target.scratch_folder() as folder:
        file = folder / MLFLOW
        with target.writing():
            try:
                if source.is_local:
                    with (
                        closing(sqlite3.connect(f"file:{source.path(MLFLOW)}?mode=ro", uri=True)) as before,
                        closing(sqlite3.connect(file)) as after,
                    ):
                        before.backup(after)
                else:
                    fs.copy_files(source.path(MLFLOW), str(file), source_filesystem=source.filesystem)
                with closing(sqlite3.connect(file)) as database:
                    relocate(database, _known_as(database, source), target)
                    database.commit()
            except sqlite3.Error as error:
                raise _unusable(source, error) from error
        target.put_file(file, MLFLOW)


def point_artifacts(store: Store) -> None:
    """Let MLflow's database in a local store name the artifacts beside it, wherever the store lay before.

    Raises:
        StoreError: there is no database, or it is damaged or cannot be written.
    """
    if store.filesystem.get_file_info(store.path(MLFLOW)).type != fs.FileType.File:
        raise StoreError(
            f"nothing of {store.shown} was logged to MLflow here: a study is as it runs, a comparison is not. "
            "`raygeo show` prints what a store holds, and report.html is its page."
        )
    try:
        with closing(sqlite3.connect(store.path(MLFLOW))) as database:
            relocate(database, store.shown, store)
            database.commit()
    except sqlite3.Error as error:
        raise _unusable(store, error) from error


def _unusable(store: Store, error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"{store.path(MLFLOW)} cannot be used: {error}. If another process holds it, end that; if it is damaged, "
        "move it away: the same study logs everything anew."
    )


def relocate(database: sqlite3.Connection, before: str, target: Store) -> None:
    """Let MLflow's database name what lies in ``target``: the weights and data of the store that was ``before``, its
    study, and in a local store its artifacts.

    A second call changes nothing.
    """
    if target.is_local:
        _point_artifacts(database, Path(target.path(ARTIFACTS)).as_uri())
    if before != target.shown:
        _rename(database, before, target.shown)


def _point_artifacts(database: sqlite3.Connection, beside: str) -> None:
    for table, column in _LOCATIONS:
        if not _has(database, table, column):
            continue
        for row, value in database.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
            moved = _LOCAL_ARTIFACTS.sub(lambda found: beside, value or "", count=1)
            if moved != (value or ""):
                database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (moved, row))


def _rename(database: sqlite3.Connection, before: str, after: str) -> None:
    if _has(database, "tags", "value"):
        now = (tracked_as(after), tracked_as(before))
        database.execute("UPDATE tags SET value = ? WHERE key = 'raygeo.key' AND value = ?", now)
    if _has(database, "logged_model_tags", "tag_value"):
        query = "SELECT rowid, tag_value FROM logged_model_tags WHERE tag_key = 'raygeo.weights'"
        for row, weights in database.execute(query).fetchall():
            delta = _DELTA.search(weights)
            if delta and weights == extended(before, f"/{DELTAS}/{delta[1]}"):
                moved = extended(after, f"/{DELTAS}/{delta[1]}")
                database.execute("UPDATE logged_model_tags SET tag_value = ? WHERE rowid = ?", (moved, row))
    if _has(database, "datasets", "dataset_source"):
        places = [json.dumps({"uri": place}) for place in (after, before)]
        database.execute("UPDATE datasets SET dataset_source = ? WHERE dataset_source = ?", places)


def _known_as(database: sqlite3.Connection, source: Store) -> str:
    """Where a database says that the store is which it lies in: for an object store perhaps with another query, or,
    copied there by an earlier version, where it lay before.
    """
    if not _has(database, "tags", "value"):
        return source.shown
    query = "SELECT DISTINCT value FROM tags WHERE key = 'raygeo.key' AND value LIKE 'study:%'"
    named = [value.removeprefix("study:") for (value,) in database.execute(query)]
    if source.is_local or source.shown in named:
        return source.shown
    found = [place for place in named if place.partition("?")[0] == source.shown.partition("?")[0]] or named
    return found[0] if len(found) == 1 else source.shown


def _has(database: sqlite3.Connection, table: str, column: str) -> bool:
    return column in [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _point_runs(source: Store, target: Store) -> None:
    """Let the copied table of runs name the deltas that lie beside it."""
    if not source.has_table("runs"):
        return
    rows = source.table("runs")
    found = [_DELTA.search(path or "") for path in rows["delta"].to_pylist()]
    paths = [extended(target.shown, f"/{DELTAS}/{match[1]}") if match else None for match in found]
    place = rows.schema.get_field_index("delta")
    moved = rows.set_column(place, rows.schema.field(place), pa.array(paths, rows.schema.field(place).type))
    target.publish_rows("runs", moved, source.revisions("runs"))
