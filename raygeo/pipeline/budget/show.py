"""The plan as it is printed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raygeo.pipeline.budget.cluster import Cluster
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.budget.plan import Line, gib
from raygeo.pipeline.config import Study


def print_plan(
    study: Study, facts: Facts, cluster: Cluster, lines: Sequence[Line], console: Console, free: int | None = None
) -> None:
    """Print what is known, a row a need, and the assumptions; ``free`` are bytes of the store."""
    text = facts.config.get_text_config()
    console.print(
        Text.assemble(
            (study.name, "bold"),
            f": {facts.config.model_type}, {text.num_hidden_layers} blocks of width {text.hidden_size}, vocabulary "
            f"{text.vocab_size:,}",
        )
    )
    for said in facts.said:
        console.print(Text(f"  {said}"))
    console.print(
        Text(
            f"  rows: {facts.train.count:,} to train on, {facts.train.mean:.0f} tokens on average, at most "
            f"{facts.train.longest}; {facts.prompts.count:,} held-out problems"
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("stage", "units", "device memory", "held by", "host", "disk", "hours"):
        table.add_column(column, justify="left" if column in ("stage", "held by") else "right", overflow="fold")
    for line in lines:
        need = line.need
        style = "red" if line.problem else ""
        table.add_row(
            Text(need.what, style),
            f"{need.units:,}" + (f" x {need.processes}" if need.processes > 1 else ""),
            Text("?" if need.unknown else gib(line.held) if line.held else "", style),
            _terms(need.device) or (need.unknown and f"not known: {need.unknown}") or "",
            gib(line.host) if line.host else "",
            gib(line.disk) if line.disk else "",
            _hours(line),
        )
    console.print(table)
    total = sum(line.hours or 0.0 for line in lines)
    disk = sum(line.disk for line in lines)
    room = "" if free is None else f", where {gib(free)} are free"
    console.print(Text(f"in all: {_number(total)} hours, {gib(disk)} in the store{room}"))
    console.print(Text(f"hours without * are estimates; {cluster.said}"))
    for device in {line.device.name: line.device for line in lines if line.need.work.flops}.values():
        console.print(Text(f"  {device.assumptions()}"))
    console.print(
        Text(
            "  completions are taken to be as long as they may be, micro-batches to hold the longest rows; "
            "* measured in this store"
        )
    )


def print_problems(
    lines: Sequence[Line], console: Console, free: int | None, refused: Sequence[str], here: Sequence[str]
) -> None:
    """Print what does not fit, what a run would refuse (``refused``), and what keeps it from being run ``here``."""
    if free is not None and sum(line.disk for line in lines) > free:
        console.print(Text("does not fit: the store's disk; give a larger one (store), or keep less.", "red"))
    for line in lines:
        if line.problem:
            console.print(Text(f"does not fit: {line.problem}.", "red"))
            console.print(Text(f"  {advice(line)}"))
    for said in refused:
        console.print(Text(f"a run would refuse it: {said}", "red"))
    for said in here:
        console.print(Text(f"it cannot be run here: {said}", "yellow"))


def plain_plan(study: Study, facts: Facts, cluster: Cluster, lines: Sequence[Line]) -> dict[str, Any]:
    """The plan as plain data, sizes in bytes."""
    return {
        "study": study.name,
        "on": cluster.said,
        "fits": not any(line.problem for line in lines),
        "rows": facts.train.count,
        "mean_tokens": facts.train.mean,
        "longest": facts.train.longest,
        "hours": sum(line.hours or 0.0 for line in lines),
        "disk": sum(line.disk for line in lines),
        "needs": [
            {
                "what": line.need.what,
                "units": line.need.units,
                "at_once": line.at_once,
                "processes": line.need.processes,
                "device": dict(line.need.device),
                "host": line.host,
                "disk": line.disk,
                "hours": line.hours,
                "measured": line.measured,
                "unknown": line.need.unknown or None,
                "problem": line.problem or None,
                "remedy": list(line.remedy),
            }
            for line in lines
        ],
    }


def _terms(terms: Mapping[str, int]) -> str:
    """The terms that matter, the largest first."""
    whole = sum(terms.values())
    shown = sorted(((name, held) for name, held in terms.items() if held > whole / 50), key=lambda term: -term[1])
    return ", ".join(f"{name} {gib(held)}" for name, held in shown)


def advice(line: Line) -> str:
    """What would make a line fit."""
    if line.remedy:
        return "it would with " + " ".join(f"--set {shlex.quote(override)}" for override in line.remedy)
    return "no setting that is known here makes it fit: take a larger device, or a smaller student"


def _hours(line: Line) -> str:
    if line.hours is None:
        return "?" if line.need.unknown else ""
    return _number(line.hours) + ("*" if line.measured else "")


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else "< 0.1"
