"""Sweeps on real Ray: runs stopped early, and runs chosen by Optuna."""

import json
import time
from pathlib import Path

import pytest
from study_cases import save_parts, tiny_study

from raygeo.analyses.registry import view
from raygeo.pipeline.config import GeometrySettings, parse_study
from raygeo.pipeline.study import run_study
from raygeo.report.trials import trials as trial_sheet

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

QUIET = dict.fromkeys(GeometrySettings.model_fields)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return {
        **save_parts(tmp_path_factory.mktemp("sweep")),
        "actors": {"max_actors": 1},
        "geometry": QUIET
        | {
            "norms": {},
            "curvature": {"spaces": ["delta"], "top_k": 1, "max_steps": 4, "slq_probes": 2, "slq_steps": 2},
        },
    }


def rows(store, table):
    return {row["run"]: row for row in store.table(table).to_pylist()}


def test_worse_runs_of_a_loss_are_stopped_and_give_their_cpus_back(ray_session, parts, tmp_path):
    training = {"steps": 150, "batch_size": 8, "snapshots": 0}
    runs = [
        {"loss": {"type": "sft"}, "lr": [1e-2, 1e-8, 1e-9, 1e-10]},  # the last two are worse than both before them
        {"loss": {"type": "dpo"}, "lr": 1e-11, "batch_size": 4},  # worse still, but the only one of its loss
    ]
    sweep = {"scheduler": {"type": "asha", "grace": 2, "reduction_factor": 2}}
    study = parse_study(tiny_study(store=str(tmp_path / "store"), training=training, runs=runs, sweep=sweep, **parts))
    store = run_study(study, until="evaluate")
    found = rows(store, "runs")
    assert {name: found[name]["status"] for name in found if name != "sft-lr1e-08-s0"} == {
        "sft-lr0.01-s0": "finished", "sft-lr1e-09-s0": "stopped", "sft-lr1e-10-s0": "stopped",
        "dpo-lr1e-11-s0": "finished",
    }  # fmt: skip
    assert found["sft-lr1e-10-s0"]["steps"] < 150
    assert "sft-lr1e-10-s0" in store.table("training_curves")["run"].to_pylist()
    assert "sft-lr1e-10-s0" not in store.table("answers")["run"].to_pylist()
    tried = rows(store, "trials")
    assert (tried["sft-lr0.01-s0"]["rank"], tried["sft-lr1e-10-s0"]["rank"]) == (1, None)
    deadline = time.monotonic() + 30
    while ray_session.available_resources().get("CPU") != ray_session.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray_session.available_resources()
        time.sleep(0.2)
    before = store.units("runs")
    run_study(study, until="evaluate")
    assert rows(store, "runs")["sft-lr1e-10-s0"]["status"] == "stopped"
    assert len(store.units("runs") - before) <= 1  # the table, put together again


def test_optuna_chooses_runs_by_several_objectives_and_resumes(ray_session, parts, tmp_path):
    def study(samples):
        runs = [
            {"loss": {"type": "sft"}},
            {
                "loss": {"type": "dpo", "beta": [0.1, 0.5]}, "lr": {"log_uniform": [1e-4, 1e-2]}, "seed": [0, 1],
                "batch_size": 4,
            },
        ]  # fmt: skip
        objectives = [{"metric": metric} for metric in ("eval/accuracy", "eval/heldout/nll", "geometry/top_eigenvalue")]
        bounds = [{"metric": "geometry/delta_norm", "at_most": 1e6}]
        sweep = {"search": "optuna", "samples": samples, "objectives": objectives, "constraints": bounds}
        training = {"steps": 2, "batch_size": 8, "snapshots": 0, "cpus": 1.5}
        location = str(tmp_path / "store")
        return parse_study(tiny_study(store=location, training=training, runs=runs, sweep=sweep, **parts))

    store = run_study(study(1), until="geometry")
    first = rows(store, "trials")
    assert len(first) == 1 + 2
    for name, row in first.items():
        assert row["status"] == "finished", name
        assert json.loads(row["measured"]).keys() == {
            "eval/heldout/accuracy", "eval/heldout/nll", "geometry/top_eigenvalue/hessian", "geometry/delta_norm",
        }  # fmt: skip
        assert row["keeps"]
        if row["entry"] == 1:
            chosen = json.loads(row["values"])
            assert chosen.keys() == {"loss.beta", "lr"}
            assert name == f"dpo-beta{chosen['loss.beta']:g}-lr{chosen['lr']:g}-s{row['seed']}"
    assert {row["rank"] for row in first.values()} <= {1, 2, 3}
    assert {"training", "answers", "curvature.extremes"} <= store.revisions("trials").keys()
    accuracy = {row["run"]: row["accuracy"] for row in store.table("accuracy").to_pylist()}
    measured = {name: json.loads(row["measured"]) for name, row in first.items()}
    assert {name: found["eval/heldout/accuracy"] for name, found in measured.items()} == {n: accuracy[n] for n in first}
    spectra = store.table("curvature").to_pylist()
    top = {row["run"]: row["value"] for row in spectra if row["quantity"] == "eigenvalue" and row["index"] == 0}
    assert {name: found["geometry/top_eigenvalue/hessian"] for name, found in measured.items()} == {
        n: top[n] for n in first
    }
    assert len(store.units("answers")) == len(first) + 1  # nothing was answered twice
    # Extremes and two random vectors of each run, nothing twice, and what is assembled of them.
    assert len(store.units("curvature")) == 3 * (len(first) + 1) + 1
    assert len(trial_sheet.make(view(store.tables(), "")).rows) == len(first)

    trained = {p.name for p in Path(store.path("deltas")).iterdir()}
    run_study(study(2), until="evaluate")
    second = rows(store, "trials")
    assert first.keys() < second.keys()
    assert len(second) == 1 + 2 * 2
    assert trained < {p.name for p in Path(store.path("deltas")).iterdir()}
    again = {name: json.loads(second[name]["measured"])["eval/heldout/nll"] for name in first}
    assert again == {name: found["eval/heldout/nll"] for name, found in measured.items()}
