"""The proof on one GPU: ``python -m benchmarks.gpu``, at the shapes of Qwen3-4B with random weights.

Steps run in processes of their own, each for a bounded time: one that fails, hangs or runs out of memory takes no other
with it. Figures are printed as they are found. There is no download, and Ray is not needed.
"""

import json
import multiprocessing as mp
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import typer

from benchmarks.one_card import BEGUN, ENDED, FULL, SMALL, STEPS, Size, Step, work

WHOLE = 470.0
"""Seconds for all steps together, with the start of their processes."""
START = 60.0
"""Seconds in which a process must have started."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    step: Annotated[list[str] | None, typer.Option(help=f"{', '.join(STEPS)}; all")] = None,
    tiny: Annotated[bool, typer.Option(help="a tiny model on the CPU: shows that it runs, measures nothing")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file for all figures, written after every step")] = None,
) -> None:
    """Training, evaluation, curvature and exactness of bf16 at 4 B on one 80 GB card, in less than eight minutes."""
    if unknown := set(step or ()) - STEPS.keys():
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; known are {', '.join(STEPS)}", param_hint="--step")
    if tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print("There is no CUDA device here: run this on a machine with a GPU of 80 GB, or with --tiny on the CPU.")
        raise typer.Exit(1)
    context = processes()
    found: dict[str, Any] = {"model": "tiny" if tiny else "the shapes of Qwen3-4B, random weights", "steps": {}}
    until = time.monotonic() + WHOLE
    for name in step or STEPS:
        job, limit = STEPS[name]
        left = until - time.monotonic()
        print(f"{name} (at most {limit} s, {left:.0f} s are left)", flush=True)
        found["steps"][name] = take(context, job, SMALL if tiny else FULL, min(limit, left))
        if out is not None:
            out.write_text(json.dumps(found, indent=1))
    failed = {name: taken["error"] for name, taken in found["steps"].items() if taken["error"]}
    for name, error in failed.items():
        print(f"{name} failed: {error}", flush=True)
    raise typer.Exit(1 if failed else 0)


def processes() -> Any:
    """Where processes come from: forked from one that has imported everything and touched no device."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.one_card"])
    return context


def take(context: Any, step: Step, size: Size, limit: float) -> dict[str, Any]:
    """Take a step in a process of its own: its ``figures``, its ``seconds``, and why it failed, or None (``error``)."""
    began = time.monotonic()
    figures: dict[str, Any] = {}
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(step, size, limit, theirs))
    process.start()
    theirs.close()
    try:
        error = _listen(ours, limit, figures)
        process.join(0 if error else 5)
    except EOFError:
        process.join(5)
        error = f"its process ended with code {process.exitcode}"
    if process.is_alive():
        process.kill()
        process.join()
    return {"figures": figures, "error": error, "seconds": round(time.monotonic() - began, 1)}


def _listen(pipe: Connection, limit: float, figures: dict[str, Any]) -> str | None:
    """Collect a step's figures until it ends, or until its time is over; its error, or None."""
    until = time.monotonic() + START
    while pipe.poll(max(0.0, until - time.monotonic())):
        kind, name, value = pipe.recv()
        if kind == BEGUN:
            until = time.monotonic() + limit
        elif kind == ENDED:
            return value
        else:
            figures[name] = value
    return f"it took longer than {limit:.0f} s; figures found until then stand"


if __name__ == "__main__":
    app()
