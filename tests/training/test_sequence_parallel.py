"""Four workers, two and two of which share each row: the weights and the held-out NLL of one that has whole rows."""

import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from process_cases import run_in_group
from tiny import TINY

from checks.equivalence import LOSS_CASES, Case, largest_difference, make_setting
from raygeo.data.probes import Probe
from raygeo.data.tokens import RolloutTokens
from raygeo.models.delta import open_delta
from raygeo.models.likelihood import token_logprobs
from raygeo.models.loading import load_model
from raygeo.models.merge import merge_run
from raygeo.training.engine import import_deepspeed
from raygeo.training.settings import RunSpec
from raygeo.training.worker import Job, train

pytestmark = [pytest.mark.cluster, pytest.mark.long]

CASE = Case("kto", ranks=4, stage=2, packed=True, checkpointed=True, micro=1, batch=5, steps=6, sharing=2)
"""Of five examples two workers have three and the others two, and then the first one once more at weight zero."""


def work(rank, ranks, job, folder):
    os.environ |= {"LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    train(job, lambda step, metrics: None)


def test_workers_that_share_rows_train_as_one_with_whole_rows(tmp_path):
    setting = make_setting(tmp_path, TINY.model_copy(update={"layers": 1}), prompts=8)
    tokens = RolloutTokens.open(setting.fp32.tokens)
    probe = Probe("heldout", [tokens[row] for row in (0, 5, 9)])
    probe.save(tmp_path / "heldout.npz")
    inputs = replace(setting.fp32, heldout=str(tmp_path / "heldout.npz"))
    spec = RunSpec(name=CASE.name, loss=LOSS_CASES[CASE.loss], training=CASE.training)
    run_in_group(work, CASE.ranks, Job(spec, CASE.name, inputs, setting.store), str(tmp_path))
    loop, delta = setting.plain(CASE.plain), setting.store.folder("deltas", CASE.name)
    assert loop.moved > 1e-3
    assert largest_difference(open_delta(delta), loop.delta()) < 1e-6
    curves = setting.store.read_unit("training_curves", CASE.name).to_pylist()
    found = {name: [row["value"] for row in curves if row["metric"] == name] for name in ("objective", "heldout_nll")}
    assert found["objective"] == pytest.approx(loop.objective, abs=1e-6)
    merge_run(inputs.student, delta, tmp_path / "merged")
    [batch] = probe.batches(inputs.pad_id, 3)
    with torch.no_grad():
        nll = -float(token_logprobs(load_model(tmp_path / "merged"), batch).sum()) / batch.tokens
    assert found["heldout_nll"] == [pytest.approx(nll, rel=1e-6)]
