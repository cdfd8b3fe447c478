"""A subset of ``checks/equivalence.py`` that has every loss: sharded training and its exports against a plain loop."""

import math
import os
import signal
import sys
import time
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from tiny import TINY, save_tiny_student
from transformers import AutoModelForCausalLM

from checks.equivalence import (
    BF16_BOUND,
    BOUND,
    FEW_LOGITS,
    LORA,
    LOSS_CASES,
    Case,
    Setting,
    bound,
    keep,
    largest_difference,
    make_setting,
    relative_error,
    train_sharded,
)
from raygeo.errors import DeltaError
from raygeo.models.loading import load_student
from raygeo.models.lora import attach_lora
from raygeo.models.merge import merge_run
from raygeo.training.export import keep_delta

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

FEW = {"steps": 5}
SPLIT = {"batch": 5, "micro": 2, **FEW}  # 2, 2 and 1 on one rank; 2 and 1 on one and 1 and 1 on the other of two
MORE = {"steps": 10}
FIRST = {loss.type: name for name, loss in reversed(LOSS_CASES.items()) if bound(name) == BOUND}.values()
EVERY_LOSS = [
    Case(name, ranks=2, stage=3 if number % 3 == 0 else 2, lora=number % 2 == 0, **SPLIT)
    for number, name in enumerate(FIRST)
]
EVERY_STAGE = [Case(loss, ranks, stage, **SPLIT) for loss in ("sft", "dpo") for stage in range(4) for ranks in (1, 2)]
ADAPTERS = [Case("sft", lora=True, **SPLIT), Case("sft", ranks=2, stage=3, lora=True, **SPLIT)]
SPLITS = [
    Case("sft", micro=5, batch=5, **FEW),
    Case("sft", micro=1, batch=5, **FEW),
    Case("sft", ranks=2, stage=2, micro=1, batch=3, **FEW),
    Case("sft", ranks=2, stage=3, micro=1, batch=1, **FEW),
]
PIECES = [  # terms in chunks of tokens, and tiles of the vocabulary; the head is tied to the embeddings
    Case("asft", ranks=2, stage=2, chunk=FEW_LOGITS, **SPLIT),
    Case("otr-samples2", ranks=2, stage=3, chunk=FEW_LOGITS, **SPLIT),
    Case("sft", ranks=1, stage=2, chunk=FEW_LOGITS, **SPLIT),
    Case("sft", ranks=2, stage=3, lora=True, chunk=FEW_LOGITS, **SPLIT),
]
CHECKPOINTED = [  # each equals the same case without, to the last bit
    Case("dpo", ranks=1, stage=0, checkpointed=True, **SPLIT),
    Case("sft", ranks=2, stage=2, checkpointed=True, **SPLIT),
    Case("sft", ranks=2, stage=3, lora=True, chunk=FEW_LOGITS, checkpointed=True, **SPLIT),
]
PACKED = [
    Case("dpo", ranks=2, stage=3, packed=True, **SPLIT),
    Case("sft", ranks=1, stage=0, packed=True, tokens=70, batch=5),
    Case("dpo", ranks=2, stage=2, packed=True, tokens=150, batch=5),
    Case("sft", ranks=2, stage=3, lora=True, packed=True, checkpointed=True, tokens=70, batch=5),
]
SHARED = [  # two ranks have a part of each row: every kind of loss, and some tokens a rank have no completion's
    Case("sft", ranks=2, stage=0, packed=True, sharing=2, **SPLIT),
    Case("dpo", ranks=2, stage=2, packed=True, checkpointed=True, sharing=2, **SPLIT),
    Case("asft", ranks=2, stage=3, chunk=FEW_LOGITS, packed=True, checkpointed=True, sharing=2, **SPLIT),
    Case("iw-sft", ranks=2, stage=2, lora=True, packed=True, sharing=2, **SPLIT),
    Case("ift", ranks=2, stage=2, packed=True, tokens=70, batch=5, **FEW, sharing=2),
    Case("sft", ranks=2, stage=3, lora=True, chunk=FEW_LOGITS, packed=True, checkpointed=True, sharing=2, **SPLIT),
]
ASKED = [  # with adapters each step asks the base for its logits
    Case("asft", ranks=1, stage=0, lora=True, checkpointed=True, **SPLIT),
    Case("asft", ranks=2, stage=1, lora=True, chunk=FEW_LOGITS, **SPLIT),
    Case("asft", ranks=2, stage=2, lora=True, packed=True, checkpointed=True, sharing=2, **SPLIT),
    Case("asft", ranks=2, stage=3, lora=True, chunk=FEW_LOGITS, packed=True, checkpointed=True, **SPLIT),
]
COMPILED = [
    Case("asft", ranks=1, stage=0, lora=True, compiled=True, checkpointed=True, **SPLIT),
    Case("dpo", ranks=2, stage=2, compiled=True, packed=True, **SPLIT),
]
SHARED_BOUND = 1e-6
FP32 = list(
    dict.fromkeys(
        [*EVERY_LOSS, *EVERY_STAGE, *ADAPTERS, *SPLITS, *PIECES, *CHECKPOINTED, *PACKED, *SHARED, *ASKED, *COMPILED]
    )
)
BF16 = [
    Case("sft", bf16=True, **SPLIT | MORE),
    Case("sft", ranks=2, stage=2, bf16=True, **SPLIT | MORE),
    Case("dpo", stage=3, lora=True, bf16=True, **SPLIT | MORE),
    Case("dpo", lora=True, bf16=True, **SPLIT | MORE),
]
EXPORTED = {lora: Case("sft", ranks=2, stage=3, lora=lora, **SPLIT) for lora in (False, True)}
IDS = torch.arange(3, 40)[None]


