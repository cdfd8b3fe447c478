"""A base that stays from one run to the next gives every bit that one loaded anew does; and what a run holds."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from process_cases import run_in_group
from tiny import TINY

from checks.equivalence import largest_difference, make_setting
from raygeo.losses import DPO, SFT
from raygeo.models import compilation
from raygeo.models.delta import open_delta
from raygeo.models.lora import LoraSettings
from raygeo.training.base import ResidentBase
from raygeo.training.engine import build_engine, import_deepspeed
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.worker import Job, train

pytestmark = [pytest.mark.cluster, pytest.mark.long]

SETTINGS = {"steps": 4, "batch_size": 6, "micro_batch_size": 3, "lr": 2e-3, "snapshots": 0, "precision": "bf16"}
RANK = 2
ALL = LoraSettings(r=4, target_modules="all-linear")
FIRST = (SFT(), {"lora": ALL, "gradient_checkpointing": True, "torch_compile": True})
SECOND = (DPO(), {"lora": LoraSettings(r=RANK), "padding_free": True})
THIRD = (SFT(), {"lora": LoraSettings(r=RANK), "zero_stage": 2})


def held():
    """Bytes of all tensors' storages by address, with their dtype; those that compilers make up have no storage."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return {t.untyped_storage().data_ptr(): (t.dtype, t.untyped_storage().nbytes()) for t in tensors}


def bytes_of_a_run(setting, stage):
    """What parameters and optimiser hold after a step, by dtype, and how many parameters there are, and are trained."""
    before = held()
    training = TrainingSettings(**SETTINGS, lora=LoraSettings(r=RANK), zero_stage=stage)
    engine, _ = build_engine(RunSpec(name="bytes", loss=SFT(), training=training), 6, setting.bf16.student)
    ids = torch.arange(3, 33).view(2, 15)
    for _ in range(2):
        engine.backward(engine.module.student(ids).logits.float().square().mean(), scale_wrt_gas=False)
        engine.step()
    found = {}
    for address, (dtype, size) in held().items():
        if address not in before:
            found[str(dtype)] = found.get(str(dtype), 0) + size
    counts = [
        sum(p.numel() for p in engine.module.parameters() if p.requires_grad in which) for which in ((False,), (True,))
    ]
    engine.destroy()
    return {"bytes": found, "frozen": counts[0], "trained": counts[1]}


def work(rank, ranks, setting, folder):
    os.environ |= {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    compilation.BACKEND = "eager"

    def run(name, case, base=None):
        loss, training = case
        spec = RunSpec(name=name, loss=loss, training=TrainingSettings(**SETTINGS, **training))
        return train(Job(spec, name, setting.bf16, setting.store), lambda step, metrics: None, lambda: None, base)

    inits = {}
    for name, case in {"second": SECOND, "third": THIRD}.items():
        inits[name] = run(f"{name}-alone", case).adapter_init
    base = ResidentBase()
    run("first", FIRST, base)
    Path(setting.bf16.student).rename(f"{folder}/elsewhere")  # from here on nothing can be loaded
    for name, case in {"second": SECOND, "third": THIRD}.items():
        assert run(f"{name}-after", case, base).adapter_init == inits[name]
    Path(f"{folder}/elsewhere").rename(setting.bf16.student)
    Path(folder, "bytes.json").write_text(json.dumps([bytes_of_a_run(setting, stage) for stage in (0, 2)]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    setting = make_setting(folder, TINY.model_copy(update={"layers": 1}), prompts=8)
    run_in_group(work, 1, setting, str(folder))
    return setting, json.loads((folder / "bytes.json").read_text())


@pytest.mark.parametrize("name", ["second", "third"])
def test_a_run_on_a_base_that_stayed_has_every_bit_of_one_on_a_base_loaded_anew(trained, name):
    store = trained[0].store
    alone, after = (open_delta(store.folder("deltas", f"{name}-{which}")) for which in ("alone", "after"))
    assert largest_difference(after, alone) == 0
    assert store.read_unit("training_curves", f"{name}-after")["value"].equals(
        store.read_unit("training_curves", f"{name}-alone")["value"]
    )


@pytest.mark.parametrize(("index", "each"), [(0, 12), (1, 16)])
def test_the_base_takes_two_bytes_a_weight_and_adapters_alone_have_an_optimiser(trained, index, each):
    """Adapters take weight and two moments in fp32; sharded, a master copy too, and a buffer for their gradients."""
    found = trained[1][index]
    assert found["bytes"]["torch.bfloat16"] == 2 * found["frozen"]
    assert 0 <= found["bytes"]["torch.float32"] - each * found["trained"] <= 8 * found["trained"] * (index > 0) + 1024
