"""One run on one worker, from its job to what lies in the store and what was reported on the way."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from equivalence import SHAPE, make_setting
from process_cases import run_in_group

from raygeo.losses import DPO, SFT
from raygeo.students.delta import check_delta
from raygeo.training.engine import import_deepspeed
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.worker import Job, train

STEPS = 6
LOSSES = {"sft": SFT(), "dpo": DPO()}
SETTINGS = {"steps": STEPS, "batch_size": 8, "micro_batch": 4, "lr": 2e-3, "log_every": 4, "snapshots": 0}


def train_jobs(rank, ranks, setting, folder):
    os.environ |= {"LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    for name, loss in LOSSES.items():
        reports = []
        spec = RunSpec(name=name, loss=loss, training=TrainingSettings(**SETTINGS))
        summary = train(
            Job(spec, name, setting.fp32, setting.store),
            lambda step, metrics, reports=reports: reports.append({"step": step, "metrics": metrics}),
        )
        Path(folder, f"{name}.json").write_text(json.dumps({"summary": summary, "reports": reports}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The store, and by loss what ``train`` returned and reported."""
    folder = tmp_path_factory.mktemp("worker")
    setting = make_setting(folder, SHAPE.model_copy(update={"layers": 1}), prompts=12)
    run_in_group(train_jobs, 1, setting, str(folder))
    return setting.store, {name: json.loads((folder / f"{name}.json").read_text()) for name in LOSSES}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_finished_run_is_in_the_store(trained, loss):
    store, told = trained
    summary = told[loss]["summary"]
    assert (summary["status"], summary["steps"], summary["run"]) == ("finished", STEPS, loss)
    [row] = store.read_unit("runs", loss).to_pylist()
    assert row["status"] == "finished"
    assert row["delta"] == store.folder("deltas", loss)
    check_delta(row["delta"])
    steps = {curve["step"] for curve in store.read_unit("curves", loss).to_pylist()}
    assert steps == set(range(1, STEPS + 1))


def test_dpo_starts_at_ln_2(trained):
    curves = trained[0].read_unit("curves", "dpo").to_pylist()
    first = {row["metric"]: row["value"] for row in curves if row["step"] == 1}
    assert first["objective"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_reports_are_sent_while_training(trained):
    reports = trained[1]["sft"]["reports"]
    assert [report["step"] for report in reports] == [1, 4, STEPS]
    assert {"objective", "nll", "lr", "grad_norm"} <= reports[-1]["metrics"].keys()
