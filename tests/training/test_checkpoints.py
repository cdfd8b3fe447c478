"""A run that resumes from a checkpoint ends with the weights of one that was never stopped, to the last bit."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch
from process_cases import run_in_group
from study_cases import draw_rollouts
from tiny import TINY, save_tiny_student

from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses import SFT
from raygeo.models.delta import LowRank, open_delta
from raygeo.models.loading import load_tokenizer
from raygeo.models.lora import LoraSettings
from raygeo.pipeline.budget.stages import checkpoint_bytes
from raygeo.store import Store
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.checkpoints import Checkpoints
from raygeo.training.engine import import_deepspeed
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec, TrainingSettings
from raygeo.training.worker import Job, train

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

LORA = LoraSettings(r=4, lora_alpha=8)
SETTINGS = {
    "steps": 9, "batch_size": 8, "micro_batch_size": 2, "lr": 2e-3, "warmup_ratio": 0.3, "weight_decay": 0.01,
    "max_grad_norm": 0.5, "log_every": 1, "checkpoint_every": 3, "snapshots": 3,
}  # fmt: skip
DELTA = 4 * sum(value.numel() for value in build_model(TINY, word_tokenizer(), 0).parameters())
# name -> (ranks, settings, step after which the run breaks off)
CASES = {
    "plain": (1, {}, 4),
    "bf16": (1, {"precision": "bf16", "zero_stage": 1}, 8),
    "lora": (1, {"lora": LORA}, 6),
    **{f"zero{stage}": (2, {"zero_stage": stage}, 3 + stage) for stage in range(4)},
    "zero2-bf16": (2, {"zero_stage": 2, "precision": "bf16"}, 7),
    "zero2-offload": (2, {"zero_stage": 2, "offload": True}, 4),
    "zero3-offload": (2, {"zero_stage": 3, "offload": True}, 4),
    "zero3-lora": (2, {"zero_stage": 3, "lora": LORA}, 5),
    "before-the-first": (1, {"max_snapshot_gib": 2.5 * DELTA / 2**30}, 2),
}


class BrokenOff(Exception):
    """The end of an attempt."""


def job(case, key, inputs, store):
    _, settings, _ = CASES[case]
    return Job(RunSpec(name=case, loss=SFT(), training=TrainingSettings(**SETTINGS | settings)), key, inputs, store)


def attempts(rank, world, port, inputs, location, again):
    """Every case with this many ranks: once whole and once broken off, or, ``again``, what was broken off."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import_deepspeed().init_distributed("gloo", verbose=False)
    store = Store(location)
    for case, (ranks, _, last) in CASES.items():
        if ranks != world:
            continue
        steps = []
        if again:
            train(job(case, f"{case}-broken", inputs, store), lambda step, m, steps=steps: steps.append(step))
            if rank == 0:
                store.write_bytes(f"resumed/{case}", str(steps[0]).encode())
            continue
        train(job(case, f"{case}-whole", inputs, store), lambda step, m: None)

        def break_off(asked=steps, last=last):
            asked.append(None)
            if len(asked) > last:
                raise BrokenOff
            return False

        with pytest.raises(BrokenOff):
            train(job(case, f"{case}-broken", inputs, store), lambda step, m: None, break_off)
        if rank == 0:
            kept = store.folders("checkpoints", f"{case}-broken-")
            store.write_bytes(
                f"kept/{case}", json.dumps([store.folder_bytes("checkpoints", name) for name in kept]).encode()
            )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    student, store = save_tiny_student(root / "student"), Store(root / "store")
    rollouts = draw_rollouts(12)
    store.write_unit("rollouts", {"rollouts": rollouts})
    tokenizer = load_tokenizer(student)
    (root / "tokens").mkdir()
    rows = zip(rollouts["prompt"].to_pylist(), rollouts["completion"].to_pylist(), [True] * len(rollouts), strict=True)
    RolloutTokens.encode(PlainRenderer(tokenizer), rows).save(root / "tokens")
    inputs = RunInputs("rollouts", str(student), "student", str(root / "tokens"), tokenizer.pad_token_id)
    for again in (False, True):
        for world in (1, 2):
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            run_in_group(attempts, world, port, inputs, store.location, again)
    return store


def tensors(store, key, kind="deltas"):
    found = {}
    for name, entry in open_delta(store.folder(kind, key)).items():
        parts = {"a": entry.a, "b": entry.b} if isinstance(entry, LowRank) else {"": entry.value}
        found |= {name + side: tensor for side, tensor in parts.items()}
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_same_weights_curves_and_snapshots(store, case):
    whole, broken = f"{case}-whole", f"{case}-broken"
    assert_equal(tensors(store, broken), tensors(store, whole))
    assert store.read_unit("training_curves", broken).equals(store.read_unit("training_curves", whole))
    steps = store.folders(f"snapshots/{whole}")
    assert store.folders(f"snapshots/{broken}") == steps
    assert len(steps) == (2 if "max_snapshot_gib" in CASES[case][1] else 3)
    for step in steps:
        assert_equal(tensors(store, f"{broken}/{step}", "snapshots"), tensors(store, f"{whole}/{step}", "snapshots"))


@pytest.mark.parametrize("stage", [2, 3])
def test_offloading_changes_no_more_than_rounding(store, stage):
    offloaded, kept = tensors(store, f"zero{stage}-offload-whole"), tensors(store, f"zero{stage}-whole")
    for name, value in kept.items():
        torch.testing.assert_close(offloaded[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", ["plain", "bf16", *(f"zero{stage}" for stage in range(4)), "zero2-bf16"])
def test_one_checkpoint_is_kept_and_takes_what_is_planned(store, case):
    [taken] = json.loads(store.read_bytes(f"kept/{case}"))
    training = TrainingSettings(**SETTINGS | CASES[case][1])
    assert taken == pytest.approx(checkpoint_bytes(DELTA // 4, training), rel=0.2)


@pytest.mark.parametrize("case", ["zero0", "zero2-bf16", "zero3", "zero3-lora"])
def test_each_rank_writes_its_share_of_a_complete_delta(store, case):
    folder = Path(store.folder("deltas", f"{case}-whole"))
    sizes = [file.stat().st_size for file in sorted(folder.glob("delta*"))]
    assert len(sizes) == (0 if "lora" in case else 2)
    assert sum(sizes) >= ("lora" not in case) * DELTA
    assert max(sizes, default=0) < 0.75 * DELTA


@pytest.mark.parametrize("case", CASES)
def test_it_resumes_where_the_last_checkpoint_was(store, case):
    last = CASES[case][2]
    assert int(store.read_bytes(f"resumed/{case}")) == last - last % 3 + 1


def test_a_finished_run_leaves_no_checkpoint(store):
    assert store.folders("checkpoints") == []


def test_summaries_tell_of_the_whole_run(store):
    for case in CASES:
        broken, whole = (store.read_unit("runs", f"{case}-{how}").to_pylist()[0] for how in ("broken", "whole"))
        for name in ("status", "steps", "tokens", "examples", "student"):
            assert broken[name] == whole[name]
        assert whole["status"] == "finished"


def test_checkpoints_of_another_revision_are_another_runs(tmp_path):
    store = Store(tmp_path)
    store.complete_folder("checkpoints", "key-r1.1-00000003")
    first, second = Checkpoints(store, "key-r1"), Checkpoints(store, "key-r1.1")
    assert (first.last_step(), second.last_step()) == (None, 3)
    first.clear()
    assert second.last_step() == 3
    second.clear()
    assert second.last_step() is None
