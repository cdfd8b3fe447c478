"""How fast raygeo is beside its peers: ``python jobs/bench.py training`` races them on this machine."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import typer
from rich.console import Console

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Benchmarks."""


@app.command()
def training(
    case: Annotated[list[str] | None, typer.Option(help="word-problems, vocabulary or tiny; the first two")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="sft, dft or dpo; all")] = None,
    rounds: Annotated[int, typer.Option(help="turns of each competitor, one of warm-up not counted")] = 3,
    steps: Annotated[int, typer.Option(help="optimiser steps in a turn; one at the large vocabulary")] = 10,
    threads: Annotated[int, typer.Option(help="threads of every competitor")] = 1,
    rows: Annotated[int | None, typer.Option(help="rows of a step, a multiple of 4; the case's own")] = None,
    completions: Annotated[
        tuple[int, int] | None,
        typer.Option(help="least and greatest completion tokens, where they are random"),
    ] = None,
    fixed_cost: Annotated[bool, typer.Option(help="also what a run of a sweep costs beside its steps")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures")] = None,
) -> None:
    """Tokens per second against a plain torch loop and TRL, and the fixed cost of a run against Tune over Train."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from benchmarks import fixed_cost as fixed
    from benchmarks import training as race
    from benchmarks.cases import CASES
    from benchmarks.machine import describe

    machine = describe(threads)
    results = []
    for name in case or ("word-problems", "vocabulary"):
        raced = CASES[name].resized(rows, completions)
        for objective in loss or ("sft", "dft", "dpo"):
            results += race.compare(raced, objective, rounds, 1 if raced.vocabulary else steps, threads, together=True)
    console = Console()
    console.print(machine)
    console.print(race.table(results))
    found: dict[str, Any] = {"machine": machine, "training": results}
    if fixed_cost:
        found["fixed_cost"] = fixed.compare()
        console.print(fixed.table(found["fixed_cost"]))
    if out is not None:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app()
