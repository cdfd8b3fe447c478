"""What a run of a sweep costs beside its steps: raygeo's sweep against Ray's own guide to Tune over Train.

Both train the same tiny runs with the same function, one at a time, each side in a process and a Ray of its own.
``python -m benchmarks.fixed_cost SIDE FOLDER RUNS STEPS`` is one side.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
from ray import tune
from rich.table import Table

from benchmarks.cases import CASES, Prepared, prepare
from raygeo.losses import SFT
from raygeo.training.settings import RunSpec

OURS, GUIDE = "raygeo", "Tune over Train"
SETTINGS = {
    OURS: "embedded Ray of 1 CPU as raygeo starts it, runs on 1 CPU, workers kept from run to run",
    GUIDE: "Ray's guide: a function trainable that fits a TorchTrainer with TuneReportCallback; defaults throughout, "
    "Ray of 2 CPUs since a trial's driver takes one beside its worker's, one trial at a time",
}
_SAMPLING = 0.1
_PARTS = ("first", "later", "closing", "mean")


class Witness(tune.Callback):
    """Sees when each step of each trial was first reported to the driver of the sweep."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)

    def on_trial_result(  # noqa: D102
        self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any
    ) -> None:
        if "step" in result:
            self.seen[trial.trial_id].setdefault(result["step"], time.time())


def raygeo_sweep(prepared: Prepared, specs: Sequence[RunSpec], witness: Witness) -> Callable[[], Any]:
    """Start Ray as raygeo does; the sweep is what is returned."""
    from raygeo.cluster.session import connect
    from raygeo.training.sweep import run_sweep

    connect(cpus=prepared.threads)
    keyed = {spec.key("student", "rollouts"): spec for spec in specs}
    return lambda: run_sweep(keyed, prepared.inputs, prepared.store, "bench", [witness])


def guide_sweep(prepared: Prepared, specs: Sequence[RunSpec], witness: Witness) -> Callable[[], Any]:
    """Start Ray as its guide to tuning over Ray Train does; the sweep is what is returned."""
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def train_worker(config: dict[str, Any]) -> None:
        from raygeo.training.worker import Job, train

        spec = RunSpec.model_validate_json(config["spec"])
        job = Job(spec, spec.key("student", "rollouts"), prepared.inputs, prepared.store)
        train(job, lambda step, metrics: ray.train.report({"step": step} | metrics))

    storage = prepared.store.path("ray")

    def train_driver(config: dict[str, Any]) -> None:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                name=f"train-{tune.get_context().get_trial_id()}",
                storage_path=storage,
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            ),
        )
        trainer.fit()

    ray.init(num_cpus=2 * prepared.threads)
    tuner = tune.Tuner(
        train_driver,
        param_space={"spec": tune.grid_search([spec.model_dump_json() for spec in specs])},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=storage, callbacks=[witness]),
    )
    return tuner.fit


def run_side(side: str, folder: Path, runs: int, steps: int) -> dict[str, Any]:
    """Train the sweep; return when it began and ended, and the times of each run's reports."""
    prepared = prepare(CASES["tiny"], steps, 1, folder)
    training = prepared.training(pairs=False).model_copy(update={"log_every": 1})
    specs = [
        RunSpec(name=f"run-{seed}", loss=SFT(), training=training.model_copy(update={"seed": seed}))
        for seed in range(runs)
    ]
    witness = Witness()
    sweep = {OURS: raygeo_sweep, GUIDE: guide_sweep}[side](prepared, specs, witness)
    began = time.time()
    sweep()
    ended = time.time()
    reports = [list(seen.values()) for seen in witness.seen.values() if steps in seen]
    if len(reports) != runs:
        raise RuntimeError(f"{side}: {runs - len(reports)} of {runs} runs did not report their last step")
    return {"began": began, "ended": ended, "reports": reports}


