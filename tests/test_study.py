"""Whole studies on real Ray, DeepSpeed and MLflow."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from study_cases import draw_rollouts, save_parts, tiny_study
from tiny import save_tiny_student

from raygeo.errors import DataError, RaygeoError, StudentError, TrainingError
from raygeo.models.delta import open_delta
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.report import rewrite_report
from raygeo.pipeline.study import run_study
from raygeo.records import RunRecord
from raygeo.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ONE = {"max_actors": 1}  # each takes seconds to start
TRAINING = {"steps": 4, "batch_size": 8, "lr": 1e-3, "log_every": 2, "cpus": 1.5}  # one run at a time
RUNS = [
    {"loss": {"type": "sft"}, "seed": [0, 1]},
    {"loss": {"type": "dpo"}, "batch_size": 4},
    {"loss": {"type": "grpo"}, "lora": {"r": 4, "lora_alpha": 8}, "name": "grpo-lora"},
    {"loss": {"type": "sft"}, "lr": 1e12, "name": "explodes"},
]


@pytest.fixture(scope="module")
def rollout_file(tmp_path_factory):
    """Graded rollouts as a user would bring them, with some bad rows among them."""
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    rows = draw_rollouts(40).select(["prompt", "completion", "reward", "gold"]).to_pylist()
    lines = [json.dumps(row) for row in rows]
    lines[3] = "{not json"
    lines[5] = json.dumps(rows[5] | {"completion": " "})
    lines[8] = json.dumps(rows[8] | {"reward": "good"})
    lines[9] = json.dumps(rows[9] | {"completion": "1 " * 200})
    path.write_text("\n".join(lines) + "\n")
    return path


def study_over(rollout_file, **changes):
    fields = {"gold": "gold", "reward": "reward"}
    read = [{"type": "jsonl", "path": str(rollout_file), "fields": fields}]
    return parse_study(tiny_study(rollouts={"read": read, "heldout": 0.3}, **changes))


@pytest.fixture(scope="module")
def finished(ray_session, tmp_path_factory):
    """A finished study with two data orders, a pairwise loss, an adapter and a run that diverges."""
    folder = tmp_path_factory.mktemp("finished")
    location = str(folder / "store")
    rollouts = save_parts(folder, prompts=30)["rollouts"]
    study = parse_study(tiny_study(rollouts=rollouts, training=TRAINING, runs=RUNS, store=location))
    run_study(study)
    return study, Store(location, create=False)


def test_every_table_is_there(finished):
    _, store = finished
    tables = {name: table.num_rows for name, table in store.tables().items()}
    optional = {
        "matched_paths", "matched_barriers", "curve_paths", "curve_barriers", "planes", "plane_runs", "intruders",
        "layer_alpha", "loss_predictions", "retained", "forgetting", "forgetting_laws", "compressibility", "tuned",
        "tunability", "diversity", "rank_truncation", "least_ranks", "heads", "head_effects", "critical_sharpness",
        "matched", "matched_examples", "matched_tests",
    }  # fmt: skip
    assert {name for name, rows in tables.items() if rows == 0} <= {
        "missing",
        "pass_at_k",
        "set_aside",
        "reference_states",
        "trials",
        "objectives",
        "stages",
        "monitor",
        "partings",
        "drops",
        "prescreen",
        "teacher_top",
    } | optional
    assert set(store.table("answers")["run"].to_pylist()) == {
        "base", "sft-lr0.001-s0", "sft-lr0.001-s1", "dpo-lr0.001-s0", "grpo-lora",
    }  # fmt: skip
    assert tables["paths"] == 10 * 3 * 3
    assert tables["mcnemar"] == 10
    made_of = store.revisions("answers")
    assert made_of
    assert [store.revisions(table) for table in ("accuracy", "mcnemar", "pass_at_k")] == [made_of] * 3


def test_a_run_that_diverges_is_named_and_the_others_go_on(finished):
    _, store = finished
    runs = {row["run"]: row for row in store.table("runs").to_pylist()}
    assert runs["explodes"]["status"] == "diverged"
    assert "lower lr" in runs["explodes"]["reason"]
    assert runs["explodes"]["delta"] is None
    assert [row["status"] for name, row in runs.items() if name != "explodes"] == ["finished"] * 4


def test_the_log_says_in_a_line_what_each_stage_found(finished):
    study, store = finished
    log = store.read_bytes(f"logs/{study.name}.log").decode()
    counts = {row["name"]: row["value"] for row in store.table("counts").to_pylist() if row["stage"] == "rollouts"}
    [answers] = {row["n"] for row in store.table("accuracy").to_pylist()}
    for said in (
        "qwen3: 2 blocks of width 32, vocabulary 68, at most 128 tokens",
        f"{counts['rows']} rollouts: {counts['correct']} right, {counts['wrong']} wrong; {counts['prompts']} prompts: ",
        "to learn from: sft ",
        "the base's log-probabilities",
        "runs: 4 finished, 1 diverged",
        f"{5 * answers} answers, ",
        "heldout: base ",
        f"{len(study.geometry.asked())} analyses made, 0 failed",
    ):
        assert said in log, said


def test_deltas_are_whole_and_norms_agree_with_them(finished):
    _, store = finished
    norms = {row["run"]: row["norm"] for row in store.table("deltas").to_pylist() if row["scope"] == "global"}
    for row in store.table("runs").to_pylist():
        if row["status"] != "finished":
            continue
        delta = open_delta(row["delta"])
        norm = sum(float(entry.dense(torch.float64).square().sum()) for entry in delta.values()) ** 0.5
        assert norms[row["run"]] == pytest.approx(norm, rel=1e-6)
        assert delta.low_rank == (row["run"] == "grpo-lora")


def test_counts_say_what_each_loss_saw(finished):
    _, store = finished
    counts = {(row["stage"], row["name"]): row["value"] for row in store.table("counts").to_pylist()}
    assert counts["rollouts", "rows"] == 120
    assert counts["rollouts", "heldout_prompts"] == 9
    assert counts["sft-lr0.001-s0", "rows_seen"] == 21 * 4
    assert counts["dpo-lr0.001-s0", "pairs"] > 0


def test_mlflow_has_one_child_for_each_run_with_curves_and_summaries(finished):
    study, store = finished
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {"base", *(spec.name for spec in study.specs())}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    dpo = children["dpo-lr0.001-s0"]
    assert dpo.data.params["options/beta"] == "0.1"
    steps = [m.step for m in client.get_metric_history(dpo.info.run_id, "train/nll")]
    assert sorted(steps) == [1, 2, 3, 4]  # each once; those that no report brought in time are filled in at the end
    assert {
        "train/loss",
        "eval/accuracy",
        "eval/heldout/accuracy",
        "geometry/delta_norm",
        "geometry/cosine_to_reference",
        "geometry/top_eigenvalue/hessian",
    } <= dpo.data.metrics.keys()
    assert "rewards/accuracies" in dpo.data.metrics  # of pairs; accuracy is that of answers
    assert {name.partition("/")[0] for name in dpo.data.metrics} == {"train", "rewards", "eval", "geometry"}
    assert "eval/heldout/accuracy" in children["base"].data.metrics
    used = {(each.dataset.name, each.tags[0].value) for each in dpo.inputs.dataset_inputs}
    assert used == {("rollouts", "training"), ("heldout", "evaluation")}
    models = {model.source_run_id: model for model in client.search_logged_models([experiment.experiment_id])}
    assert set(models) == {run.info.run_id for name, run in children.items() if name not in ("base", "explodes")}
    assert Path(models[dpo.info.run_id].tags["raygeo.weights"]).is_dir()
    [record] = [RunRecord.of(row) for row in store.table("runs").to_pylist() if row["run"] == "dpo-lr0.001-s0"]
    began, ended = (datetime.fromisoformat(moment).timestamp() * 1000 for moment in (record.started, record.ended))
    assert began < ended == pytest.approx(dpo.info.end_time, abs=1)
    assert parent.info.start_time <= dpo.info.start_time < dpo.info.end_time <= parent.info.end_time
    seeds = {children[f"sft-lr0.001-s{seed}"].data.tags["raygeo.configuration"] for seed in (0, 1)}
    assert len(seeds) == 1
    assert children["explodes"].info.status == "FAILED"
    assert parent.info.status == "FINISHED"
    assert "report.html" in {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {f"figures/{n}.png" for n in ("cosine", "spectra", "cka")} <= {
        item.path for item in client.list_artifacts(parent.info.run_id, "figures")
    }
    own = {name: client.list_artifacts(children[name].info.run_id, "figures") for name in children}
    training, spectra = "figures/training.png", "figures/spectra.png"
    assert {item.path for item in own["dpo-lr0.001-s0"]} == {training, spectra}
    assert {item.path for item in own["explodes"]} == {training}
    assert {item.path for item in own["base"]} == {spectra}


@pytest.mark.usefixtures("no_figures")
def test_the_report_stands_alone_and_can_be_written_again(finished):
    _, store = finished
    page = Path(store.path("report.html")).read_text()
    assert "explodes" in page
    assert "made for demonstration" in page
    os.remove(store.path("report.html"))
    assert rewrite_report(store).path == store.path("report.html")
    assert "explodes" in Path(store.path("report.html")).read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_finished_study_trains_nothing_again(finished, capfd):
    study, store = finished
    before = {path: path.stat().st_mtime_ns for path in Path(store.path("units")).rglob("*.parquet")}
    run_study(study)
    after = {path: path.stat().st_mtime_ns for path in Path(store.path("units")).rglob("*.parquet")}
    assert after == before


def test_rollouts_are_sampled_from_the_built_in_teacher(finished, tmp_path):
    shutil.copytree(finished[1].path(), tmp_path / "store")
    study = parse_study(tiny_study(store=str(tmp_path / "store"), actors=ONE))
    store = run_study(study, until="rollouts")
    rollouts = store.table("rollouts").to_pandas()
    assert len(rollouts) == 120
    assert set(rollouts.groupby("prompt_id").size()) == {4}
    assert set(rollouts.groupby("prompt_id")["split"].nunique()) == {1}
    assert rollouts.groupby("split")["prompt_id"].nunique().to_dict() == {"heldout": 9, "train": 21}
    assert rollouts["completion"].nunique() > 50


def test_a_local_model_is_known_by_its_content_and_linked(rollout_file, ray_session, tmp_path):
    folder = save_tiny_student(tmp_path / "model")
    moved = shutil.copytree(folder, tmp_path / "moved")
    other = save_tiny_student(tmp_path / "other", seed=1)
    location = tmp_path / "store"
    for model in (folder, moved, other):
        study = study_over(rollout_file, store=str(location), student={"model": str(model)})
        run_study(study, until="student")
    linked = list((location / "students").glob("*/model.safetensors"))
    assert len(linked) == 2
    assert all(path.is_symlink() for path in linked)


@pytest.mark.parametrize(
    ("model", "said"), [("/no/such/model", "neither a folder nor a hub id"), ("nobody/nothing", "cannot be fetched")]
)
def test_a_model_that_is_not_there_is_named(rollout_file, ray_session, tmp_path, model, said):
    study = study_over(rollout_file, store=str(tmp_path / "store"), student={"model": model})
    with pytest.raises(StudentError, match=said):
        run_study(study, until="student")


def test_bad_rows_are_set_aside_counted_and_survivable(rollout_file, ray_session, tmp_path):
    student = {"model": str(save_tiny_student(tmp_path / "model"))}
    study = study_over(rollout_file, store=str(tmp_path / "store"), student=student)
    store = run_study(study, until="rollouts")
    aside = store.table("set_aside").to_pylist()
    assert {(row["line"], row["reason"]) for row in aside} == {
        (4, "not JSON"), (6, "empty completion"), (9, "reward is not a number"),
        (10, "prompt and completion longer than the context (128)"),
    }  # fmt: skip
    counts = {row["name"]: row["value"] for row in store.table("counts").to_pylist()}
    assert counts["rows"] == 156
    assert counts["set_aside"] == 4


def test_too_many_bad_rows_stop_the_study(rollout_file, ray_session, tmp_path):
    student = {"model": str(save_tiny_student(tmp_path / "model"))}
    study = study_over(rollout_file, store=str(tmp_path / "store"), student=student)
    strict = study.model_copy(update={"rollouts": study.rollouts.model_copy(update={"max_set_aside": 0.01})})
    with pytest.raises(DataError, match="4 of 160 records cannot be used"):
        run_study(strict, until="rollouts")


def test_a_study_in_which_nothing_finishes_says_why(finished, tmp_path):
    study, store = finished
    shutil.copytree(store.path(), tmp_path / "store")
    only = study.model_copy(update={"store": str(tmp_path / "store"), "runs": study.runs[-1:]})
    with pytest.raises(TrainingError, match=r"no run finished(.|\n)*lower lr"):
        run_study(only)
    page = Path(tmp_path / "store" / "report.html").read_text()
    assert "lower lr" in page
    assert not Store(only.store, create=False).table("similarity").num_rows


@pytest.mark.usefixtures("no_figures")
def test_a_part_that_fails_is_left_out_named_and_made_by_the_same_call(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("raygeo.pipeline.study.foresee", lambda *given: {})  # which would refuse the benchmark
    study, whole = finished
    location = tmp_path / "store"
    shutil.copytree(whole.path(), location)
    shutil.rmtree(location / "units" / "sharpness")
    probes = list(location.glob("probes/*/curvature.npz"))
    contents = [probe.read_bytes() for probe in probes]
    for probe in probes:
        probe.write_bytes(b"PK")
    problems = tmp_path / "benchmark.jsonl"
    problem = next(row for row in whole.table("rollouts").to_pylist() if row["split"] == "heldout")
    problems.write_text(json.dumps({"prompt": problem["prompt"] * 40, "gold": problem["gold"]}) + "\n")  # too long
    benchmark = {"name": "extra", "problems": {"type": "jsonl", "path": str(problems)}}
    raw = study.model_dump(mode="json", exclude_unset=True) | {"store": str(location), "actors": ONE}
    raw["evaluation"] = raw["evaluation"] | {"benchmarks": [benchmark]}
    broken = parse_study(raw)
    with pytest.raises(RaygeoError, match=r"3 parts failed(.|\n)*- evaluation: (.|\n)*- geometry.sharpness: "):
        run_study(broken)
    store = Store(str(location), create=False)
    for page in (location / "report.html", Path(rewrite_report(store).path)):
        text = page.read_text()
        assert "evaluation failed, so that its part of this page is missing" in text
        assert "geometry.sharpness failed, so that its part of this page is missing" in text
    assert not store.table("sharpness").num_rows
    for table in ("similarity", "cka", "paths", "answers"):
        assert store.table(table).num_rows == whole.table(table).num_rows
    assert parent(store).info.status == "FAILED"
    assert "geometry.sharpness" in parent(store).data.tags["missing"]
    for probe, content in zip(probes, contents, strict=True):
        probe.write_bytes(content)
    problems.write_text(json.dumps({"prompt": problem["prompt"], "gold": problem["gold"]}) + "\n")
    run_study(broken)
    assert store.table("curvature").num_rows == whole.table("curvature").num_rows
    assert store.table("sharpness").num_rows == whole.table("sharpness").num_rows
    assert "extra" in store.table("accuracy")["benchmark"].to_pylist()
    assert "so that its part of this page" not in (location / "report.html").read_text()
    assert parent(store).info.status == "FINISHED"


def parent(store):
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    here = f"study:{store.location}"
    [found] = [run for run in runs if run.data.tags["raygeo.key"] == here]
    return found
