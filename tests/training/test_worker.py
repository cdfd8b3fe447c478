"""The DeepSpeed loop against a plain loop: same weights for every loss, however the batch is split."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from student_cases import draw_rollouts, save_tiny_student
from transformers import AutoModelForCausalLM

from raygeo.losses import DFT, DPO, RFT, RIFT, SFT, OfflineGRPO
from raygeo.losses.base import LossInputs
from raygeo.rollouts.reference import REFERENCE_FILE, open_reference
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.store import Store
from raygeo.students.delta import check_delta, open_delta
from raygeo.students.encoding import collate
from raygeo.students.likelihood import token_logprobs
from raygeo.students.loading import load_student
from raygeo.students.lora import LoraSettings, attach_lora
from raygeo.training.data import open_data
from raygeo.training.engine import build_engine, import_deepspeed
from raygeo.training.export import export, trained_values
from raygeo.training.inputs import RunInputs
from raygeo.training.loop import Hooks, Progress, optimise
from raygeo.training.order import step_batches
from raygeo.training.schedule import lr_factor
from raygeo.training.settings import RunSpec, TrainingSettings

STEPS, BATCH = 6, 8
LOSSES = {
    "sft": SFT(),
    "rft": RFT(normalization="sequence"),
    "dft": DFT(),
    "rift": RIFT(),
    "grpo": OfflineGRPO(surrogate="ppo", bias=0.0, scale_by_std=True, normalization="sequence"),
    "dpo": DPO(),
}
SETTINGS = {
    "steps": STEPS,
    "batch_size": BATCH,
    "lr": 2e-3,
    "warmup": 0.3,
    "weight_decay": 0.01,
    "clip": 0.5,
    "eps": 1e-6,
}
LORA = LoraSettings(r=4, alpha=8)

# name -> (loss, world, settings): splits, ranks, stages, adapters
CASES = {
    **{f"{name}-micro{micro}": (name, 1, {"micro_batch": micro}) for name in LOSSES for micro in (8, 3)},
    **{f"{name}-2ranks": (name, 2, {"micro_batch": 3}) for name in LOSSES},
    **{f"{name}-zero{stage}": (name, 2, {"micro_batch": 4, "zero_stage": stage})
       for name in ("sft", "dpo") for stage in (1, 2, 3)},
    "sft-lora": ("sft", 1, {"micro_batch": 3, "lora": LORA}),
    "dpo-lora-2ranks": ("dpo", 2, {"micro_batch": 2, "lora": LORA}),
    "sft-lora-zero3": ("sft", 2, {"micro_batch": 4, "zero_stage": 3, "lora": LORA}),
    "sft-more-ranks-than-examples": ("sft", 2, {"batch_size": 1}),
    "sft-bf16": ("sft", 1, {"precision": "bf16", "zero_stage": 1}),
}  # fmt: skip


def training(extra):
    return TrainingSettings(**(SETTINGS | extra))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Store, inputs, and the deltas of all cases, trained in one process group for each number of ranks."""
    root = tmp_path_factory.mktemp("worker")
    student = save_tiny_student(root / "student")
    store = Store(root / "store")
    rollouts = draw_rollouts(24)
    store.write_unit("rollouts", {"rollouts": rollouts})
    _, tokenizer = load_student(student)
    rows = zip(rollouts["prompt"].to_pylist(), rollouts["completion"].to_pylist(), [True] * len(rollouts), strict=True)
    tokens = RolloutTokens.encode(tokenizer, rows)
    (root / "tokens").mkdir()
    tokens.save(root / "tokens")
    model, _ = load_student(student)
    reference = []
    for row in range(len(tokens)):
        batch = collate([tokens[row]], tokenizer.pad_token_id)
        with torch.no_grad():
            reference.append(token_logprobs(model, batch)[batch.mask].numpy())
    (root / "reference").mkdir()
    np.save(root / "reference" / REFERENCE_FILE, np.concatenate(reference))
    inputs = RunInputs(
        "rollouts", str(student), "student", str(root / "tokens"), tokenizer.pad_token_id, str(root / "reference")
    )
    for world in (1, 2):
        mp.spawn(train_cases, (world, free_port(), inputs, store.location, str(root)), nprocs=world)
    return root, store, inputs


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def train_cases(rank, world, port, inputs, location, root):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import_deepspeed().init_distributed("gloo", verbose=False)
    store = Store(location)
    for case, (name, needed, extra) in CASES.items():
        if needed != world:
            continue
        spec = RunSpec(name=case, loss=LOSSES[name], training=training(extra))
        data = open_data(spec.loss, store, inputs)
        engine, _ = build_engine(spec, len(data.examples), inputs.student)
        reports = []
        hooks = Hooks(
            lambda step, curves: reports.append({"step": step, "curves": curves}),  # noqa: B023
            lambda progress: None, lambda step, last: None, lambda: False,
        )  # fmt: skip
        summary = optimise(engine, spec, data, Progress(), hooks).state()
        folder = Path(root) / "out" / case
        folder.mkdir(parents=True, exist_ok=True)
        values = trained_values(engine)
        if rank == 0:
            export(engine, values, inputs.student, folder)
            (folder / "summary.json").write_text(json.dumps(summary))
            (folder / "reports.json").write_text(json.dumps(reports))
        engine.destroy()


