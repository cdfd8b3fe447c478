"""How fast raygeo is beside its peers: ``python jobs/bench.py training`` races them on this machine."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

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
    rounds: Annotated[int, typer.Option(help="turns of each competitor, one of warm-up not counted")] = 5,
    steps: Annotated[int, typer.Option(help="optimiser steps in a turn; one at the large vocabulary")] = 10,
    threads: Annotated[int, typer.Option(help="threads of every competitor")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures")] = None,
) -> None:
    """Tokens per second against a plain torch loop and TRL, competitors taking turns."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    from benchmarks.cases import CASES
    from benchmarks.machine import describe
    from benchmarks.training import compare, table

    machine = describe(threads)
    rows = []
    for name in case or ("word-problems", "vocabulary"):
        for objective in loss or ("sft", "dft", "dpo"):
            rows += compare(
                CASES[name], objective, rounds, 1 if CASES[name].vocabulary else steps, threads, together=True
            )
    console = Console()
    console.print(machine)
    console.print(table(rows))
    if out is not None:
        out.write_text(json.dumps({"machine": machine, "training": rows}, indent=1))


if __name__ == "__main__":
    app()
