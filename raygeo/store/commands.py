"""``raygeo store ls | rm | gc | verify | copy``: what is in a store, printed, and kept in order."""

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raygeo.plain import as_json
from raygeo.store.cleaning import Removal, current_study, left_overs, named, remove, unneeded
from raygeo.store.contents import CHECKPOINTS, DELTAS, MLFLOW, SNAPSHOTS, Contents, Item
from raygeo.store.copying import check_copyable, copy_store
from raygeo.store.lease import find_lease, held
from raygeo.store.store import Store
from raygeo.store.verification import broken

_DAY = 86400


def list_store(store: Store, console: Console | None = None, *, json: bool = False) -> None:
    """Print what a store holds: its lease, studies, runs, and how many of each kind, how large and how old."""
    console = console or Console()
    found = listing(store)
    if json:
        console.print(as_json(found), markup=False, highlight=False, soft_wrap=True)
        return
    said = found["lease"] or "nobody is writing to it"
    console.print(Text(f"{found['store']}: {_size(found['bytes'])}; {said}\n"))
    if found["studies"]:
        table = _table("study", "needs", "", right=1)
        for study in found["studies"]:
            notes = [*([] if study["whole"] else ["not at its end"]), *(["its tables are here"] * study["current"])]
            table.add_row(Text(study["study"]), f"{study['needs']:,}", "; ".join(notes))
        console.print(table)
    if found["runs"]:
        table = _table("run", "status", "weights", "snapshots", "checkpoint", right=2)
        for run in found["runs"]:
            table.add_row(
                Text(run["run"]), run["status"], *(_size(run[kind]) for kind in (DELTAS, SNAPSHOTS, CHECKPOINTS))
            )
        console.print(table)
    table = _table("kind", "number", "size", "newest", "oldest", right=1)
    for kind in found["kinds"]:
        ages = (_age(kind[which]) for which in ("newest", "oldest"))
        table.add_row(kind["kind"] or "single files", f"{kind['number']:,}", _size(kind["bytes"]), *ages)
    console.print(table)
    if found["left_over"]:
        console.print(f"{_size(found['left_over'])} are left over; `raygeo store gc` removes them.")


def listing(store: Store) -> dict[str, Any]:
    """What a store holds, as plain data: sizes in bytes, times in nanoseconds since 1970."""
    contents, lease = Contents(store), find_lease(store)
    studies = sorted(contents.studies.items())
    now = current_study(store) if studies else None
    kinds = []
    for kind, items in contents.kinds.items():
        if counted := [item for item in items if item.files]:
            changed = [item.changed for item in counted]
            units = sum(len(item.keys) for item in counted)
            sizes = {"number": units or len(counted), "bytes": _sum(counted)}
            kinds.append({"kind": kind, **sizes, "newest": max(changed), "oldest": min(changed)})
    unused = lease is None or lease.gone
    return {
        "store": store.shown,
        "bytes": contents.size,
        "lease": None if lease is None else f"{'left behind by' if lease.gone else 'in use:'} {lease.holder}",
        "studies": [
            {
                "study": name,
                "needs": sum(map(len, ledger.units.values())) + sum(map(len, ledger.folders.values())),
                "whole": ledger.whole,
                "current": name == now,
            }
            for name, ledger in studies
        ],
        "runs": [
            {"run": row["run"], "status": row["status"]}
            | {kind: _of_run(contents, kind, row["key"]) for kind in (DELTAS, SNAPSHOTS, CHECKPOINTS)}
            for row in store.table("runs").to_pylist()
        ],
        "kinds": kinds,
        "left_over": sum(removal.size for removal in left_overs(contents)) if unused else 0,
    }


def remove_from(store: Store, names: Sequence[str], *, yes: bool, wait: bool, console: Console | None = None) -> bool:
    """Remove runs, studies or kinds, after asking; whether they were removed."""
    console = console or Console()
    with held(store, "raygeo store rm", wait=wait, say=console.print):
        contents = Contents(store)
        found = {removal.item.path: removal for name in names for removal in named(contents, name)}
        removed = _remove(store, list(found.values()), yes, console)
    if removed and set(names) & set(contents.studies) and ("", MLFLOW) in contents.items:
        console.print("What was logged of it stays in MLflow; `raygeo ui` shows it, and can delete it.")
    return removed


