"""What every analysis makes of one tiny study, and the files ``golden/<analysis>.json`` that keep it.

``python tests/analyses/golden_numbers.py NAME [NAME ...]`` writes the files of these analyses as they are now. Kept
are, of each column of numbers in their tables, how many there are, their sum and the sum of their absolute values, and
the revisions of the workloads. The tolerance leaves room for processors that round otherwise, and for nothing else.
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import pyarrow as pa
import torch
from study_cases import draw_rollouts
from tiny import save_tiny_student

from raygeo.analyses.analysis import Analysis
from raygeo.analyses.inputs import AnalysisInputs, Training
from raygeo.analyses.registry import analyses, schemas
from raygeo.cluster.execution import in_process
from raygeo.data.exam import Exam
from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import renderer_for
from raygeo.losses.registry import LOSSES
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_student
from raygeo.models.run import Run
from raygeo.pipeline.context import StageContext
from raygeo.pipeline.probes import save_probes
from raygeo.pipeline.published import published
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.tables import BASE, to_arrow
from raygeo.training.settings import TrainingSettings

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 1e-3
SMALL = {
    "bootstrap": 100, "accuracy_problems": 4, "max_new_tokens": 12, "points": 3, "refine": 1, "accuracy_points": 3,
    "examples": 4, "max_steps": 12, "slq_steps": 4, "slq_probes": 2, "trace_probes": 2, "density_points": 8, "draws": 2,
    "ascent_steps": 2, "permutations": 99, "k": 4, "path_points": 3, "batch_size": 4, "steps": 4, "early": 0.5,
    "sparsities": (0.5,), "samples": 3, "micro_batch_size": 4, "texts": str(GOLDEN.parent / "retention.txt"),
    "predictors": ("geometry/delta_*",), "first_step": 0.02,
}  # fmt: skip
"""Options, of whatever analyses have them, that make them quick."""

Numbers = dict[str, dict[str, list[float]]]


@cache
def inputs() -> AnalysisInputs:
    """A base of 30 k weights, three runs of random deltas, texts, problems and rollouts."""
    folder = Path(mkdtemp())
    base = save_tiny_student(folder / "base")
    model, tokenizer = load_student(base)
    renderer = renderer_for(tokenizer)
    store = Store(folder / "store")
    table = draw_rollouts(12, seed=1)
    rows = table.to_pylist()
    store.write_unit("rollouts", {"rollouts": table})
    (folder / "tokens").mkdir()
    RolloutTokens.encode(renderer, ((r["prompt"], r["completion"], True) for r in rows)).save(folder / "tokens")
    right = {row["prompt"]: row["completion"] for row in rows if row["correct"]}
    save_probes(store, renderer, "probes", {"solutions": list(right.items()), "curvature": list(right.items())[:4]})
    runs, records = [Run(BASE, BASE, None)], {}
    training = TrainingSettings(steps=4).model_dump(mode="json")
    for place, (loss, seed) in enumerate((("sft", 0), ("sft", 1), ("dpo", 0))):
        name, generator = f"{loss}-s{seed}", torch.Generator().manual_seed(place)
        for step in (1, 2, 4):
            change = {n: 0.01 * step * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
            save_full_delta(folder / name / f"step-{step:06d}", change)
        runs.append(Run(name, name, folder / name / "step-000004", folder / name))
        settings = LOSSES[loss]().model_dump(mode="json")
        records[name] = RunRecord(name, name, "finished", settings, training | {"seed": seed}, steps=4)
    answered = [("sft-s0", 5), ("sft-s1", 7), ("dpo-s0", 2)]
    accuracy = [{"run": name, "benchmark": "made up", "n": 9, "correct": correct} for name, correct in answered]
    store.publish_rows("accuracy", to_arrow("accuracy", accuracy))
    return AnalysisInputs(
        base=base,
        runs=runs,
        reference="sft-s0",
        records=records,
        table=lambda name: published(store, name),
        make_probes=lambda: {n: store.stored("probes", "probes", f"{n}.npz") for n in ("solutions", "curvature")},
        exam=Exam([(row["prompt"], row["gold"]) for row in rows[::4]], "exact", renderer),
        training=Training({name: LOSSES[name[:3]]() for name in records}, store, "rollouts", folder / "tokens"),
    )


def _before(analysis: Analysis, given: AnalysisInputs) -> AnalysisInputs:
    """The inputs with the tables of what the analysis comes after, whatever else has been computed."""
    others = {table for one in analyses().values() if one.name not in analysis.after for table in one.tables}
    return replace(given, table=lambda name: schemas()[name].empty_table() if name in others else given.table(name))


def compute(analysis: Analysis) -> dict[str, pa.Table]:
    """The tables that an analysis makes, after those that it is made of."""
    given = inputs()
    assert given.training is not None
    store = given.training.store
    for name in analysis.after:
        if not store.has_table(next(iter(analyses()[name].tables))):
            compute(analyses()[name])
    options = {name: value for name, value in SMALL.items() if name in analysis.settings.model_fields}
    StageContext(store, in_process).publish(*analysis.make(analysis.settings(**options), _before(analysis, given)))
    return {name: store.table(name, columns) for name, columns in analysis.tables.items()}


def summary(tables: dict[str, pa.Table]) -> Numbers:
    """Of each column of numbers: how many there are, their sum, and the sum of their absolute values."""
    found: Numbers = {}
    for name, table in tables.items():
        found[name] = {}
        for column in table.column_names:
            kind = table.schema.field(column).type
            if pa.types.is_floating(kind) or pa.types.is_integer(kind):
                values = [float(value) for value in table[column].to_pylist() if value is not None]
                found[name][column] = [len(values), math.fsum(values), math.fsum(map(abs, values))]
    return found


@dataclass(frozen=True)
class Golden:
    """The revisions of an analysis' workloads, and what is kept of its tables."""

    revisions: dict[str, int]
    numbers: Numbers

    @classmethod
    def kept(cls, name: str) -> "Golden":
        """What the file has."""
        return cls(**json.loads((GOLDEN / f"{name}.json").read_text()))

    @classmethod
    def now(cls, name: str) -> "Golden":
        """What is computed now."""
        analysis = analyses()[name]
        revisions = {workload.name: workload.revision for workload in analysis.workloads}
        return cls(revisions, summary(compute(analysis)))

    def write(self, name: str) -> None:
        """Keep it."""
        GOLDEN.mkdir(exist_ok=True)
        numbers = {
            table: {column: [n, *(float(f"{value:.6g}") for value in sums)] for column, (n, *sums) in columns.items()}
            for table, columns in self.numbers.items()
        }
        text = json.dumps({"revisions": self.revisions, "numbers": numbers}, indent=1)
        (GOLDEN / f"{name}.json").write_text(text + "\n")