def plain(store, inputs, name, extra):
    """Train with torch alone, one example at a time, and return tuned minus base by parameter name."""
    settings, loss = training(extra), LOSSES[name]
    data = open_data(loss, store, inputs)
    model, _ = load_student(inputs.student)
    if settings.lora is not None:
        model = attach_lora(model, settings.lora, settings.init_seed)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    start = {n: p.detach().clone() for n, p in trained.items()}
    decayed = [p for p in trained.values() if p.ndim >= 2]
    rest = [p for p in trained.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    reference = open_reference(inputs.reference)
    curve = []
    batches = step_batches(data.examples, len(data.tokens), settings.batch_size, STEPS, settings.seed)
    for step, batch in enumerate(batches):
        examples = [data.examples[i] for i in batch]
        rows = [row for example in examples for row in example.rows]
        count = {
            "token": sum(data.tokens.completion_lengths[rows]), "sequence": len(rows), "pair": len(batch),
        }[loss.unit]  # fmt: skip
        objective = 0.0
        for example in examples:
            padded = collate([data.tokens[row] for row in example.rows], inputs.pad_id)
            references = torch.zeros(padded.mask.shape)
            for place, row in enumerate(example.rows):
                start_at, end = data.tokens.completion_offsets[row : row + 2]
                references[place][padded.mask[place]] = torch.from_numpy(reference[start_at:end].copy())
            pairs = torch.tensor([[0, 1]]) if len(example.rows) == 2 else None
            weights = torch.tensor(example.weights, dtype=torch.float32)
            logprobs = token_logprobs(model, padded)
            total = loss(LossInputs(logprobs, padded.mask, weights, references, pairs)).total / count
            total.backward()
            objective += total.item()
        curve.append(objective)
        torch.nn.utils.clip_grad_norm_(trained.values(), settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(settings, STEPS, step)
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach() - (0 if settings.lora else start[n]) for n, p in trained.items()}, curve


def exported(root, case):
    delta = open_delta(root / "out" / case)
    return {name: entry.dense() for name, entry in delta.items()}


def lora_products(tensors, settings):
    names = {n.rpartition(".lora_")[0] for n in tensors}
    pick = lambda name, side: tensors[f"{name}.lora_{side}.default.weight"]  # noqa: E731
    scale = settings.alpha / settings.r
    return {n.removeprefix("base_model.model.") + ".weight": scale * pick(n, "B") @ pick(n, "A") for n in names}


@pytest.mark.parametrize("case", [c for c in CASES if "bf16" not in c])
def test_the_engine_gives_the_weights_of_a_plain_loop(workplace, case):
    root, store, inputs = workplace
    name, _, extra = CASES[case]
    expected, curve = plain(store, inputs, name, extra)
    if "lora" in extra:
        expected = lora_products(expected, extra["lora"])
    found = exported(root, case)
    assert found.keys() == expected.keys()
    moved = max(float(e.abs().max()) for e in expected.values())
    assert moved > 1e-3
    for parameter, value in expected.items():
        assert torch.allclose(found[parameter], value, atol=2e-5, rtol=0), parameter
    summary = json.loads((root / "out" / case / "summary.json").read_text())
    objective = [row["value"] for row in summary["curves"] if row["metric"] == "objective"]
    assert objective == pytest.approx(curve, abs=1e-5)


def test_bf16_masters_keep_the_delta_in_fp32(workplace):
    root, store, inputs = workplace
    expected, _ = plain(store, inputs, "sft", {})
    found = exported(root, "sft-bf16")
    ratio = sum(float((found[n] - e).square().sum()) for n, e in expected.items()) / sum(
        float(e.square().sum()) for e in expected.values()
    )
    assert 0 < ratio**0.5 < 0.25
    values = found["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("case", ["sft-micro8", "sft-zero3", "sft-lora-zero3"])
def test_exports_pass_their_check(workplace, case):
    check_delta(workplace[0] / "out" / case)


def test_dpo_starts_at_ln_2(workplace):
    summary = json.loads((workplace[0] / "out" / "dpo-micro3" / "summary.json").read_text())
    first = {row["metric"]: row["value"] for row in summary["curves"] if row["step"] == 1}
    assert first["objective"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)


def test_an_adapter_loads_as_peft_and_gives_the_trained_logits(workplace):
    from peft import PeftModel

    root, _, inputs = workplace
    base = AutoModelForCausalLM.from_pretrained(inputs.student)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, root / "out" / "sft-lora-zero3")(ids).logits
    dense, _ = load_student(inputs.student)
    with torch.no_grad():
        for name, value in exported(root, "sft-lora-zero3").items():
            dense.get_parameter(name).add_(value)
        expected = dense(ids).logits
    assert torch.allclose(tuned, expected, atol=1e-5)
    assert not torch.allclose(tuned, before, atol=1e-3)


def test_reports_are_sent_while_training(workplace):
    reports = json.loads((workplace[0] / "out" / "sft-micro8" / "reports.json").read_text())
    assert [r["step"] for r in reports] == [STEPS]
    assert {"objective", "nll", "lr", "grad_norm"} <= reports[-1]["curves"].keys()
