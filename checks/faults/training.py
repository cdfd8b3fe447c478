"""Faults inside training, and what they cost in steps.

Every case trains one run on an embedded Ray with two CPUs, breaks it, and compares its weights with those of the same
run left alone.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray import tune
from rich.markup import escape
from rich.table import Table

from checks.faults.processes import command_of, kill_family
from checks.rollouts import draw_rollouts
from raygeo.cluster.session import connect
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import ClusterError
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses import SFT
from raygeo.models.delta import LowRank, open_delta
from raygeo.models.lora import LoraSettings
from raygeo.store import Store
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.sweep import run_sweep

VOCABULARY = 300_000
"""Embeddings of the student that is to run out of memory: so many that the gradient of their matrix does not fit."""
SHAPE = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, context=128)
STEPS, EVERY, CPUS = 50, 10, 2
PAD = int(word_tokenizer().pad_token_id)


@dataclass(frozen=True)
class Case:
    """A fault, the settings of the run it strikes, and what strikes it: called with every report of the run."""

    fault: str
    settings: dict[str, Any]
    strike: Callable[[int], bool]
    vocabulary: int | None = None


@dataclass
class Seen:
    """What was seen of one run: the steps it reported, what it said, the step at which it was struck, and its end.

    ``seconds`` are those from its first report to its end.
    """

    steps: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    struck: int | None = None
    end: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    seconds: float = 0.0

    @property
    def redone(self) -> int:
        """Steps reported more than once."""
        return len(self.steps) - len(set(self.steps))


class Witness(tune.Callback):
    """Sees every report of a sweep, and strikes its run ``victim`` once."""

    def __init__(self, victim: str = "", strike: Callable[[int], bool] | None = None):
        self.victim, self.strike = victim, strike
        self.seen: defaultdict[str, Seen] = defaultdict(Seen)

    def __reduce__(self) -> Any:
        return (tune.Callback, ())

    def on_trial_result(  # noqa: D102
        self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any
    ) -> None:
        name = trial.config["choice"]["run"]
        seen = self.seen[name]
        if "metrics" in result:
            seen.began = seen.began or time.perf_counter()
            seen.steps.append(result["step"])
            if self.strike is not None and name == self.victim and seen.struck is None and self.strike(result["step"]):
                seen.struck = result["step"]
        if "text" in result:
            seen.notes.append(result["text"].splitlines()[0])
        if "status" in result:
            seen.end = {"status": result["status"], "reason": result["reason"], "step": result["step"]}
            seen.seconds = time.perf_counter() - seen.began


def worker_processes(kind: str = "RayTrainWorker") -> list[psutil.Process]:
    """The Ray Train workers this process has started, or the actors of another ``kind``."""
    return [p for p in psutil.Process().children(recursive=True) if kind in command_of(p)]


def kill_at(step: int, which: int = -1, kind: str = "RayTrainWorker") -> Callable[[int], bool]:
    """SIGKILL one worker, or an actor of another ``kind``, when ``step`` is reported."""

    def strike(reached: int) -> bool:
        if reached < step:
            return False
        os.kill(worker_processes(kind)[which].pid, signal.SIGKILL)
        return True

    return strike


def starve_at(step: int, spare: int) -> Callable[[int], bool]:
    """Leave the workers ``spare`` bytes of address space more than they use when ``step`` is reported."""

    def strike(reached: int) -> bool:
        if reached < step:
            return False
        for process in worker_processes():
            limit = process.memory_info().vms + spare
            resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        return True

    return strike


LORA = LoraSettings(r=4, lora_alpha=8)
CASES = {
    "kill": Case("the worker killed at step 15", {}, kill_at(15)),
    "kill-early": Case("the worker killed before any checkpoint", {}, kill_at(3)),
    "kill-coordinator": Case("the coordinator killed at step 15", {}, kill_at(15, kind="ray::Coordinator")),
    "kill-bf16": Case("the worker killed at step 25, bf16", {"precision": "bf16", "zero_stage": 1}, kill_at(25)),
    "kill-zero2": Case("one of two workers killed at step 15, ZeRO-2", {"workers": 2, "zero_stage": 2}, kill_at(15)),
    "kill-zero3-lora": Case(
        "one of two workers killed at step 25, ZeRO-3, LoRA",
        {"workers": 2, "zero_stage": 3, "lora": LORA},
        kill_at(25, 0),
    ),
    "memory": Case(
        "no memory for a micro-batch of 8 from step 4 on",
        {"micro_batch_size": 8, "steps": 6, "checkpoint_every": 4},
        starve_at(4, 8 * 2**20),
        VOCABULARY,
    ),
}


def make_store(root: Path, vocabulary: int | None = None) -> tuple[Store, RunInputs]:
    """A store with an untrained student of 30,000 parameters and 96 rollouts, half of them wrong."""
    tokenizer = word_tokenizer()
    student = root / "student"
    model = build_model(SHAPE, tokenizer, 0)
    if vocabulary is not None:
        torch.manual_seed(0)
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    rollouts = draw_rollouts(24)
    store = Store(root / "store")
    store.write_unit("rollouts", {"rollouts": rollouts})
    tokens = root / "tokens"
    tokens.mkdir()
    texts = ((row["prompt"], row["completion"], True) for row in rollouts.to_pylist())
    RolloutTokens.encode(PlainRenderer(tokenizer), texts).save(tokens)
    return store, RunInputs("rollouts", str(student), "student", str(tokens), PAD)


def specification(name: str, settings: dict[str, Any]) -> RunSpec:
    """A run that takes most of the machine, so that runs come one after the other."""
    base = {"steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "lr": 2e-3, "log_every": 1, "snapshots": 0}
    base |= {
        "checkpoint_every": EVERY,
        "weight_decay": 0.01,
        "max_grad_norm": 0.5,
        "cpus": 0.75 * CPUS / settings.get("workers", 1),
    }
    return RunSpec(name=name, loss=SFT(), training=TrainingSettings(**(base | settings)))


def train(
    store: Store,
    inputs: RunInputs,
    settings: dict[str, Any],
    names: tuple[str, ...] = ("run",),
    strike: Callable[[int], bool] | None = None,
) -> dict[str, Seen]:
    """Train the same run under every name, one after the other, strike the last, and return what was seen of each."""
    witness = Witness(names[-1], strike)
    specs = {name: specification(name, settings) for name in names}
    failures = run_sweep(specs, inputs, store, "faults", [witness])
    for name, error in failures.items():
        witness.seen[name].end = {"status": "failed", "reason": error, "step": 0}
    return witness.seen


def weights(folder: str) -> dict[str, torch.Tensor]:
    """Every tensor of a delta, factors apart."""
    found: dict[str, torch.Tensor] = {}
    for name, entry in open_delta(folder).items():
        parts = {"a": entry.a, "b": entry.b} if isinstance(entry, LowRank) else {"": entry.value}
        found |= {name + side: tensor for side, tensor in parts.items()}
    return found


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest absolute difference of any two weights; 0 means equal to the last bit."""
    return max(float((a[name] - b[name]).abs().max()) for name in a.keys() | b.keys())