def clean(store: Store, *, yes: bool, wait: bool, console: Console | None = None) -> bool:
    """Remove what killed writers left and what no study needs, after asking; whether all of it was removed."""
    console = console or Console()
    with held(store, "raygeo store gc", wait=wait, say=console.print):
        contents = Contents(store)
        left = left_overs(contents)
        others, why = unneeded(contents)
        if why:
            console.print(Text(f"Units and folders stay: {why}."))
        found = {removal.item.path: removal for removal in (*others, *left)}
        return _remove(store, list(found.values()), yes, console)


def _remove(store: Store, removals: list[Removal], yes: bool, console: Console) -> bool:
    if not removals:
        console.print("There is nothing to remove.")
        return True
    groups: dict[tuple[str, str], list[Removal]] = {}
    for removal in removals:
        groups.setdefault((removal.item.kind, removal.why), []).append(removal)
    table = _table("kind", "number", "size", "why", right=1)
    for (kind, why), group in sorted(groups.items()):
        table.add_row(kind or "single files", f"{len(group):,}", _size(sum(r.size for r in group)), Text(why))
    console.print(table)
    total = _size(sum(removal.size for removal in removals))
    if not yes:
        if not sys.stdin.isatty():
            console.print(f"Nothing was removed; with --yes, {total} are.")
            return False
        if not typer.confirm(f"Remove {total}?"):
            return False
    remove(store, removals)
    console.print(f"{total} were removed.")
    return True


def verify(store: Store, console: Console | None = None) -> bool:
    """Print everything in a store that is broken; whether nothing is."""
    console = console or Console()
    contents = Contents(store)
    found = list(broken(contents))
    for one in found:
        console.print(Text.assemble((one.path, "bold red"), f": {one.why}"), soft_wrap=True)
    units, complete = sum(len(item.keys) for item in contents.units), sum(item.complete for item in contents.folders)
    checked = f"{units:,} units, {complete:,} folders, {len(contents.of('tables')):,} tables, {_size(contents.size)}"
    console.print(f"{len(found)} broken of {checked}." if found else f"All is whole: {checked}.")
    if found:
        console.print("Delete what is broken and run the study again: it makes what is missing.")
    return not found


def copy(source: Store, to: str, *, wait: bool, console: Console | None = None) -> bool:
    """Copy a store and see that the copy is whole; whether it is."""
    console = console or Console()
    check_copyable(source, to)
    target = Store(to)
    total = Contents(source).size
    done, told = 0, time.monotonic()

    def tick(item: Item) -> None:
        nonlocal done, told
        done += item.size
        if time.monotonic() - told > 10:
            told = time.monotonic()
            console.print(f"  {_size(done)} of {_size(total)}")

    found = copy_store(source, target, wait=wait, say=console.print, tick=tick)
    for one in found:
        console.print(Text.assemble((one.path, "bold red"), f": {one.why}"), soft_wrap=True)
    console.print(Text(f"{source.shown}: {_size(total)} " + (f"are in {target.shown}" if not found else "were copied")))
    if not found and not target.is_local and ("", MLFLOW) in Contents(target).items:
        console.print("MLflow cannot serve what was logged from there: copy it back to a disk for `raygeo ui`.")
    return not found


def _of_run(contents: Contents, kind: str, key: str) -> int:
    return _sum(i for i in contents.of(kind) if i.name == key or (kind == CHECKPOINTS and i.name.startswith(f"{key}-")))


def _sum(items: Iterable[Item]) -> int:
    return sum(item.size for item in items)


def _table(*columns: str, right: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place >= right and column not in ("why", "") else "left")
    return table


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return "–" if not count else f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def _age(changed: int) -> str:
    seconds = max(time.time() - changed / 1e9, 0)
    for unit, size in (("d", _DAY), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
