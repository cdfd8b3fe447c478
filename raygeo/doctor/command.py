"""``raygeo doctor``: examine, print, and say whether anything is wrong."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raygeo.cluster.nodes import SCRATCH
from raygeo.cluster.preflight import is_autoscaled
from raygeo.cluster.session import connect
from raygeo.doctor.findings import advice_on_nodes, wrong_with_nodes
from raygeo.doctor.machine import MISSING, Facts, describe
from raygeo.doctor.nodes import Node, examine_nodes, living_nodes
from raygeo.doctor.server import examine_tracking
from raygeo.errors import RaygeoError, StoreError
from raygeo.paths import without_credentials
from raygeo.pipeline.config import Study
from raygeo.pipeline.demands import check_demands, check_student, cluster_to_check
from raygeo.pipeline.study import STAGES
from raygeo.store import Store
from raygeo.store.location import check_outlives_job

_GIB = 2**30
_LEAST_GIB = 2.0
_SHOWN = ("python", "raygeo", "torch", "ray", "deepspeed")
_LOG_WIDTH = 140
"""Columns of a log, which says of itself that it has 80."""


def examine(
    study: Study | None = None,
    *,
    store: str | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> bool:
    """Print the examination of the cluster at ``address`` (or of this machine); return whether nothing is wrong.

    Where a ``store`` is named, or a ``study`` is given, it is tried on every node; a study is also held against what
    the cluster has.
    """
    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=_LOG_WIDTH)
    location = store or (None if study is None else study.location)
    here = describe()
    missing = [package for package, version in here.versions.items() if version == MISSING]
    wrong = [f"the package {package} is missing; install raygeo again" for package in missing]
    if here.trouble:
        wrong.append(f"DeepSpeed cannot be imported here: {here.trouble}")
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    if free < _LEAST_GIB:
        wrong.append(f"only {free:.1f} GiB of disk are free here; a store needs room for deltas and tokens")
    advice: list[str] = []
    opened = None
    console.print(_versions(here))
    try:
        connect(address)
        with _there(location) as opened:
            nodes = living_nodes()
            examine_nodes(nodes, _folders(study), opened)
            console.print(_resources(nodes))
            console.print(_answers(nodes, opened is not None))
            wrong += wrong_with_nodes(nodes, here, None if opened is None else opened.location)
            advice += advice_on_nodes(nodes, is_autoscaled())
            if study is not None and opened is not None:
                wrong += _wrong_with_study(study, opened, advice)
    except RaygeoError as error:
        wrong.append(str(error).rstrip("."))
    tracked, trouble = examine_tracking(opened)
    wrong += [trouble] if trouble else []
    named = location or "none named; --store tries one on every node"
    lines = [f"store: {escape(named)}; MLflow: {escape(tracked)}"]
    lines += [f"[yellow]note:[/yellow] {escape(said)}." for said in advice]
    lines += [f"[red]wrong:[/red] {escape(said)}." for said in wrong]
    for line in lines:
        console.print(without_credentials(line), soft_wrap=True, highlight=False)
    if not wrong:
        console.print("[green]nothing is wrong[/green]")
    return not wrong


@contextmanager
def _there(location: str | None) -> Iterator[Store | None]:
    """The store, made for as long as it is tried where there was none."""
    if location is None:
        yield None
        return
    check_outlives_job(location)
    try:
        store, made = Store(location, create=False), False
    except StoreError:
        store, made = Store(location), True
    try:
        yield store
    finally:
        if store.is_local:
            with suppress(OSError):  # where there is something in them
                os.rmdir(store.path(SCRATCH))
                if made:
                    os.rmdir(store.root)


def _folders(study: Study | None) -> list[str]:
    """Folders on this machine that a study's workers read."""
    folder = None if study is None else Path(study.student.model).expanduser()
    return [str(folder.resolve())] if folder is not None and folder.is_dir() else []


def _wrong_with_study(study: Study, store: Store, advice: list[str]) -> Iterator[str]:
    try:
        check_demands(study, store, STAGES)
        cluster = cluster_to_check(study, lambda said: advice.append(said.strip()))
        if cluster is not None:
            check_student(study, store, STAGES, cluster)
    except RaygeoError as error:
        yield str(error).rstrip(".")


def _versions(here: Facts) -> Table:
    table = Table("package", "version", title="versions of the driver", title_justify="left")
    for package, version in here.versions.items():
        table.add_row(package, version)
    table.add_row("CUDA", torch.version.cuda or "none (CPU build of torch)")
    return table


def _resources(nodes: Sequence[Node]) -> Table:
    table = Table(title="nodes: what runs and actors can be placed on", title_justify="left")
    for name in ("node", "CPU", "GPU", "memory GiB", "object store GiB", "GPUs tried"):
        table.add_column(name, justify="left" if name in ("node", "GPUs tried") else "right")
    for node in nodes:
        table.add_row(
            node.name + (" (head)" if node.head else ""),
            f"{node.amount('CPU'):g}",
            f"{node.amount('GPU'):g}",
            f"{node.amount('memory') / _GIB:.1f}",
            f"{node.amount('object_store_memory') / _GIB:.1f}",
            "" if node.amount("GPU") < 1 else ", ".join(node.gpus or ()) or "none",
        )
    return table


def _answers(nodes: Sequence[Node], with_store: bool) -> Table:
    table = Table("node", *_SHOWN, "clock", "store", title="nodes: what each says", title_justify="left")
    for node in nodes:
        if node.facts is None:
            table.add_row(node.name, *["-"] * (len(_SHOWN) + 2))
            continue
        versions = [node.facts.versions[package] for package in _SHOWN]
        versions[_SHOWN.index("raygeo")] += f" ({node.facts.code})"
        store = "cannot be used" if node.store_trouble else "not shared" if node.apart else "shared"
        clock = f"{node.offset:+.3f} ± {node.bound:.3f} s"
        table.add_row(node.name, *versions, clock, store if with_store else "-")
    return table
