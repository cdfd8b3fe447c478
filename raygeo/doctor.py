"""What this machine or cluster can hold, the versions in use, and what is wrong."""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
import torch
from rich.console import Console
from rich.table import Table

from raygeo.cluster.session import connect
from raygeo.errors import RaygeoError
from raygeo.paths import without_credentials
from raygeo.pipeline.report import PACKAGES
from raygeo.store import Store
from raygeo.tracking.server import open_client, plain, remedy, tracking_uri
from raygeo.training.engine import import_deepspeed

_GIB = 2**30


def examine(address: str | None = None, console: Console | None = None) -> bool:
    """Print the examination of the cluster at ``address`` (or of this machine); return whether nothing is wrong."""
    console = console or Console()
    problems: list[str] = []
    console.print(_versions(problems))
    try:
        connect(address)
        console.print(_nodes())
    except (RaygeoError, RuntimeError) as error:
        problems.append(f"Ray cannot be used: {error}")
    try:
        import_deepspeed()
    except (ImportError, RuntimeError, OSError) as error:
        problems.append(f"DeepSpeed cannot be imported: {error}")
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    console.print(f"free disk here: {free:.0f} GiB; MLflow: {_tracking(problems)}")
    if free < 2:
        problems.append(f"only {free:.1f} GiB of disk are free here; a store needs room for deltas and tokens")
    for problem in problems:
        console.print(f"[red]wrong:[/red] {problem}")
    if not problems:
        console.print("[green]nothing is wrong[/green]")
    return not problems


def _versions(problems: list[str]) -> Table:
    table = Table(title="versions", title_justify="left")
    table.add_column("package")
    table.add_column("version")
    for package in PACKAGES:
        try:
            table.add_row(package, version(package))
        except PackageNotFoundError:
            table.add_row(package, "missing")
            problems.append(f"the package {package} is missing; install raygeo again")
    table.add_row("CUDA", torch.version.cuda or "none (CPU build of torch)")
    return table


def _nodes() -> Table:
    table = Table(title="cluster: what runs and actors can be placed on", title_justify="left")
    for name in ("node", "alive", "CPU", "GPU", "memory GiB", "object store GiB"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for node in ray.nodes():
        has = node["Resources"]
        table.add_row(
            node["NodeManagerHostname"],
            "yes" if node["Alive"] else "no",
            f"{has.get('CPU', 0):g}",
            f"{has.get('GPU', 0):g}",
            f"{has.get('memory', 0) / _GIB:.1f}",
            f"{has.get('object_store_memory', 0) / _GIB:.1f}",
        )
    return table


def _tracking(problems: list[str]) -> str:
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if not named:
        with tempfile.TemporaryDirectory() as folder:
            return f"{tracking_uri(Store(folder)).partition(':')[0]} file in each study's store"
    shown = without_credentials(named)
    try:
        open_client(named).search_experiments(max_results=1)
    except Exception as error:
        problems.append(f"MLFLOW_TRACKING_URI={shown} does not answer: {plain(error)}. {remedy(named, error)}")
    return shown