def keep_and_show(engine, case, setting):
    """What ``keep`` does, and the logits of the engine before it; at stage 3 no weight is whole then."""
    if case.stage == 3:
        assert all(parameter.numel() == 0 for parameter in engine.module.parameters())
    if case in EXPORTED.values():
        with torch.no_grad():
            logits = engine.module.student(IDS).logits
        setting.store.write_bytes(f"logits/{case.name}", save({"logits": logits.contiguous()}))
    keep(engine, case, setting)


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Setting:
    """Every case, trained in one process group for each number of ranks."""
    made = make_setting(tmp_path_factory.mktemp("equivalence"), TINY.model_copy(update={"layers": 1}))
    train_sharded(made, [*FP32, *BF16], keep_and_show)
    return made


@pytest.fixture(scope="module")
def plain(setting):
    """The plain loop that belongs to a case; each is run once."""
    run = cache(setting.plain)
    return lambda case, *dtype: run(case.plain, *dtype)


@pytest.mark.parametrize("case", FP32, ids=lambda case: case.name)
def test_shards_and_splits_give_the_weights_of_a_plain_loop(setting, plain, case):
    loop = plain(case)
    assert loop.moved > 1e-3
    assert largest_difference(setting.exported(case), loop.delta()) < (SHARED_BOUND if case in SHARED else BOUND)
    curves = setting.curves(case)
    assert curves["objective"] == pytest.approx(loop.objective, abs=BOUND)
    assert curves["grad_norm"] == pytest.approx(loop.grad_norm, abs=10 * BOUND * max(loop.grad_norm))


def test_dpo_starts_at_ln_2_on_ranks_that_share_rows(setting):
    [case] = [case for case in SHARED if case.loss == "dpo"]
    assert setting.curves(case)["objective"][0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_adapters_begin_at_the_base(setting, case):
    assert setting.curves(case)["kl"][0] == 0
    assert setting.curves(case)["kl"][-1] > 1e-4


@pytest.mark.parametrize("case", CHECKPOINTED, ids=lambda case: case.name)
def test_layers_that_are_computed_again_give_the_same_weights_to_the_last_bit(setting, case):
    without = replace(case, checkpointed=False)
    assert without in FP32
    assert largest_difference(setting.exported(case), setting.exported(without)) == 0
    assert setting.curves(case) == setting.curves(without)


@pytest.mark.parametrize("case", BF16, ids=lambda case: case.name)
def test_bf16_with_fp32_masters_stays_near_fp32(setting, plain, case):
    expected = plain(case).delta()
    assert setting.curves(case)["grad_norm"] == pytest.approx(plain(case).grad_norm, rel=BF16_BOUND)
    error = relative_error(setting.exported(case), expected)
    assert error < BF16_BOUND
    if not case.lora:  # an adapter's B starts at zero, near which bf16 is fine
        assert error < relative_error(plain(case, torch.bfloat16).delta(), expected) / 10


def test_bf16_does_not_depend_on_the_stage(setting):
    for pair in (BF16[:2], BF16[2:]):
        one, two = (setting.exported(case) for case in pair)
        assert relative_error(one, two) < 5e-3


@pytest.mark.parametrize("lora", [False, True])
def test_what_zero_3_exports_reloads_with_the_engines_logits(setting, tmp_path, lora):
    case = EXPORTED[lora]
    base, delta = setting.fp32.student, setting.store.folder("deltas", case.name)
    if lora:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), delta)
    else:
        merge_run(base, delta, tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = load(setting.store.read_bytes(f"logits/{case.name}"))["logits"]
    with torch.no_grad():
        found, before = model.eval()(IDS).logits, AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-2


def engine_of(model):
    return SimpleNamespace(module=SimpleNamespace(student=model))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_export_of_nothing_or_of_no_change_is_refused(tmp_path, store, lora, frozen):
    student = save_tiny_student(tmp_path / "student")
    model, _ = load_student(student)
    if lora is not None:
        model = attach_lora(model, lora, 0)
    if frozen:
        model.requires_grad_(False)
    with pytest.raises(DeltaError, match="exported nothing" if frozen else "zero everywhere"):
        keep_delta(engine_of(model), student, store, "deltas", "run")
    assert not store.has_folder("deltas", "run")


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_export_of_shards_that_were_not_gathered_is_refused(tmp_path, store, lora, monkeypatch):
    student = save_tiny_student(tmp_path / "student")
    model, _ = load_student(student)
    if lora is not None:
        model = attach_lora(model, lora, 0)
    shards = {name: torch.empty(0) for name, p in model.named_parameters() if p.requires_grad}
    monkeypatch.setattr("raygeo.training.export.trained_values", lambda engine: shards)
    with pytest.raises(DeltaError, match=r"not gathered|without being gathered"):
        keep_delta(engine_of(model), student, store, "deltas", "run")


ENDED = """
import process_cases
from checks import equivalence

equivalence.PRELOADED.clear()
equivalence.make_setting = lambda folder: None
equivalence.measure = lambda setting, cases: process_cases.run_in_group(process_cases.wait_for_ever, 2)
equivalence.main()
"""


def test_nothing_that_the_check_started_outlives_it():
    path = os.pathsep.join(sys.path)
    check = psutil.Popen([sys.executable, "-c", ENDED], env=os.environ | {"PYTHONPATH": path})
    while len(started := check.children(recursive=True)) < 4:  # two that work, what they are forked from, and a tracker
        assert check.poll() is None
        time.sleep(0.1)
    check.terminate()
    assert check.wait(60) == 128 + signal.SIGTERM
    _, left = psutil.wait_procs(started, timeout=30)
    for process in left:
        process.kill()
    assert not left
