"""The same result however it is sharded: ``python jobs/equivalence.py`` trains every loss under every ZeRO stage, on one
and two ranks, whole and with adapters, and prints how far its weights end from those of a plain loop.

The plain loop is torch and nothing else: one example at a time, without padding, on the model's own whole logits. What
it needs of the base it computes itself. ``--losses sft,dpo`` restricts it, ``--out FILE`` writes the rows as JSON.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from raygeo.losses import (
    ASFT,
    AWR,
    DFT,
    DPO,
    FSFT,
    IFT,
    IPO,
    IWSFT,
    KTO,
    LOSSES,
    OTR,
    RFT,
    RIFT,
    SFT,
    ConservativeDPO,
    DPOWithNLL,
    NormalizedDPO,
    OfflineGRPO,
    OffPolicyGRPO,
    PoFT,
    RobustDPO,
    SimPO,
)
from raygeo.losses.base import Example, Loss, LossInputs
from raygeo.rollouts.mismatched import mismatch
from raygeo.rollouts.reference import (
    REFERENCE_STATES,
    ReferenceLogprobs,
    ReferenceSettings,
    ReferenceStates,
    save_reference,
)
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.store import AnyPath, Store
from raygeo.students.architecture import Architecture, build_model
from raygeo.students.likelihood import TokenLogits
from raygeo.students.lora import LoraSettings, attach_lora
from raygeo.students.pretrain import PretrainSettings, pretrain
from raygeo.students.word_problems import Carelessness, ProblemSettings, draw_problem, solve, word_tokenizer
from raygeo.tables import to_arrow
from raygeo.training.data import open_data, token_keys
from raygeo.training.engine import build_engine, import_deepspeed
from raygeo.training.export import trained_values
from raygeo.training.inputs import RunInputs
from raygeo.training.loop import Hooks, Progress, optimise
from raygeo.training.order import step_batches
from raygeo.training.settings import RunSpec, TrainingSettings

SHAPE = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, context=128)
LORA = LoraSettings(r=4, alpha=8)
STEPS = 20

LOSS_CASES: dict[str, Loss] = {
    "sft": SFT(),
    "sft-sequence": SFT(normalization="sequence"),
    "rft": RFT(),
    "rft-sequence": RFT(max_per_prompt=2, normalization="sequence"),
    "dft": DFT(),
    "dft-sequence": DFT(normalization="sequence"),
    "asft": ASFT(),
    "asft-reverse": ASFT(direction="reverse", kl_weight=0.3),
    "otr": OTR(),
    "otr-few": OTR(samples=16, temperature=1.0, normalization="sequence"),
    "iw-sft": IWSFT(rows="all"),
    "iw-sft-token": IWSFT(level="token"),
    "iw-sft-behaviour": IWSFT(proposal="behaviour", bounds=(0.5, 3.0)),
    "iw-sft-behaviour-token": IWSFT(proposal="behaviour", level="token", normalization="sequence"),
    "ift": IFT(),
    "ift-unweighted": IFT(gamma=0.0, normalization="sequence"),
    "poft": PoFT(),
    "poft-token": PoFT(normalization="token", beta=2.0, gamma=0.5),
    "f-sft-chi2": FSFT(divergence="chi2"),
    "f-sft-hellinger": FSFT(divergence="hellinger"),
    "f-sft-tv": FSFT(divergence="tv"),
    "awr": AWR(),
    "awr-reward": AWR(baseline="none", beta=0.4, max_weight=5.0),
    "rift-token": RIFT(negative="token"),
    "rift-sequence": RIFT(negative="sequence"),
    "rift-geometric": RIFT(negative="geometric", normalization="sequence"),
    "rift-paper": RIFT(negative="paper"),
    "grpo-logp": OfflineGRPO(surrogate="logp"),
    "grpo-p": OfflineGRPO(surrogate="p"),
    "grpo-shaped": OfflineGRPO(surrogate="shaped", bias_on="all_correct"),
    "grpo-ppo": OfflineGRPO(surrogate="ppo", bias=0.0, scale_by_std=True, normalization="sequence"),
    "off-policy-grpo-clipped": OffPolicyGRPO(ratio="clipped"),
    "off-policy-grpo-truncated": OffPolicyGRPO(ratio="truncated", cap=1.5),
    "off-policy-grpo-sequence": OffPolicyGRPO(ratio="sequence", normalization="sequence"),
    "dpo": DPO(),
    "cdpo": ConservativeDPO(),
    "robust-dpo": RobustDPO(),
    "dpo-norm": NormalizedDPO(),
    "dpo-nll": DPOWithNLL(),
    "ipo": IPO(),
    "simpo": SimPO(),
    "kto": KTO(desirable_weight=1.3),
}


@dataclass(frozen=True)
class Case:
    """One sharded run. ``batch`` examples a step in forward passes of ``micro``; ``chunk`` completion tokens through the
    head at once, all by default.
    """

    loss: str
    ranks: int = 1
    stage: int = 0
    lora: bool = False
    micro: int = 3
    batch: int = 7
    bf16: bool = False
    chunk: int | None = None

    @property
    def name(self) -> str:
        """What the run is called."""
        return "-".join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def plain(self) -> "Case":
        """What the plain loop sees of it."""
        return Case(self.loss, lora=self.lora, batch=self.batch, bf16=self.bf16)

    @property
    def training(self) -> TrainingSettings:
        """Settings under which every weight moves visibly; in bf16 by less than half of its last place a step."""
        return TrainingSettings(
            steps=STEPS,
            batch_size=self.batch,
            micro_batch=self.micro,
            lr=1e-4 if self.bf16 else 2e-3,
            warmup=0.3,
            weight_decay=0.01,
            eps=1e-6,
            clip=0.5,
            lora=LORA if self.lora else None,
            precision="bf16" if self.bf16 else "fp32",
            zero_stage=self.stage,  # type: ignore[arg-type]
            snapshots=0,
        )


def splits(loss: str) -> dict[str, Case]:
    """Ways to divide a step's examples that the stages and ranks of ``matrix`` do not cover."""
    return {
        "whole batch": Case(loss, micro=7),
        "one by one": Case(loss, micro=1),
        "3 for 2 ranks": Case(loss, ranks=2, stage=2, micro=1, batch=3),
        "1 for 2 ranks": Case(loss, ranks=2, stage=3, micro=1, batch=1),
        "chunks": Case(loss, ranks=2, stage=3, micro=2, chunk=5),
        "chunks, LoRA": Case(loss, ranks=2, stage=3, lora=True, micro=2, chunk=5),
    }