def difference(name: str, kept: Golden, now: Golden) -> str | None:
    """What is wrong with the numbers of an analysis, and what to do; None if nothing is."""
    write = f"python tests/analyses/golden_numbers.py {name}"
    if kept.revisions != now.revisions:
        return f"golden/{name}.json is of the revisions {kept.revisions}, it has {now.revisions}: {write}"
    for table, columns in now.numbers.items():
        for column, (count, total, size) in columns.items():
            before = kept.numbers.get(table, {}).get(column)
            if before is None or before[0] != count or abs(before[1] - total) > TOLERANCE * max(size, before[2]):
                return (
                    f"{table}.{column} is not as before: number, sum and sum of sizes are {[count, total, size]}, they "
                    f"were {before}. If that is meant, raise the revision of the workload of {name}, then {write}"
                )
    if gone := [f"{t}.{c}" for t, columns in kept.numbers.items() for c in columns if c not in now.numbers.get(t, {})]:
        return f"{', '.join(gone)} are gone; if that is meant, raise the revision of {name}, then {write}"
    return None


def main(names: list[str]) -> None:
    """Write the files of these analyses; refused where numbers changed and the revision did not."""
    for name in names or list(analyses()):
        now = Golden.now(name)
        if (GOLDEN / f"{name}.json").exists():
            kept = Golden.kept(name)
            if kept.revisions == now.revisions and (said := difference(name, kept, now)):
                raise SystemExit(said)
        now.write(name)


if __name__ == "__main__":
    main(sys.argv[1:])
