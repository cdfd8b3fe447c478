"""How fast raygeo is beside its peers: ``python -m benchmarks.run`` races ``training`` and ``geometry`` here."""

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


@app.command()
def geometry(
    case: Annotated[
        list[str] | None, typer.Option(help="products, vocabulary, spectrum, deltas, cka or scaling; all")
    ] = None,
    rounds: Annotated[int, typer.Option(help="turns of each competitor; one of warm-up is not counted")] = 3,
    threads: Annotated[int, typer.Option(help="threads of every competitor")] = 1,
    peers: Annotated[
        Path | None, typer.Option(help="folder with PyHessian or curvlinops, if they are there alone")
    ] = None,
    tiny: Annotated[
        bool, typer.Option(help="shrink every case to seconds: shows that it runs, measures nothing")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures")] = None,
) -> None:
    """Products, spectra and deltas against peers and plain code, and the fan-out on few and on many actors."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    from benchmarks.geometry import comparisons
    from benchmarks.machine import describe

    torch.set_num_threads(threads)
    known = comparisons(threads, None if peers is None else str(peers), tiny)
    if unknown := set(case or ()) - known.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(known)}", param_hint="--case")
    console = Console(width=None if sys.stdout.isatty() else 180)
    found: dict[str, Any] = {"machine": describe(threads)}
    console.print(found["machine"])
    for name in case or known:
        found[name] = known[name].measure(rounds)
        console.print(known[name].show(found[name]))
        if out is not None:
            out.write_text(json.dumps(found, indent=1))


@app.command()
def growth(
    runs: Annotated[list[int] | None, typer.Option(help="numbers of runs; 8, 25 and 50")] = None,
    analysis: Annotated[list[str] | None, typer.Option(help="analyses measured; all")] = None,
    pages: Annotated[Path | None, typer.Option(help="folder for the page of each number of runs")] = None,
    pieces: Annotated[bool, typer.Option(help="also rows, answers, units and pairs, of three numbers each")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures")] = None,
) -> None:
    """CPU time of every analysis, of the summaries in MLflow and of the page against the number of runs."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from benchmarks import growth as grown

    torch.set_num_threads(1)
    found = grown.measure(grown.Case(sizes=tuple(runs or (8, 25, 50))), analysis or (), pages)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(grown.table(found))
    if pieces:
        each = grown.pieces()
        console.print(grown.pieces_table(each))
        found |= each
    if out is not None:
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    app()
