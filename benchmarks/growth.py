"""How everything after training grows with the number of runs: CPU time of each analysis, the summaries and the page.

Students are tiny and deltas are random, so that what is measured is the work a run or a pair adds, and not the model.
"""

import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import save_file

from benchmarks.cases import CASES, prepare
from raygeo.analyses.inputs import AnalysisInputs, Training
from raygeo.analyses.registry import analyses, parts, schemas, view
from raygeo.analyses.similarity.workload import Similarity, SimilaritySettings
from raygeo.cluster.execution import in_process
from raygeo.data.exam import Exam
from raygeo.data.grading import grader
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import renderer_for
from raygeo.losses.registry import LOSSES
from raygeo.models.loading import load_student
from raygeo.models.run import Run
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StageContext, StudyContext
from raygeo.pipeline.probes import save_probes
from raygeo.pipeline.published import published
from raygeo.pipeline.rollouts import provide_rollouts
from raygeo.pipeline.student import Student
from raygeo.records import RunRecord
from raygeo.report.page import PageContext, draw_figures, render_page
from raygeo.store import Store
from raygeo.tables import BASE, to_arrow
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.settings import TrainingSettings

TRAINED = ("sft", "rft", "dft", "rift", "dpo", "grpo")
SMALL = {
    "bootstrap": 100, "accuracy_problems": 0, "points": 3, "refine": 0, "examples": 3, "max_steps": 4, "slq_probes": 0,
    "trace_probes": 2, "permutations": 999, "path_points": 3, "top_k": 1, "steps": 2, "fp64_check": False,
}  # fmt: skip
"""Options, of whatever analyses have them, that leave the runs to count."""


@dataclass(frozen=True)
class Case:
    """Studies of these numbers of runs, ``seeds`` runs a configuration, with adapters of ``rank`` on q and v."""

    sizes: tuple[int, ...] = (8, 25, 50)
    seeds: int = 5
    rank: int = 2
    texts: int = 4
    steps: int = 20


def measure(case: Case, only: Sequence[str] = (), keep: Path | None = None) -> dict[str, dict[int, float]]:
    """CPU seconds by what is done and number of runs; ``only`` names the analyses made, all by default.

    With ``keep``, a page a size is left there.
    """
    found: dict[str, dict[int, float]] = {}
    for size in case.sizes:
        with tempfile.TemporaryDirectory() as folder:
            for what, seconds in _measured(case, size, Path(folder), only, keep):
                found.setdefault(what, {})[size] = seconds
    return found


def pieces() -> dict[str, dict[int, float]]:
    """CPU milliseconds a row, unit or pair, by what is done and how many there are.

    Rows have about 1,024 tokens of a word-level tokenizer; the module is 1,024 x 1,024 and its deltas of rank 16.
    """
    made: dict[str, tuple[tuple[int, ...], Callable[[int, Path], float]]] = {
        "rows read, checked, tokenised, graded": ((250, 1000, 4000), _rows),
        "answers judged by math-verify": ((50, 200, 800), _judged),
        "units stored, 20 a call, and published": ((250, 1000, 4000), _units),
        "pairs of runs compared in one module": ((8, 50, 200), _module),
        "completions of 64 tokens decoded together at 36 blocks": ((1, 8, 64), _decoded),
    }
    found: dict[str, dict[int, float]] = {}
    for what, (sizes, measured) in made.items():
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(what, {})[size] = 1000 * measured(size, Path(folder))
    return found


def exponent(seconds: dict[int, float]) -> float:
    """The power of the number of runs that the last two sizes show."""
    (a, first), (b, last) = sorted(seconds.items())[-2:]
    return math.log(last / first) / math.log(b / a)


def _measured(case: Case, size: int, folder: Path, only: Sequence[str], keep: Path | None) -> Any:
    given = study(case, size, folder)
    assert given.training is not None
    store = given.training.store
    for name, analysis in analyses().items():
        if only and name not in only:
            continue
        options = {option: value for option, value in SMALL.items() if option in analysis.settings.model_fields}
        context = StageContext(store, in_process)  # type: ignore[arg-type]
        yield name, _cpu(lambda: context.publish(*analysis.make(analysis.settings(**options), given)))  # noqa: B023
    tables = {name: published(store, name) for name in schemas()}
    yield "MLflow summaries", _cpu(lambda: [list(make(view(tables, given.reference))) for make in parts().metrics])
    shown = view(tables, given.reference)
    figures: dict[str, Any] = {}
    yield "figures", _cpu(lambda: figures.update(draw_figures(shown, parts())))
    pages: list[str] = []
    about = PageContext(f"{size} runs", "a tiny student", given.reference, "2000-01-01")
    yield "page", _cpu(lambda: pages.append(render_page(shown, about, figures, parts())))
    yield "page, MB", len(pages[0]) / 1e6
    yield "memory at most, GB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{size}.html").write_text(pages[0])


