"""Runs in stages and rounds through the training stage, really trained, in one process without a cluster."""

import io
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from process_cases import run_in_group
from rich.console import Console
from study_cases import save_parts, tiny_study

from raygeo.cluster.execution import in_process
from raygeo.generation.renderer import PlainRenderer
from raygeo.geometry.weights.trajectory import trajectory
from raygeo.models.batches import collate
from raygeo.models.delta import open_delta
from raygeo.models.likelihood import token_logprobs
from raygeo.models.loading import load_student
from raygeo.models.merge import merge_run
from raygeo.pipeline import chains as joining
from raygeo.pipeline import student as students
from raygeo.pipeline import train as stage
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.monitor import monitor_runs
from raygeo.pipeline.rollouts import heldout_problems, provide_rollouts
from raygeo.pipeline.student import provide_student
from raygeo.pipeline.train import provide_references, train_runs
from raygeo.progress import Progress
from raygeo.records import RunRecord
from raygeo.store import Store
from raygeo.training.engine import import_deepspeed
from raygeo.training.worker import Job, train

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SFT, DPO = {"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}, "batch_size": 4}
SHARP = DPO | {"lr": 5e-3, "steps": 3}
LORA = {"r": 2, "lora_alpha": 4}
RUNS = [
    {"stages": [SFT, SHARP], "name": "staged"},
    {"stages": [SFT, SHARP | {"reference": "base"}], "name": "on base"},
    SFT | {"name": "alone"},
    {"stages": [SFT, DPO, SFT | {"lr": 1e-4}], "lora": LORA, "name": "adapters"},
    SFT | {"rounds": 2, "sampling": {"samples": 2, "max_new_tokens": 12}, "steps": 2, "name": "rounds"},
    {"stages": [SFT | {"lr": 1e12}, DPO], "name": "explodes"},
]


class Here:
    """Runs workloads in this process."""

    def __call__(self, *given):
        in_process(*given)

    def close(self):
        pass


class Untold:
    """Takes what MLflow is told."""

    def __getattr__(self, name):
        return lambda *given: None


def stage_in_process(rank, ranks, folder):
    """Run the stages of a study up to the monitor, twice, and write down what was trained each time."""
    os.environ |= {"LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    trained = []

    def sweep(specs, inputs, store, *given, own, **options):
        for key, spec in specs.items():
            trained.append(spec.name)
            train(Job(spec, key, own.get(key, inputs), store), lambda step, metrics: None)
        return {}

    def call(work, *given, **resources):
        work(lambda done, total, note: None)

    stage.run_sweep, joining.call, students.call = sweep, call, call
    told = []
    for again in (False, True):
        if again:
            lost = json.loads((Path(folder) / "keys.json").read_text())["staged"]
            shutil.rmtree(Path(folder) / "store" / "deltas" / lost)
        trained.clear()
        console = Console(file=io.StringIO(), width=200)
        context = StudyContext(Store(Path(folder) / "store"), Here(), Progress(console), study=study_of(folder))
        student = provide_student(context)
        rollouts = provide_rollouts(context, student)
        references = provide_references(context, student, rollouts)
        found = train_runs(context, student, rollouts, references, Untold())
        monitor_runs(context, student, rollouts, found.runs, {"heldout": heldout_problems(rollouts)})
        told.append({"trained": list(trained), "said": console.file.getvalue(), "missing": list(context.missing)})
        keys = {row["run"]: row["key"] for row in context.store.table("runs").to_pylist()}
        (Path(folder) / "keys.json").write_text(json.dumps(keys))
    told[0]["legs"] = [run.name for run in found.runs if run.leg]
    (Path(folder) / "told.json").write_text(json.dumps(told))


def study_of(folder):
    parts = {
        "student": {"model": f"{folder}/student", "cpus": 1},
        "rollouts": {"read": [{"type": "parquet", "path": f"{folder}/rollouts.parquet"}], "heldout": 0.3},
    }
    settings = {"steps": 4, "batch_size": 8, "lr": 1e-3, "snapshots": 2}
    asked = {"answers": {"max_new_tokens": 8}, "monitor": {"problems": 5}}
    return parse_study(tiny_study(**parts, training=settings, runs=RUNS, evaluation=asked))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    save_parts(folder, prompts=16)
    run_in_group(stage_in_process, 1, str(folder))
    store = Store(folder / "store")
    records = {row["run"]: RunRecord.of(row) for row in store.table("runs").to_pylist()}
    first, second = json.loads((folder / "told.json").read_text())
    return SimpleNamespace(store=store, records=records, first=first, second=second, folder=folder)


def delta(made, name):
    return open_delta(made.records[name].delta)


def objective(made, name):
    rows = made.store.table("training_curves").to_pylist()
    return {row["step"]: row["value"] for row in rows if (row["run"], row["metric"]) == (name, "objective")}


def test_every_stage_is_trained_once_and_nothing_again(made):
    levels = [
        ["alone", "adapters-leg1", "rounds-round1", "explodes-leg1"],
        ["staged-leg2", "on base-leg2", "adapters-leg2", "rounds-round2"],
        ["adapters-leg3"],
    ]
    assert made.first["trained"] == [name for level in levels for name in level]
    assert made.second["trained"] == []


def test_runs_and_their_stages_have_names_and_shared_ones_are_named_once(made):
    assert list(made.records) == [
        "staged", "staged-leg2", "on base", "on base-leg2", "alone", "adapters", "adapters-leg1", "adapters-leg2",
        "adapters-leg3", "rounds", "explodes", "explodes-leg1", "explodes-leg2",
    ]  # fmt: skip
    assert made.first["legs"] == ["staged-leg2", "on base-leg2", "adapters-leg2", "adapters-leg3"]
    assert made.records["staged"].label == "sft+dpo"
    assert made.records["staged-leg2"].label == "dpo after sft"
    assert made.records["rounds"].label == "sft-2rounds"


@pytest.mark.parametrize(
    ("whole", "legs"),
    [
        ("staged", ("alone", "staged-leg2")),
        ("adapters", ("adapters-leg1", "adapters-leg2", "adapters-leg3")),
    ],
)
def test_the_whole_is_the_sum_of_its_stages(made, whole, legs):
    total = delta(made, whole)
    assert total.low_rank == (whole == "adapters")
    for name, entry in total.items():
        expected = sum(delta(made, leg)[name].dense(torch.float64) for leg in legs)
        torch.testing.assert_close(entry.dense(torch.float64), expected, rtol=1e-6, atol=1e-8)
        assert expected.any()
    assert made.records[whole].steps == sum(made.records[leg].steps for leg in legs)


def test_the_way_of_the_whole_goes_through_the_end_of_every_stage(made):
    snapshots = Path(made.store.folder("snapshots", made.records["adapters"].key))
    assert sorted(path.name for path in snapshots.glob("step-*")) == ["step-000004", "step-000008"]
    kept = [open_delta(snapshots / f"step-{step:06d}") for step in (4, 8)]
    way = trajectory([*kept, delta(made, "adapters")])
    norms = [
        sum(float(e.dense(torch.float64).square().sum()) for e in delta(made, f"adapters-leg{n}").values()) ** 0.5
        for n in (1, 2, 3)
    ]
    assert way.distance == pytest.approx(norms, rel=1e-4)
    after = kept[1]
    for name, entry in after.items():
        expected = sum(delta(made, f"adapters-leg{n}")[name].dense(torch.float64) for n in (1, 2))
        torch.testing.assert_close(entry.dense(torch.float64), expected, rtol=1e-6, atol=1e-8)


def test_a_preference_stage_compares_with_its_start_and_so_begins_at_log_2(made):
    assert objective(made, "staged-leg2")[1] == pytest.approx(math.log(2), abs=1e-5)
    assert objective(made, "adapters-leg2")[1] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(objective(made, "on base-leg2")[1] - math.log(2)) > 1e-3


def test_curves_of_the_whole_follow_each_other(made):
    first, second, whole = (objective(made, name) for name in ("alone", "staged-leg2", "staged"))
    assert whole == first | {step + 4: value for step, value in second.items()}


def test_adapters_of_stages_are_drawn_apart(made):
    first, second = (delta(made, f"adapters-leg{n}") for n in (1, 2))
    for name in first:
        one, other = (entry[name].a.flatten() for entry in (first, second))
        assert abs(torch.nn.functional.cosine_similarity(one, other, dim=0)) < 0.5


def test_rollouts_of_a_round_are_those_of_the_run_as_it_was(made):
    """Their log-probabilities, at temperature 1, are those of base + the first round's delta."""
    store = made.store
    rows = [row for row in store.table("stages").to_pylist() if row["run"] == "rounds"]
    assert [(row["round"], row["first_step"], row["last_step"]) for row in rows] == [(1, 1, 2), (2, 3, 4)]
    merge_run(made.folder / "student", store.folder("deltas", rows[0]["key"]), made.folder / "merged")
    problems = {row["prompt"] for row in store.table("rollouts").to_pylist() if row["split"] == "train"}
    for row, folder, other in zip(rows, ("student", "merged"), ("merged", "student"), strict=True):
        sampled = [r for r in store.read_unit("rollouts", row["rollouts"]).to_pylist() if r["logprobs"]]
        assert row["sampled"] == len(sampled) == 2 * len({r["prompt"] for r in sampled})
        assert {r["prompt"] for r in sampled} == problems
        [one, *_] = sampled
        assert logprobs(made.folder / folder, one) == pytest.approx(one["logprobs"], abs=1e-4)
        assert logprobs(made.folder / other, one) != pytest.approx(one["logprobs"], abs=1e-4)


def logprobs(folder, row):
    model, tokenizer = load_student(folder)
    sequence = PlainRenderer(tokenizer).encode(row["prompt"], row["completion"], ended=not row["truncated"])
    batch = collate([sequence], tokenizer.pad_token_id)
    with torch.no_grad():
        return token_logprobs(model, batch)[batch.mask].tolist()


def test_a_stage_behind_one_that_diverged_is_not_trained_and_says_why(made):
    whole, leg = made.records["explodes"], made.records["explodes-leg2"]
    assert {whole.status, leg.status, made.records["explodes-leg1"].status} == {"diverged"}
    assert whole.reason.startswith("explodes-leg1: ")
    assert whole.delta is None
    assert made.first["missing"] == []


def test_students_between_stages_do_not_stay(made):
    assert len(made.store.folders("students")) == 1


def test_what_is_measured_on_the_way_has_a_row_for_every_kept_step(made):
    rows = made.store.table("monitor").to_pylist()
    steps = {(row["run"], row["benchmark"]): [] for row in rows}
    for row in rows:
        steps[row["run"], row["benchmark"]].append(row["step"])
    assert steps["rounds", "heldout"] == steps["rounds", "train"] == [0, 2, 4]
    assert steps["staged", "train"] == [0, 4, 7]
    assert steps["alone", "train"] == [0, 1, 2, 4]
    assert not any(run.endswith(("leg2", "leg3")) for run, _ in steps)
    found = {(row["run"], row["benchmark"]): row["steps"] for row in made.store.table("partings").to_pylist()}
    assert found["rounds", "heldout"] == 3
