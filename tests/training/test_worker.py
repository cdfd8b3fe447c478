"""One run on one worker, from its job to what lies in the store and what was reported on the way."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from process_cases import run_in_group
from tiny import TINY

from checks.equivalence import make_setting
from raygeo.losses import DPO, SFT
from raygeo.models.delta import check_delta
from raygeo.models.lora import LoraSettings
from raygeo.records import FINISHED, RunRecord
from raygeo.training.engine import import_deepspeed
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.worker import Job, finished_before, train

pytestmark = pytest.mark.cluster

STEPS = 6
RUNS = {"sft": (SFT(), None), "dpo": (DPO(), None), "lora": (SFT(), LoraSettings(r=2, lora_alpha=4))}
SETTINGS = {"steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "lr": 2e-3, "log_every": 4, "snapshots": 0}


def train_jobs(rank, ranks, setting, folder):
    os.environ |= {"LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    for name, (loss, lora) in RUNS.items():
        reports = []
        spec = RunSpec(name=name, loss=loss, training=TrainingSettings(**SETTINGS, lora=lora))
        record = train(
            Job(spec, name, setting.fp32, setting.store),
            lambda step, metrics, reports=reports: reports.append({"step": step, "metrics": metrics}),
        )
        Path(folder, f"{name}.json").write_text(json.dumps({"row": record.row(), "reports": reports}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The store, and by run what ``train`` returned, as a row, and reported."""
    folder = tmp_path_factory.mktemp("worker")
    setting = make_setting(folder, TINY.model_copy(update={"layers": 1}), prompts=12)
    run_in_group(train_jobs, 1, setting, str(folder))
    return setting.store, {name: json.loads((folder / f"{name}.json").read_text()) for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_in_the_store(trained, name):
    store, told = trained
    [row] = store.read_unit("runs", name).to_pylist()
    assert row == told[name]["row"]
    assert (row["run"], row["key"], row["status"], row["steps"], row["reason"]) == (name, name, FINISHED, STEPS, None)
    assert row["delta"] == store.folder("deltas", name)
    check_delta(row["delta"])
    steps = {curve["step"] for curve in store.read_unit("training_curves", name).to_pylist()}
    assert steps == set(range(1, STEPS + 1))


@pytest.mark.parametrize("name", RUNS)
def test_the_record_of_a_run_holds_its_settings(trained, name):
    [row] = trained[0].read_unit("runs", name).to_pylist()
    record = RunRecord.of(row)
    loss, lora = RUNS[name]
    assert (record.loss, row["loss"]) == (loss.model_dump(mode="json"), loss.type)
    settings = TrainingSettings(**SETTINGS, lora=lora)
    assert TrainingSettings.model_validate(record.training) == settings
    assert (row["lr"], row["seed"], row["init_seed"]) == (settings.lr, settings.seed, settings.init_seed)
    assert (record.adapter_init is None) == (lora is None)
    assert record.row() == row


def test_a_run_that_an_earlier_attempt_finished_is_known(trained):
    store, told = trained
    spec = RunSpec(name="sft", loss=SFT(), training=TrainingSettings(**SETTINGS))
    assert finished_before(Job(spec, "sft", None, store)).row() == told["sft"]["row"]
    assert finished_before(Job(spec, "another", None, store)) is None
    row = told["sft"]["row"]
    store.write_unit("gone", {"runs": [row | {"key": "gone"}], "training_curves": []})
    assert finished_before(Job(spec, "gone", None, store)) is None, "its weights are not there"


def test_dpo_starts_at_ln_2(trained):
    curves = trained[0].read_unit("training_curves", "dpo").to_pylist()
    first = {row["metric"]: row["value"] for row in curves if row["step"] == 1}
    assert first["objective"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_reports_are_sent_while_training(trained):
    reports = trained[1]["sft"]["reports"]
    assert [report["step"] for report in reports] == [1, 4, STEPS]
    assert {"objective", "nll", "lr", "grad_norm"} <= reports[-1]["metrics"].keys()
