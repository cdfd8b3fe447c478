"""A small study, its store as it stood before each stage, and what must be there in the end whatever happened."""

import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import pyarrow as pa
import torch
import yaml
from mlflow.tracking import MlflowClient
from rich.console import Console

import raygeo
from raygeo.analyses.registry import analyses
from raygeo.models.delta import open_delta
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.study import STAGES, run_study
from raygeo.progress import Progress
from raygeo.settings import content_key
from raygeo.store import Store

NAME = "faults"
STRUCK = STAGES[:-1]
"""The stages that are struck; what the last one writes is made anew by each call."""
UNLIKE = ("seconds", "mlflow_run_id")
"""Columns of tables that no two calls have alike."""
TIMES = ("started", "ended")
"""What no two calls have alike of the ``params`` of runs."""
ASKED = ("norms", "similarity", "subspaces", "paths", "drift")
"""Analyses of the study: weights, pairs, mixtures and predictions."""
STEPS = 60
STUDENT_SECONDS = 2.5
"""How long a student has been made when it is struck: it is one task, which leaves nothing before it ends."""


def settings(store: Path) -> dict[str, Any]:
    """The study: every stage has work to do, for some seconds."""
    return {
        "name": NAME,
        "store": str(store),
        "student": {
            "word_problems": {
                "problems": {"steps": [1, 1], "start": [3, 6], "operand": [1, 2], "multiply": 0},
                "carelessness": {"carry": 0.1, "gets": 0.3, "gives": 0.2, "skip": 0},
                "architecture": {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
                                 "intermediate": 64, "context": 128},
                "corpus": 2000, "training": {"steps": 200, "batch_size": 16},
                "teacher": {"corpus": 400, "training": {"steps": 30, "batch_size": 16}},
            },
            "cpus": 1,
        },
        "rollouts": {
            "sample": {"prompts": 40, "decoding": {"samples": 4, "temperature": 1.0, "max_new_tokens": 40,
                                                   "prompts_per_task": 4}},
            "heldout": 0.3,
        },
        "reference": {"rows_per_task": 16},
        "training": {"steps": STEPS, "checkpoint_every": 10, "batch_size": 8, "lr": 1e-3, "log_every": 1, "cpus": 0.9,
                     "snapshots": 0},
        "runs": [{"name": "sft", "loss": {"type": "sft"}}, {"name": "dpo", "loss": {"type": "dpo"}}],
        "probes": {"sequences": 12, "curvature_sequences": 4},
        "evaluation": {"answers": {"max_new_tokens": 40, "problems_per_task": 4}},
        "geometry": dict.fromkeys(analyses()) | {
            name: {} for name in ASKED} | {"paths": {"points": 5, "accuracy_problems": 0, "bootstrap": 100}},
    }  # fmt: skip


@dataclass
class Left:
    """What a study leaves in its store when a stage has ended: tables without times, and the deltas of its runs."""

    tables: dict[str, pa.Table]
    deltas: dict[str, dict[str, torch.Tensor]]

    @classmethod
    def of(cls, folder: Path) -> "Left":
        """Read it."""
        store = Store(folder)
        tables = {name: store.table(name) for name in sorted(path.stem for path in folder.glob("tables/*.parquet"))}
        runs = tables["runs"].to_pylist() if "runs" in tables else []
        deltas = {
            row["run"]: open_delta(folder / "deltas" / Path(row["delta"]).name) for row in runs if row.get("delta")
        }
        return cls(
            {name: _timeless(table) for name, table in tables.items()},
            {run: {name: entry.dense() for name, entry in delta.items()} for run, delta in deltas.items()},
        )

    def unlike(self, other: "Left") -> list[str]:
        """What is not the same, to the last bit, in another."""
        found = [f"table {name}" for name in self.tables.keys() ^ other.tables.keys()]
        found += [
            f"table {name}: {_difference(self.tables[name], other.tables[name])}"
            for name in self.tables.keys() & other.tables.keys()
            if not self.tables[name].equals(other.tables[name])
        ]
        for run in self.deltas.keys() | other.deltas.keys():
            one, two = self.deltas.get(run, {}), other.deltas.get(run, {})
            if one.keys() != two.keys() or not all(torch.equal(one[name], two[name]) for name in one):
                found.append(f"weights of {run}")
        return sorted(found)