def _cpu(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def study(case: Case, size: int, folder: Path) -> AnalysisInputs:
    """The base, ``size`` runs with random adapters, and what an analysis may need, as after training and evaluation."""
    prepared = prepare(CASES["tiny"], 6, 1, folder)
    store, base = prepared.store, folder / "student"
    model, tokenizer = load_student(base)
    renderer = renderer_for(tokenizer)
    rows = store.read_unit("rollouts", "rollouts").to_pylist()
    right = list({row["prompt"]: row["completion"] for row in rows if row["correct"]}.items())
    save_probes(store, renderer, "probes", {"solutions": right[: case.texts], "curvature": right[:2]})
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if "q_proj" in name or "v_proj" in name}
    runs, records = [Run(BASE, BASE, None)], {}
    training = TrainingSettings(steps=case.steps).model_dump(mode="json")
    generator = torch.Generator().manual_seed(0)
    for number in range(size):
        configuration, seed = divmod(number, case.seeds)
        loss, lr = TRAINED[configuration % len(TRAINED)], 1e-4 * 2 ** (configuration // len(TRAINED))
        name = f"{loss}-lr{lr:g}-s{seed}"
        for step in (1, case.steps):
            _save_adapter(folder / name / f"step-{step:06d}", shapes, case.rank, generator)
        runs.append(Run(name, name, folder / name / f"step-{case.steps:06d}", folder / name))
        settings = LOSSES[loss]().model_dump(mode="json")
        records[name] = RunRecord(
            name, name, "finished", settings, training | {"lr": lr, "seed": seed}, steps=case.steps, seconds=1.0
        )
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records.values()]))
    _publish_results(store, list(records), case.steps)
    return AnalysisInputs(
        base=base,
        runs=runs,
        reference=next(iter(records)),
        records=records,
        table=lambda name: published(store, name),
        make_probes=lambda: {n: store.stored("probes", "probes", f"{n}.npz") for n in ("solutions", "curvature")},
        exam=Exam([(row["prompt"], row["gold"]) for row in rows[:4]], "exact", renderer),
        training=Training({n: LOSSES[n.split("-")[0]]() for n in records}, store, "rollouts", folder / "tokens"),
    )