def fixed_costs(
    reports: Sequence[Sequence[float]], began: float, ended: float, clock: Callable[[float], float] = float
) -> dict[str, Any]:
    """Split a sweep of runs that follow one another into training and the rest, and return the rest in seconds.

    ``reports`` are the times of each run's step reports, ``clock`` turns a time into the seconds that are counted (wall
    seconds, or CPU seconds used until then). ``first`` is what passes from ``began`` to the first report, ``later`` the
    mean and ``each`` the list of what passes from a run's last report to the next one's first, ``closing`` what passes
    from the last report to ``ended``, and ``mean`` the sum of all divided by the runs.

    Raises:
        ValueError: there are fewer than two runs, or two of them overlap.
    """
    spans = sorted((min(times), max(times)) for times in reports)
    edges = [began, *(time for span in spans for time in span), ended]
    if len(spans) < 2 or edges != sorted(edges):
        raise ValueError(f"need two or more runs, one after the other, between {began} and {ended}; got {spans}")
    gaps = [clock(end) - clock(start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return {
        "first": gaps[0], "later": mean(gaps[1:-1]), "closing": gaps[-1], "mean": sum(gaps) / len(spans),
        "each": gaps[1:-1],
    }  # fmt: skip


def compare(runs: int = 4, steps: int = 10) -> list[dict[str, Any]]:
    """Fixed costs of both sides in wall and CPU seconds; ``ratio`` is the guide's over raygeo's.

    CPU seconds are those of all processes a side starts, read ten times a second, so that the last tenth of a second of
    a process may be missed. Starting Ray itself is in neither figure.

    Raises:
        RuntimeError: one side failed; the message ends with its output.
    """
    rows: list[dict[str, Any]] = []
    for side in (OURS, GUIDE):
        found, times, used = _watch(side, runs, steps)
        clocks: Mapping[str, Callable[[float], float]] = {
            "seconds": float,
            "cpu_seconds": partial(_read, times, used),
        }
        costs = {name: fixed_costs(**found, clock=clock) for name, clock in clocks.items()}
        rows.append({"side": side, "runs": runs, "steps": steps, "settings": SETTINGS[side]} | costs)
    for row in rows:
        for clock in ("seconds", "cpu_seconds"):
            row[clock]["ratio"] = {part: row[clock][part] / rows[0][clock][part] for part in _PARTS}
    return rows


def _read(times: list[float], used: list[float], moment: float) -> float:
    return float(np.interp(moment, times, used))


def _watch(side: str, runs: int, steps: int) -> tuple[dict[str, Any], list[float], list[float]]:
    """Run one side in a process of its own, and read the CPU seconds of that process and all below it."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = root
    times, used, each = list[float](), list[float](), dict[psutil.Process, float]()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        command = [sys.executable, "-m", "benchmarks.fixed_cost", side, folder, str(runs), str(steps)]
        process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for member in _family(process):
                try:
                    cpu = member.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                each[member] = cpu.user + cpu.system
            times.append(time.time())
            used.append(sum(each.values()))
            time.sleep(_SAMPLING)
        result = Path(folder) / "result.json"
        if process.returncode != 0 or not result.exists():
            log.seek(0)
            raise RuntimeError(f"{side} failed:\n{log.read()[-4000:]}")
        return json.loads(result.read_text()), times, used


def _family(process: psutil.Popen) -> list[psutil.Process]:
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for people."""
    runs = rows[0]["runs"]
    shown = Table(title=f"seconds beside training, in a sweep of {runs} runs of {rows[0]['steps']} tiny steps")
    for name in ("", "clock", "first run", "each later run", "closing", "mean of a run", "over raygeo's"):
        shown.add_column(name, justify="left" if name in ("", "clock") else "right")
    for row in rows:
        for clock, label in (("seconds", "wall"), ("cpu_seconds", "CPU")):
            cost = row[clock]
            values = [f"{cost[part]:.2f}" for part in _PARTS]
            values[1] += f" [{min(cost['each']):.2f}, {max(cost['each']):.2f}]"
            ratio = f"{cost['ratio']['mean']:.2f}x; later {cost['ratio']['later']:.2f}x"
            shown.add_row(row["side"], label, *values, ratio)
    return shown


if __name__ == "__main__":
    _side, _folder, _runs, _steps = sys.argv[1:]
    _result = run_side(_side, Path(_folder) / "work", int(_runs), int(_steps))
    (Path(_folder) / "result.json").write_text(json.dumps(_result))