def matrix(loss: str) -> list[Case]:
    """Every stage on one and two ranks, whole and with adapters; no micro-batch divides the batch."""
    return [
        Case(loss, ranks, stage, lora, micro=4 - ranks) for lora in (False, True) for stage in range(4) for ranks in (1, 2)
    ]


@dataclass(frozen=True)
class Row:
    """One tokenised rollout: ids of prompt and completion, the latter with end-of-text."""

    prompt: list[int]
    completion: list[int]
    behaviour: list[float]


@dataclass(frozen=True)
class Setting:
    """A student that has learned a little, its rollouts, and what sharded runs are given of them, by precision."""

    store: Store
    student: str
    fp32: RunInputs
    bf16: RunInputs

    @cached_property
    def rollouts(self) -> Any:
        """The table."""
        return self.store.read_unit("rollouts", "rollouts")

    @cached_property
    def tokens(self) -> RolloutTokens:
        """What names a token."""
        return RolloutTokens.open(self.fp32.tokens)

    @cached_property
    def rows(self) -> list[Row]:
        """The rollouts as the plain loop reads them."""
        tokenizer = word_tokenizer()
        columns = (self.rollouts[name].to_pylist() for name in ("prompt", "completion", "logprobs"))
        return [
            Row(tokenizer(prompt).input_ids, _ended(tokenizer, completion), behaviour)
            for prompt, completion, behaviour in zip(*columns, strict=True)
        ]

    @cached_property
    def mismatched(self) -> list[Row]:
        """Each prompt with the completion of the next rollout of another prompt."""
        prompts = self.rollouts["prompt_id"].to_pylist()
        count = len(prompts)
        others = (next(o % count for o in range(i, i + count) if prompts[o % count] != prompts[i]) for i in range(count))
        return [replace(row, completion=self.rows[o].completion) for row, o in zip(self.rows, others, strict=True)]

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        """The student before training."""
        return AutoModelForCausalLM.from_pretrained(self.student, dtype=dtype).eval()