def _save_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, generator: torch.Generator) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    factors = {}
    for name, (out, into) in shapes.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{module}.lora_A.weight"] = 0.1 * torch.randn(rank, into, generator=generator)
        factors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(out, rank, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")


def _publish_results(store: Store, runs: list[str], steps: int) -> None:
    """Accuracies, tests of every pair, and curves, of random numbers."""
    rng = np.random.default_rng(0)
    names = [BASE, *runs]
    correct = rng.integers(40, 60, len(names)).tolist()
    accuracy: list[dict[str, Any]] = [
        {"run": name, "benchmark": "heldout", "n": 100, "correct": right, "accuracy": right / 100}
        | {"low": right / 100 - 0.09, "high": right / 100 + 0.09, "truncated": 0, "no_answer": 0, "undecided": 0}
        for name, right in zip(names, correct, strict=True)
    ]
    tests = [
        {
            "benchmark": "heldout",
            "run_a": a,
            "run_b": b,
            "n": 100,
            "only_a": 9,
            "only_b": 9,
            "p_exact": 1.0,
            "p_holm": 1.0,
        }
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    curves = [
        {"run": name, "step": step, "metric": metric, "value": 1 / step + 0.1 * float(rng.random())}
        for name in runs
        for metric in ("objective", "nll")
        for step in range(1, steps + 1)
    ]
    for table, rows in (("accuracy", accuracy), ("mcnemar", tests), ("training_curves", curves)):
        store.publish_rows(table, to_arrow(table, rows))


def _rows(rows: int, folder: Path) -> float:
    """CPU seconds a row from a file of rollouts to the table and tokens of a study, in one process."""
    tokenizer = word_tokenizer()
    student = folder / "student"
    build_model(CASES["tiny"].architecture.model_copy(update={"context": 2048}), tokenizer, 0).save_pretrained(student)
    tokenizer.save_pretrained(student)
    words = [word for word in tokenizer.get_vocab() if word.isalpha()]
    rng = Random(0)
    with (folder / "rollouts.jsonl").open("w") as file:
        for row in range(rows):
            prompt, text = (" ".join(rng.choices(words, k=count)) for count in (70, 950))
            fields = {"prompt": f"{prompt} {row // 4}", "completion": f"{text} #### {row % 90}"}
            file.write(json.dumps(fields | {"gold": str(row // 4 % 90)}) + "\n")
    study = parse_study(
        {
            "name": "rows",
            "student": {"model": str(student)},
            "rollouts": {"read": [{"type": "jsonl", "path": str(folder / "rollouts.jsonl")}], "grading": "exact"},
            "runs": [{"loss": {"type": "sft"}}],
        }
    )
    context = StudyContext(Store(folder / "store"), in_process, study=study)  # type: ignore[arg-type]
    return _cpu(lambda: provide_rollouts(context, Student("student", str(student), None, ""))) / rows


def _judged(answers: int, folder: Path) -> float:
    """CPU seconds an answer of math-verify, in the process that it runs in."""
    given = [
        (rf"So it is \boxed{{\frac{{{n + 1}}}{{{n + 3}}}}}", rf"\frac{{{2 * n + 2}}}{{{2 * n + 6}}}")
        for n in range(answers)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with grader("math") as judge:
        assert all(verdict.correct for verdict in judge.grade_many(given))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / answers


def _units(units: int, folder: Path) -> float:
    """CPU seconds a unit: its rows stored, 20 units a call, then read and published."""
    store, columns = Store(folder / "store"), schemas()["sharpness"]
    keys = [f"{number:016x}-r1" for number in range(units)]
    rows = to_arrow("sharpness", [{"run": "a"}] * 4, columns)

    def work() -> None:
        for start in range(0, units, 20):
            store.write_units({key: {"sharpness": rows} for key in keys[start : start + 20]})
        store.publish("sharpness", keys, columns)

    return _cpu(work) / units


def _module(runs: int, folder: Path) -> float:
    """CPU seconds a pair of runs: inner products of LoRA deltas of one module, and rows of all pairs."""
    shapes, generator = {"m.weight": (1024, 1024)}, torch.Generator().manual_seed(0)
    (folder / "base").mkdir()
    save_file({"m.weight": torch.zeros(1024, 1024)}, folder / "base" / "model.safetensors")
    found = []
    for number in range(runs):
        _save_adapter(folder / str(number), shapes, 16, generator)
        found.append(Run(str(number), str(number), folder / str(number)))
    workload = Similarity(SimilaritySettings(), found, folder / "base")
    state, [task] = workload.setup(), workload.tasks()
    return _cpu(lambda: workload.compute(state, task.payload)) / (runs * (runs - 1) / 2)


def _decoded(completions: int, folder: Path) -> float:
    """CPU seconds a completion of 64 tokens of a student with 36 blocks of width 64, so many decoded together."""
    deep = CASES["tiny"].architecture.model_copy(update={"layers": 36, "hidden": 64, "intermediate": 128})
    tokenizer = word_tokenizer()
    model = build_model(deep, tokenizer, 0).eval()
    tokenizer.stop_ids = ()
    asked = Request(["Amy has 7 eggs . how many eggs ?"] * completions, 64, 1, 1.0, 0)
    engine = LocalEngine(model, renderer_for(tokenizer))
    return _cpu(lambda: engine.generate(asked)) / completions


def table(found: dict[str, dict[int, float]]) -> Table:
    """What was measured, as a table for people."""
    sizes = sorted({size for seconds in found.values() for size in seconds})
    shown = Table("CPU seconds", *(f"{size} runs" for size in sizes), "exponent", title="growth with runs")
    for what, seconds in found.items():
        power = exponent(seconds) if len(seconds) > 1 and min(seconds.values()) > 0 else math.nan
        shown.add_row(what, *(f"{seconds.get(size, math.nan):.2f}" for size in sizes), f"{power:.1f}")
    return shown


def pieces_table(found: dict[str, dict[int, float]]) -> Table:
    """What pieces of work take, as a table for people; the exponent is that of all of them together."""
    shown = Table("CPU ms for each", "how many", "ms", "exponent", title="pieces of work")
    for what, each in found.items():
        counts = ", ".join(f"{count:,}" for count in each)
        shown.add_row(what, counts, ", ".join(f"{ms:.3g}" for ms in each.values()), f"{1 + exponent(each):.2f}")
    return shown
