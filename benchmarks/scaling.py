"""The fan-out: a real workload on one and on two actors, and its measured tasks replayed on many."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from benchmarks.curvature import SMALL
from benchmarks.replay import Measured, replay
from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.cluster.execution import Outcome
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.session import connect
from raygeo.cluster.settings import ActorSettings
from raygeo.data.probes import Probe
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.store import Store
from raygeo.tables import BASE
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import word_tokenizer

EFFORT = CurvatureSettings(spaces=("delta", "blocks"), max_steps=15, tolerance=1e-6, slq_probes=0)
ACTORS = (1, 2)
REPLAYED = (10, 100, 1000)


@dataclass(frozen=True)
class Case:
    """Extreme eigenvalues of ``runs`` runs and the base of a student with random weights, with random deltas."""

    architecture: Architecture = SMALL
    runs: int = 19
    texts: int = 16
    settings: CurvatureSettings = EFFORT
    tasks_an_actor: int = 10


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Run the workload on one and on two warm actors in turns, store the rows, and replay the measured tasks.

    ``speedup`` is wall time on one actor over that on two. ``busy`` is the share of the actors' time in which they
    computed: what scheduling leaves, whatever else the machine does.
    """
    connect(cpus=max(ACTORS))
    with tempfile.TemporaryDirectory() as folder:
        workload = _workload(case, Path(folder))
        tasks = workload.tasks()
        store = Store(Path(folder) / "store")
        turns: list[dict[int, dict[str, float]]] = []
        measured: dict[str, float] = {}
        for number in range(rounds + 1):
            turn: dict[int, dict[str, float]] = {}
            for count in ACTORS if number % 2 == 0 else reversed(ACTORS):
                seconds: dict[str, float] = {}

                def keep(outcomes: list[Outcome], seconds: dict[str, float] = seconds) -> None:
                    for outcome in outcomes:
                        if outcome.error is not None:
                            raise RuntimeError(outcome.error)
                        seconds[outcome.key] = outcome.seconds

                with ActorPool(ActorSettings(max_actors=count)) as pool:
                    pool(
                        workload, store, tasks[-count:], lambda outcomes: None, len(tasks)
                    )  # starts actors and sets them up
                    began = time.perf_counter()
                    pool(workload, store, tasks, keep, len(tasks))
                    wall = time.perf_counter() - began
                turn[count] = {"wall": wall, "busy": sum(seconds.values()) / (count * wall)}
                if count == 1:
                    measured = seconds
            turns.append(turn)
    turns = turns[1:] or turns
    speedups = [turn[1]["wall"] / turn[2]["wall"] for turn in turns]
    costs = [Measured(task.cost, measured[task.key]) for task in tasks]
    idle = [(1 - turn[1]["busy"]) * turn[1]["wall"] / len(tasks) for turn in turns]
    return {
        "workload": f"extreme eigenvalues, {len(tasks)} tasks",
        "load": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "wall": {count: median(turn[count]["wall"] for turn in turns) for count in ACTORS},
        "busy": {count: median(turn[count]["busy"] for turn in turns) for count in ACTORS},
        "speedup": median(speedups),
        "speedup_least": min(speedups),
        "speedup_greatest": max(speedups),
        "tasks": [[task.cost, task.seconds] for task in costs],
        "call_seconds": median(idle),
        "replay": [_replayed(case, costs, actors, median(idle)) for actors in REPLAYED],
    }


def _replayed(case: Case, costs: list[Measured], actors: int, call: float) -> dict[str, Any]:
    """Replay copies of the measured tasks, ``tasks_an_actor`` for each actor."""
    copies = max(1, -(-case.tasks_an_actor * actors // len(costs)))
    found = replay(costs * copies, actors, call_seconds=call)
    return {
        "actors": actors,
        "tasks": copies * len(costs),
        "calls": found.calls,
        "makespan": found.makespan,
        "bound": found.bound,
        "ratio": found.makespan / found.bound,
    }


def _workload(case: Case, folder: Path) -> ExtremeEigenvalues:
    tokenizer = word_tokenizer()
    model = build_model(case.architecture, tokenizer, 0)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "student")
    generator = torch.Generator().manual_seed(0)
    runs = [Run(BASE, "base", None)]
    for number in range(case.runs):
        delta = {name: 0.01 * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
        save_full_delta(folder / f"run-{number}", delta)
        runs.append(Run(f"run-{number}", f"run-{number}", str(folder / f"run-{number}")))
    rng = np.random.default_rng(0)
    lengths = zip(rng.integers(8, 30, case.texts), rng.integers(4, 60, case.texts), strict=True)
    texts = [TokenSequence(rng.integers(3, len(tokenizer), p + c), int(p)) for p, c in lengths]
    Probe("bench", texts).save(folder / "probe.npz")
    return ExtremeEigenvalues(case.settings, runs, folder / "student", folder / "probe.npz")


def table(found: dict[str, Any]) -> Table:
    """What was measured and replayed, as a table for people."""
    shown = Table(
        "actors", "tasks", "seconds", "at best", "over that",
        title=f"{found['workload']}: {found['speedup']:.2f}x on two actors "
        f"[{found['speedup_least']:.2f}, {found['speedup_greatest']:.2f}], "
        f"busy {found['busy'][1]:.0%} and {found['busy'][2]:.0%}; load {found['load']:.1f} on {found['cores']} cores",
        caption=f"replayed with {1e3 * found['call_seconds']:.1f} ms a call",
    )  # fmt: skip
    for row in found["replay"]:
        shown.add_row(
            f"{row['actors']:,}", f"{row['tasks']:,}", f"{row['makespan']:.1f}", f"{row['bound']:.1f}",
            f"{row['ratio']:.3f}",
        )  # fmt: skip
    return shown