def _ended(tokenizer: Any, completion: str) -> list[int]:
    return [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def make_setting(root: Path, prompts: int = 24, samples: int = 4) -> Setting:
    """Make student, graded rollouts and all that the base says of them under ``root``.

    The student's weights are numbers of bf16, as published ones are, so that runs in fp32 and bf16 start alike. The
    model that "wrote" the rollouts is the student with noise on its weights.
    """
    rng, careless = Random(0), Carelessness(carry=0.4, gets=0.4, gives=0.2, skip=0.1)
    problems = [draw_problem(ProblemSettings(), rng) for _ in range(prompts)]
    solutions = [[solve(problem, careless, rng, "teacher") for _ in range(samples)] for problem in problems]
    tokenizer = word_tokenizer()
    student = build_model(SHAPE, tokenizer, 0)
    pretrain(
        student,
        tokenizer,
        [(problem.prompt, solved[0]) for problem, solved in zip(problems, solutions, strict=True)],
        PretrainSettings(steps=30, batch_size=8, warmup=5),
    )
    student = student.bfloat16().float()
    folder = root / "student"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    writer = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in writer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    rows = []
    for number, (problem, solved) in enumerate(zip(problems, solutions, strict=True)):
        for sample, completion in enumerate(solved):
            correct = completion.endswith(f" {problem.gold}")
            row = Row(tokenizer(problem.prompt).input_ids, _ended(tokenizer, completion), [])
            with torch.no_grad():
                behaviour = logprobs(completion_logits(writer, row), row).tolist()
            rows.append(
                {"prompt_id": str(number), "prompt": problem.prompt, "gold": problem.gold, "sample": sample,
                 "completion": completion, "reward": float(correct), "correct": correct, "truncated": False,
                 "source": "equivalence", "split": "train", "logprobs": behaviour}
            )  # fmt: skip
    store = Store(root / "store")
    store.write_unit("rollouts", {"rollouts": to_arrow("rollouts", rows)})
    tokens = RolloutTokens.encode(tokenizer, [(row["prompt"], row["completion"], True) for row in rows])
    for name, made in (
        ("tokens", tokens),
        ("mismatched", mismatch(tokens, [row["prompt_id"] for row in rows], SHAPE.context)),
    ):
        (root / name).mkdir()
        made.save(root / name)

    def reference(name: str, dtype: torch.dtype) -> AnyPath:
        folder = root / f"reference-{name}-{dtype}"
        folder.mkdir()
        work = ReferenceLogprobs(ReferenceSettings(), str(root / "student"), str(root / name), name, dtype)
        found = work.compute(work.setup(), (0, len(rows)))["reference"]
        save_reference(to_arrow("reference", found), RolloutTokens.open(root / name), folder)
        return str(folder)

    def inputs(dtype: torch.dtype) -> RunInputs:
        states = ReferenceStates(ReferenceSettings(), str(folder), str(root / "tokens"), "states", store, dtype)
        states.compute(states.setup(), (0, len(rows)))
        store.complete_folder(REFERENCE_STATES, states.folder_key)
        return RunInputs(
            rollouts="rollouts",
            student=str(folder),
            student_key="student",
            tokens=str(root / "tokens"),
            pad_id=int(tokenizer.pad_token_id),
            reference=reference("tokens", dtype),
            reference_states=store.folder(REFERENCE_STATES, states.folder_key),
            mismatched=str(root / "mismatched"),
            mismatched_reference=reference("mismatched", dtype),
        )

    return Setting(store, str(folder), inputs(torch.float32), inputs(torch.bfloat16))


def completion_logits(model: Any, row: Row, mix: float = 0.0) -> Tensor:
    """Logits from which the completion's tokens are predicted, [n, V] fp32; ``mix`` as in ``Loss.embedding_mix``."""
    ids = torch.tensor([row.prompt + row.completion])
    predicting = slice(len(row.prompt) - 1, -1)
    if mix == 0:
        return model(ids).logits[0, predicting].float()
    guessed = ids.clone()
    with torch.no_grad():
        guessed[0, len(row.prompt) :] = model(ids).logits[0, predicting].argmax(-1)
    embed = model.get_input_embeddings()
    return model(inputs_embeds=(1 - mix) * embed(ids) + mix * embed(guessed)).logits[0, predicting].float()


def logprobs(logits: Tensor, row: Row) -> Tensor:
    """Log-probabilities of the completion's tokens: [n]."""
    return logits.log_softmax(-1).gather(-1, torch.tensor(row.completion)[:, None])[:, 0]


class PlainLoop:
    """A run in torch alone, in fp32 or, its weights and AdamW's moments included, in ``dtype``."""

    def __init__(self, setting: Setting, case: Case, dtype: torch.dtype = torch.float32):
        self.setting, self.loss, self.training = setting, LOSS_CASES[case.loss], case.training
        self.base = setting.model(dtype)
        self.model = setting.model(dtype)
        if self.training.lora is not None:
            self.model = attach_lora(self.model, self.training.lora, self.training.init_seed).to(dtype)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().float().clone() for name, p in self.trained.items()}
        self.objective: list[float] = []

    def run(self) -> "PlainLoop":
        """Take all steps."""
        settings, loss = self.training, self.loss
        decayed = [p for p in self.trained.values() if p.ndim >= 2]
        rest = [p for p in self.trained.values() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=settings.betas, eps=settings.eps)
        examples = loss.select(self.setting.rollouts).examples
        order = step_batches(examples, len(self.setting.rows), settings.batch_size, STEPS, settings.seed)
        for step, batch in enumerate(order):
            chosen = [examples[i] for i in batch]
            rows = [row for example in chosen for row in example.rows]
            count = {
                "token": sum(len(self.setting.rows[row].completion) for row in rows),
                "sequence": len(rows),
                "pair": len(chosen),
            }[loss.unit]
            baseline = self._kl_baseline(rows) if "mismatched" in loss.needs else None
            self.objective.append(0.0)
            for example in chosen:
                total = loss(self._inputs(example, step, baseline)).total / count
                total.backward()
                self.objective[-1] += total.item()
            nn.utils.clip_grad_norm_(self.trained.values(), settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * _rate(step)
            optimizer.step()
            optimizer.zero_grad()
        return self

    def weights(self) -> dict[str, Tensor]:
        """Trained parameters as they are now, fp32."""
        return {name: p.detach().float() for name, p in self.trained.items()}

    def _inputs(self, example: Example, step: int, baseline: Tensor | None) -> LossInputs:
        loss, needs = self.loss, self.loss.needs
        found: dict[str, list[Tensor]] = {}
        for number in example.rows:
            row = self.setting.rows[number]
            logits = completion_logits(self.model, row, loss.embedding_mix)
            with torch.no_grad():
                base = completion_logits(self.base, row) if needs & {"reference", "reference_logits"} else None
            keys = torch.from_numpy(token_keys(self.setting.tokens, [number], self.training.seed, step))
            values = loss.token_terms(TokenLogits(logits, torch.tensor(row.completion), keys, base))
            values |= {"logprobs": logprobs(logits, row), "mask": torch.ones(len(row.completion), dtype=torch.bool)}
            if base is not None:
                values["reference_logprobs"] = logprobs(base, row)
            if "behaviour" in needs:
                values["behaviour_logprobs"] = torch.tensor(row.behaviour)
            for name, value in values.items():
                found.setdefault(name, []).append(value)
        given = {name: nn.utils.rnn.pad_sequence(value, batch_first=True) for name, value in found.items()}
        named = {name: given.pop(name) for name in tuple(given) if name in LossInputs.__dataclass_fields__}
        return LossInputs(
            weights=torch.tensor(example.weights),
            pairs=torch.tensor([[0, 1]]) if loss.unit == "pair" else None,
            kl_baseline=baseline,
            terms=given,
            **named,
        )

    @torch.no_grad()
    def _kl_baseline(self, rows: list[int]) -> Tensor:
        moved = torch.tensor(0.0)
        for number in rows:
            row = self.setting.mismatched[number]
            moved += (
                logprobs(completion_logits(self.model, row), row) - logprobs(completion_logits(self.base, row), row)
            ).sum()
        return moved / len(rows)


def _rate(step: int) -> float:
    """Six steps of warm-up, then a cosine that ends at zero."""
    return (step + 1) / 6 if step < 6 else 0.5 + 0.5 * math.cos(math.pi * (step - 6) / (STEPS - 7))


After = Callable[[Any, Case, Path], None]


def keep_weights(engine: Any, case: Case, folder: Path) -> None:
    """Write what the engine has trained, whole; all ranks take part."""
    values = trained_values(engine)
    if dist.get_rank() == 0:
        save_file(values, folder / f"{case.name}.safetensors")


def train_cases(rank: int, ranks: int, setting: Setting, cases: list[Case], folder: Path, after: After) -> None:
    """Train the cases one after the other as one rank of a gloo group, and call ``after`` with each engine."""
    os.environ |= {"LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/ranks-{ranks}", timedelta(minutes=3), world_size=ranks, rank=rank
    )
    import_deepspeed().init_distributed("gloo", verbose=False)
    for case in cases:
        inputs = setting.bf16 if case.bf16 else setting.fp32
        spec = RunSpec(name=case.name, loss=LOSS_CASES[case.loss], training=case.training)
        data = open_data(spec.loss, setting.store, inputs)
        engine, _ = build_engine(spec, len(data.examples), inputs.student)
        if case.chunk is not None:
            engine.module.chunk = case.chunk * len(word_tokenizer())
        hooks = Hooks(lambda *report: None, lambda progress: None, lambda *step: None, lambda: False)
        started = time.perf_counter()
        progress = optimise(engine, spec, data, Progress(), hooks)
        if rank == 0:
            seconds = time.perf_counter() - started
            print(f"{seconds:6.1f} s {case.name}", flush=True)
        after(engine, case, folder)
        engine.destroy()