def _timeless(table: pa.Table) -> pa.Table:
    """A table without times."""
    if "params" in table.column_names:
        found = [{k: v for k, v in json.loads(text).items() if k not in TIMES} for text in table["params"].to_pylist()]
        place = table.schema.get_field_index("params")
        plain = pa.array([json.dumps(params) for params in found], table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), plain)
    return table.drop_columns([name for name in UNLIKE if name in table.column_names])


def _difference(one: pa.Table, two: pa.Table) -> str:
    if one.num_rows != two.num_rows:
        return f"{one.num_rows} rows for {two.num_rows}"
    return ", ".join(name for name in one.column_names if name not in two.column_names or one[name] != two[name])


@dataclass
class Prepared:
    """The study in ``folder/study.yaml``, and copies of its store as it was before and after each stage."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage takes if it is left alone."""

    @property
    def store(self) -> Path:
        """Where every case works."""
        return self.folder / "store"

    @property
    def file(self) -> Path:
        """The study file."""
        return self.folder / "study.yaml"

    def make(self, say: Callable[[str], None]) -> None:
        """Run the study undisturbed, stage by stage, unless a call of the same code has done so here before."""
        code = [path.read_text() for path in sorted(Path(raygeo.__file__).parent.rglob("*.py"))]
        done, made_of = self.folder / "prepared", content_key(settings(self.store), code)
        if done.exists() and done.read_text() == made_of:
            return
        done.unlink(missing_ok=True)
        for folder in (self.store, self.folder / "before", self.folder / "after"):
            shutil.rmtree(folder, ignore_errors=True)
        self.store.mkdir(parents=True)
        self.file.write_text(yaml.safe_dump(settings(self.store)))
        for stage in STRUCK:
            self._keep("before", stage)
            started = time.perf_counter()
            run_study(parse_study(settings(self.store)), until=stage, progress=Progress(Console(file=io.StringIO())))
            self.seconds[stage] = time.perf_counter() - started
            self._keep("after", stage)
            say(f"{stage}: {self.seconds[stage]:.0f} s if left alone")
        done.write_text(made_of)

    def _keep(self, when: str, stage: str) -> None:
        shutil.copytree(self.store, self.folder / when / stage, symlinks=True)

    def reset(self, stage: str) -> None:
        """Let the store be as it was when the stage began."""
        for inside in self.store.iterdir():
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside)
            else:
                inside.unlink()
        shutil.copytree(self.folder / "before" / stage, self.store, symlinks=True, dirs_exist_ok=True)

    def expected(self, stage: str) -> Left:
        """What is there if nobody disturbs it."""
        return Left.of(self.folder / "after" / stage)


def stamps(store: Path) -> dict[Path, int]:
    """When each unit, and each finished folder, was written."""
    written = [*store.glob("units/**/*.parquet"), *store.glob("*/*/_COMPLETE")]
    return {path: path.stat().st_mtime_ns for path in written if "checkpoints" not in path.parts}


def begun(stage: str, process: "Popen[str]", log: Path, store: Path, before: dict[Path, int]) -> None:
    """Wait until a stage is in the middle of its work.

    Raises:
        RuntimeError: the process ended before that.
    """
    deadline = time.monotonic() + 300
    since: float | None = None
    while True:
        if since is None and f"\n{stage}\n" in "\n" + log.read_text():
            since = time.monotonic()
        if since is not None:
            waited = time.monotonic() - since
            if stage == "train":
                if any(path.name == "_COMPLETE" for path in store.glob("checkpoints/*/*")):
                    return
            elif stage == "student":
                if waited > STUDENT_SECONDS:
                    return
            elif stamps(store).keys() - before.keys():
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the stage {stage} was over before it was struck:\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def untracked(uri: str, store: Path) -> list[str]:
    """What is wrong in MLflow with the study of a store: runs that are there twice or still run, steps that lack."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(NAME)
    if experiment is None:
        return ["no experiment"]
    found = client.search_runs([experiment.experiment_id])
    wrong = [f"{name} is there {n} times" for name, n in Counter(r.info.run_name for r in found).items() if n > 1]
    wrong += [f"{r.info.run_name} is RUNNING" for r in found if r.info.status == "RUNNING"]
    curves = (
        Store(store).table("training_curves").to_pylist() if (store / "tables/training_curves.parquet").exists() else []
    )
    for run in found:
        steps = sorted(row["step"] for row in curves if row["run"] == run.info.run_name and row["metric"] == "nll")
        shown = sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/nll"))
        if steps and shown != steps:
            wrong.append(f"the curve of {run.info.run_name} has {len(shown)} points for {len(steps)}")
    return wrong