@dataclass(frozen=True)
class Result:
    """One row of the table; ``gap`` is the largest difference of a weight from the undisturbed run's."""

    fault: str
    struck: int | None
    redone: int | None
    status: str
    gap: float | None
    seconds: float
    notes: list[str]


def break_run(name: str, root: Path) -> Result:
    """Train the run of a case undisturbed, then once more on the same workers, and strike it."""
    case = CASES[name]
    store, inputs = make_store(root, case.vocabulary)
    seen = train(store, inputs, case.settings, ("undisturbed", "disturbed"), case.strike)
    whole, broken = seen["undisturbed"], seen["disturbed"]
    expected, found = (weights(store.path("deltas", name)) for name in ("undisturbed", "disturbed"))
    gap = difference(expected, found)
    return Result(
        case.fault,
        broken.struck,
        broken.redone,
        broken.end["status"],
        gap,
        broken.seconds - whole.seconds,
        broken.notes,
    )


def break_driver(root: Path) -> Result:
    """Kill the driver, and with it its embedded cluster, once a checkpoint is there; then start the run again."""
    store, inputs = make_store(root / "undisturbed")
    train(store, inputs, {})
    expected = weights(store.path("deltas", "run"))
    store, inputs = make_store(root / "disturbed")
    command = [sys.executable, "-m", "checks.faults.training", str(root / "disturbed")]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(store.has_folder("checkpoints", name) for name in store.folders("checkpoints")):
        if driver.poll() is not None:
            raise RuntimeError("the driver ended before it wrote a checkpoint")
        time.sleep(0.02)
    kill_family(driver.pid)
    driver.wait()
    started = time.perf_counter()
    seen = train(store, inputs, {})["run"]
    gap = difference(expected, weights(store.path("deltas", "run")))
    fault = f"the driver killed, the run started again (it resumed at step {min(seen.steps)})"
    return Result(fault, None, None, seen.end["status"], gap, time.perf_counter() - started, seen.notes)


def diverge(root: Path) -> Result:
    """Train at a learning rate that no run survives."""
    store, inputs = make_store(root)
    started = time.perf_counter()
    seen = train(store, inputs, {"lr": 1e12})["run"]
    fault = f"a learning rate of 1e12: {seen.end['reason']}"
    return Result(fault, None, None, seen.end["status"], None, time.perf_counter() - started, seen.notes)


def ask_too_much(root: Path) -> Result:
    """Ask for more workers than the machine has CPUs."""
    store, inputs = make_store(root)
    started = time.perf_counter()
    try:
        train(store, inputs, {"workers": 64, "cpus": 1})
    except ClusterError as error:
        return Result(f"64 workers: {error}", None, None, "refused", None, time.perf_counter() - started, [])
    raise RuntimeError("a run that cannot be placed was not refused")


def break_training() -> list[Result]:
    """Every case, on this machine."""
    connect(cpus=CPUS)
    with tempfile.TemporaryDirectory() as folder:
        results = [break_run(name, Path(folder) / name) for name in CASES]
        results += [other(Path(folder) / other.__name__) for other in (break_driver, diverge, ask_too_much)]
    ray.shutdown()
    return results


def table_of(results: list[Result]) -> Table:
    """The table that is printed."""
    table = Table("fault", "at step", "steps redone", "ended", "weights", "seconds more", title="Faults in training")
    for r in results:
        equal = "none kept" if r.gap is None else "equal to the last bit" if r.gap == 0 else f"within {r.gap:.1e}"
        shown = ["" if value is None else str(value) for value in (r.struck, r.redone)]
        table.add_row(escape("\n".join([r.fault, *r.notes])), *shown, r.status, equal, f"{r.seconds:.0f}")
    return table


if __name__ == "__main__":  # the run whose driver is killed, in a process of its own
    root = Path(sys.argv[1])
    connect(cpus=CPUS)
    train(Store(root / "store"), RunInputs("rollouts", str(root / "student"), "student", str(root / "tokens"), PAD), {})
