"""The same result however it is sharded: ``python -m checks.equivalence`` trains every loss under every ZeRO stage, on
one and two ranks, every weight or adapters, and compares what is exported with a plain loop in torch.

In fp32 no weight may differ by more than ``BOUND``; in bf16 with fp32 masters a delta may differ by ``BF16_BOUND`` of
its length. ``--losses sft,dpo`` restricts the table, ``--out FILE`` writes its numbers as JSON. The exit status is 1 if
a bound is exceeded. All losses take about an hour on two cores.
"""

import argparse
import json
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow as pa
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch.multiprocessing import start_processes
from transformers.utils.logging import disable_progress_bar

from benchmarks.plain_loop import PlainLoop, completion_logits, completion_logprobs, read_row
from raygeo.data.mismatched import mismatch
from raygeo.data.reference import (
    REFERENCE_STATES,
    ReferenceLogprobs,
    ReferenceSettings,
    ReferenceStates,
    save_reference,
)
from raygeo.data.teacher import TOP_COLUMNS, save_teacher_top
from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses import OTR
from raygeo.losses.base import Loss
from raygeo.losses.registry import LOSSES, variants
from raygeo.models import compilation
from raygeo.models.delta import Entry, LowRank, open_delta
from raygeo.models.likelihood import CHUNK_LOGITS
from raygeo.models.lora import LoraSettings
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.pretrain import PretrainSettings, pretrain
from raygeo.toy.word_problems import Carelessness, ProblemSettings, draw_problem, solve, word_tokenizer
from raygeo.training import engine as sharding
from raygeo.training.data import open_data
from raygeo.training.engine import build_engine, import_deepspeed
from raygeo.training.export import keep_delta
from raygeo.training.inputs import RunInputs
from raygeo.training.loop import Hooks, TrainingState, optimise
from raygeo.training.settings import RunSpec, TrainingSettings

BOUND, BF16_BOUND = 1e-5, 0.07
CURVES = ("objective", "grad_norm", "kl")
DRAWS_BOUND = 1e-3
"""For OTR with more than ``FEW_DRAWS`` a token: rounding moves a few of its million draws over an edge of the
cumulative law, to another token, which changes weights by 1e-4. With equal draws it keeps ``BOUND``."""
FEW_DRAWS = 2
FEW_LOGITS = 200
"""Those of two or three tokens: as with a large vocabulary, the head is walked in pieces."""
SHAPE = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, context=128)
LORA = LoraSettings(r=4, lora_alpha=8)
STEPS = 20
TOP = 8

LOSS_CASES: dict[str, Loss] = {name: loss for kind in LOSSES.values() for name, loss in variants(kind).items()}
"""Every loss in all its variants."""


def bound(name: str) -> float:
    """The largest difference of any weight in fp32 for a case of ``LOSS_CASES``."""
    loss = LOSS_CASES[name]
    return DRAWS_BOUND if isinstance(loss, OTR) and loss.samples > FEW_DRAWS else BOUND


@dataclass(frozen=True)
class Case:
    """One sharded run: ``batch`` examples a step, ``micro`` in a forward pass, ``chunk`` logits held at once, layers
    ``checkpointed`` or ``compiled``, rows ``packed`` instead of padded, and as many as have so many ``tokens``;
    ``sharing`` ranks have a part of each row.
    """

    loss: str
    ranks: int = 1
    stage: int = 0
    lora: bool = False
    micro: int = 3
    batch: int = 7
    bf16: bool = False
    chunk: int = CHUNK_LOGITS
    steps: int = STEPS
    checkpointed: bool = False
    packed: bool = False
    tokens: int | None = None
    sharing: int = 1
    compiled: bool = False

    @property
    def name(self) -> str:
        """What its delta is called in the store."""
        kind = "lora" if self.lora else "full"
        precision = "-bf16" if self.bf16 else ""
        held = f"-chunk{self.chunk}" if self.chunk != CHUNK_LOGITS else ""
        held += (
            "-checkpointed" * self.checkpointed
            + "-packed" * self.packed
            + f"-tokens{self.tokens}" * (self.tokens is not None)
            + f"-sharing{self.sharing}" * (self.sharing > 1)
            + "-compiled" * self.compiled
        )
        return f"{self.loss}-{kind}-zero{self.stage}-ranks{self.ranks}-{self.batch}by{self.micro}{precision}{held}"

    @property
    def plain(self) -> "Case":
        """What of it matters to the plain loop."""
        return replace(
            self,
            ranks=1,
            stage=0,
            micro=self.batch,
            chunk=CHUNK_LOGITS,
            checkpointed=False,
            packed=False,
            tokens=None,
            sharing=1,
            compiled=False,
        )

    @property
    def training(self) -> TrainingSettings:
        """Settings that move weights by 1e-2, clip gradients, and decay.

        AdamW divides by |g| + eps, and so makes of a rounding error in a gradient far below eps an error of lr / eps
        times as much; hence eps is well above fp32's rounding of gradients. In bf16 most steps are below half a unit in
        the last place of a weight, as they are in practice.
        """
        return TrainingSettings(
            steps=self.steps,
            batch_size=self.batch,
            micro_batch_size=self.micro,
            lr=1e-4 if self.bf16 else 2e-3,
            warmup_ratio=0.3,
            weight_decay=0.01,
            adam_epsilon=1e-6,
            max_grad_norm=0.5,
            lora=LORA if self.lora else None,
            precision="bf16" if self.bf16 else "fp32",
            zero_stage=self.stage,
            gradient_checkpointing=self.checkpointed,
            torch_compile=self.compiled,
            padding_free=self.packed,
            micro_batch_tokens=self.tokens,
            workers=self.ranks,
            sequence_parallel_size=self.sharing,
            snapshots=0,
        )


def matrix(loss: str) -> list[Case]:
    """Every stage on one and two ranks, every weight or adapters. A step's 7 examples are split into 3, 2 and 2 on one
    rank, into 2 and 2 on one and 2 and 1 on the other of two.
    """
    return [Case(loss, ranks, stage, lora) for lora in (False, True) for stage in range(4) for ranks in (1, 2)]


def splits(loss: str) -> dict[str, Case]:
    """Other ways to divide the examples, and the logits of a micro-batch."""
    return {
        "whole batch": Case(loss, micro=7),
        "one by one": Case(loss, micro=1),
        "3 on 2 ranks": Case(loss, ranks=2, stage=2, micro=1, batch=3),
        "1 on 2 ranks": Case(loss, ranks=2, stage=3, micro=1, batch=1),
        "few logits, ZeRO-2": Case(loss, ranks=2, stage=2, chunk=FEW_LOGITS),
        "few logits, ZeRO-3": Case(loss, ranks=2, stage=3, chunk=FEW_LOGITS),
        "layers again, ZeRO-3": Case(loss, ranks=2, stage=3, checkpointed=True),
        "compiled, ZeRO-2": Case(loss, ranks=2, stage=2, compiled=True),
        "packed, ZeRO-2": Case(loss, ranks=2, stage=2, packed=True),
        "by tokens, ZeRO-3": Case(loss, ranks=2, stage=3, packed=True, tokens=60),
        "shared rows, ZeRO-2": Case(loss, ranks=2, stage=2, packed=True, sharing=2),
    }


def low_precision(loss: str) -> list[Case]:
    """Runs in bf16; none of OTR with so few draws a token that it would be noise there."""
    case = LOSS_CASES.get(loss)
    if isinstance(case, OTR) and case.samples <= FEW_DRAWS:
        return []
    return [
        Case(loss, bf16=True),
        Case(loss, ranks=2, stage=2, bf16=True),
        Case(loss, ranks=2, stage=3, bf16=True),
        Case(loss, ranks=2, stage=3, lora=True, bf16=True),
    ]


@dataclass(frozen=True)
class Setting:
    """A student that has learned a little, graded rollouts of it, and where runs find what they learn from."""

    store: Store
    fp32: RunInputs
    bf16: RunInputs

    @property
    def rollouts(self) -> pa.Table:
        """The rollout table."""
        return self.store.read_unit("rollouts", self.fp32.rollouts)

    def plain(self, case: Case, dtype: torch.dtype = torch.float32) -> PlainLoop:
        """Run the plain loop on the case."""
        return PlainLoop(str(self.fp32.student), self.rollouts, LOSS_CASES[case.loss], case.training, dtype).run()

    def exported(self, case: Case) -> Mapping[str, Entry]:
        """What ``keep_delta`` kept of the case."""
        return open_delta(self.store.folder("deltas", case.name))

    def curves(self, case: Case) -> dict[str, list[float]]:
        """``CURVES`` of the case, a number for every step."""
        return json.loads(self.store.read_bytes(f"curves/{case.name}.json") or b"{}")


def make_setting(root: Path, shape: Architecture = SHAPE, prompts: int = 24, samples: int = 4) -> Setting:
    """Make student, rollouts, and all that the base says of them, under ``root``.

    Rollouts are written by the student with noise on its weights, whose log-probabilities they hold, those of its
    ``TOP`` likeliest tokens too.
    """
    rng, careless = Random(0), Carelessness(carry=0.4, gets=0.4, gives=0.2, skip=0.1)
    problems = [draw_problem(ProblemSettings(), rng) for _ in range(prompts)]
    texts = [(problem.prompt, solve(problem, careless, rng, "teacher")) for problem in problems for _ in range(samples)]
    tokenizer = word_tokenizer()
    student = build_model(shape, tokenizer, 0)
    pretrain(student, tokenizer, texts[::samples], PretrainSettings(steps=30, batch_size=8, warmup_steps=5))
    student.save_pretrained(root / "student")
    tokenizer.save_pretrained(root / "student")
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        for number, (prompt, completion) in enumerate(texts):
            gold = problems[number // samples].gold
            row, correct = read_row(tokenizer, prompt, completion), completion.endswith(f" {gold}")
            logits = completion_logits(student, row)
            top, ids = logits.log_softmax(-1).topk(TOP)
            rows.append(
                {"prompt_id": str(number // samples), "prompt": prompt, "gold": gold, "sample": number % samples,
                 "completion": completion, "reward": float(correct), "correct": correct, "truncated": False,
                 "source": "student" if number % 2 else "teacher", "split": "train",
                 "logprobs": completion_logprobs(logits, row).tolist(), "top_ids": ids.flatten().tolist(),
                 "top_logprobs": top.flatten().tolist(), "top_tail": (1 - top.exp().sum(-1)).tolist()}
            )  # fmt: skip
    store = Store(root / "store")
    store.write_unit("rollouts", {"rollouts": to_arrow("rollouts", rows)})
    tokens = RolloutTokens.encode(PlainRenderer(tokenizer), [(*text, True) for text in texts])
    for name, each in (
        ("tokens", tokens),
        ("mismatched", mismatch(tokens, [row["prompt_id"] for row in rows], shape.context)),
    ):
        (root / name).mkdir()
        each.save(root / name)
    return Setting(
        store, *(_inputs(root, store, int(tokenizer.pad_token_id), dtype) for dtype in (torch.float32, torch.bfloat16))
    )


def _inputs(root: Path, store: Store, pad_id: int, dtype: torch.dtype) -> RunInputs:
    """Compute what the base, in ``dtype``, says of the rollouts."""
    student, settings = str(root / "student"), ReferenceSettings()

    def reference(name: str) -> str:
        tokens = RolloutTokens.open(root / name)
        work = ReferenceLogprobs(settings, student, str(root / name), name, dtype)
        folder = root / f"{name}-{dtype}"
        folder.mkdir()
        found = work.compute(work.setup(), (0, len(tokens)))["reference"]
        save_reference([to_arrow("reference", found)], tokens, folder)
        return str(folder)

    (root / f"teacher-{dtype}").mkdir()
    batches = store.row_batches("rollouts", "rollouts", TOP_COLUMNS, {"split": "train"}, 7)
    save_teacher_top(batches, RolloutTokens.open(root / "tokens"), len(word_tokenizer()), root / f"teacher-{dtype}")
    states = ReferenceStates(settings, student, str(root / "tokens"), "states", store, dtype)
    states.compute(states.setup(), (0, len(RolloutTokens.open(root / "tokens"))))
    store.complete_folder(REFERENCE_STATES, states.folder_key)
    return RunInputs(
        rollouts="rollouts",
        student=student,
        student_key="student",
        tokens=str(root / "tokens"),
        pad_id=pad_id,
        reference=reference("tokens"),
        reference_states=store.folder(REFERENCE_STATES, states.folder_key),
        mismatched=str(root / "mismatched"),
        mismatched_reference=reference("mismatched"),
        teacher=str(root / f"teacher-{dtype}"),
    )


After = Callable[[Any, Case, Setting], None]
PRELOADED = [
    "raygeo.training.worker", "raygeo.toy.pretrain", "deepspeed", "peft", "rich.table",
    "transformers.models.qwen3.modeling_qwen3", "transformers.integrations.deepspeed",
]  # fmt: skip


def keep(engine: Any, case: Case, setting: Setting) -> None:
    """Put what the engine has trained into the store; all ranks take part."""
    keep_delta(engine, setting.fp32.student, setting.store, "deltas", case.name)


def train_sharded(setting: Setting, cases: Iterable[Case], after: After = keep) -> None:
    """Train the cases in gloo groups of as many processes as they have ranks; ``after`` is called on every rank.

    Objective and gradient norm of all steps go to the store's ``curves/<name>.json``.
    """
    for ranks in sorted({case.ranks for case in cases}):
        mine = [case for case in cases if case.ranks == ranks]
        with tempfile.TemporaryDirectory() as folder:
            run_in_group(_train_cases, ranks, setting, mine, after, folder)


def run_in_group(work: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call ``work(rank, ranks, *args)`` in as many fresh processes as there are ranks, which end with this one.

    They are forked from one that has imported what training needs.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(work, (ranks, *args), nprocs=ranks, start_method="forkserver", daemon=True)


def _train_cases(rank: int, ranks: int, setting: Setting, cases: list[Case], after: After, folder: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), world_size=ranks, rank=rank)
    import_deepspeed().init_distributed("gloo", verbose=False)
    sharding.PERSISTENT, compilation.BACKEND = 0, "eager"  # kernels of its own take a minute to make
    for case in cases:
        inputs = setting.bf16 if case.bf16 else setting.fp32
        spec = RunSpec(name=case.name, loss=LOSS_CASES[case.loss], training=case.training)
        data = open_data(spec.loss, setting.store, inputs, spec.needs)
        engine, _ = build_engine(spec, len(data.examples), inputs.student)
        engine.module.head.chunk = case.chunk
        hooks = Hooks(lambda step, metrics: None, lambda progress: None, lambda step, last: None, lambda: None)
        progress = optimise(engine, spec, data, TrainingState(), hooks)
        if rank == 0:
            curves = {name: [row["value"] for row in progress.curves if row["metric"] == name] for name in CURVES}
            setting.store.write_bytes(f"curves/{case.name}.json", json.dumps(curves).encode())
        after(engine, case, setting)
        engine.destroy()
    dist.destroy_process_group()


def largest_difference(found: Mapping[str, Entry], expected: Mapping[str, Entry]) -> float:
    """Largest absolute difference of any weight, or of any number in the factors of an adapter.

    Raises:
        ValueError: they are deltas of different parameters.
    """
    if found.keys() != expected.keys():
        raise ValueError(f"only one delta has {sorted(found.keys() ^ expected.keys())}")
    return max(float((a - b).abs().max()) for a, b in zip(_parts(found), _parts(expected), strict=True))


def relative_error(found: Mapping[str, Entry], expected: Mapping[str, Entry]) -> float:
    """Length of the difference of two deltas, as a share of the length of the expected one."""
    gaps = [(found[name].dense() - entry.dense()).square().sum() for name, entry in expected.items()]
    return math.sqrt(float(sum(gaps)) / length(expected) ** 2)


def length(delta: Mapping[str, Entry]) -> float:
    """Frobenius norm of all changes."""
    return math.sqrt(sum(float(entry.dense().square().sum()) for entry in delta.values()))


def _parts(delta: Mapping[str, Entry]) -> list[torch.Tensor]:
    entries = [delta[name] for name in sorted(delta)]
    return [part for e in entries for part in ((e.a, e.b) if isinstance(e, LowRank) else (e.value,))]


def measure(setting: Setting, cases: list[Case]) -> list[dict[str, Any]]:
    """Train the cases and the plain loops they are compared with: one row a case.

    ``difference`` is the largest of any weight, ``objective`` of the loss at any step, ``grad_norm`` of the gradient's
    norm at any step, as a share of the largest, and ``relative`` that of the delta, as a share of its length; ``moved``
    is the largest change of any weight in training. In bf16 ``pure`` is the relative error of a plain loop without fp32
    masters.
    """
    train_sharded(setting, cases)
    rows = []
    loops = {plain: setting.plain(plain) for plain in {case.plain for case in cases}}
    pure = {plain: setting.plain(plain, torch.bfloat16).delta() for plain in loops if plain.bf16}
    for case in cases:
        loop = loops[case.plain]
        expected, found = loop.delta(), setting.exported(case)
        curves = setting.curves(case)
        row = {
            **asdict(case),
            "name": case.name,
            "difference": largest_difference(found, expected),
            "relative": relative_error(found, expected),
            "objective": max(abs(a - b) for a, b in zip(curves["objective"], loop.objective, strict=True)),
            "grad_norm": max(abs(a - b) for a, b in zip(curves["grad_norm"], loop.grad_norm, strict=True))
            / max(loop.grad_norm),
            "moved": loop.moved,
        }
        if case.bf16:
            row["pure"] = relative_error(pure[case.plain], expected)
        rows.append(row)
    return rows


def passes(row: dict[str, Any]) -> bool:
    """Whether the row keeps its bound, and means something."""
    if row["bf16"]:
        return row["relative"] <= BF16_BOUND
    largest = bound(row["loss"])
    same = max(row["difference"], row["objective"]) <= largest and row["grad_norm"] <= 10 * largest
    return same and row["moved"] > 1e-3


def number(value: float, good: bool = True) -> str:
    """Two digits, red where a bound is exceeded."""
    return f"{value:.1e}" if good else f"[red]{value:.1e}[/red]"


def sharding_table(results: list[dict[str, Any]]) -> Table:
    """Largest difference for every stage and number of ranks."""
    table = Table(
        title=f"Largest difference of any weight from a plain loop after {STEPS} steps, fp32; moved: by training"
    )
    table.add_column("loss")
    table.add_column("trained")
    table.add_column("moved", justify="right")
    for stage in range(4):
        for ranks in (1, 2):
            table.add_column(f"ZeRO-{stage}\n{ranks} rank{'s'[: ranks - 1]}", justify="right")
    found = {row["name"]: row for row in results}
    for loss in dict.fromkeys(row["loss"] for row in results):
        for lora in (False, True):
            rows = [found[case.name] for case in matrix(loss) if case.lora == lora]
            cells = [number(row["difference"], passes(row)) for row in rows]
            table.add_row(loss, "LoRA" if lora else "all", number(rows[0]["moved"]), *cells)
    return table


def splits_table(results: list[dict[str, Any]]) -> Table:
    """Largest difference for other splits."""
    table = Table("loss", *splits(""), title="The same, for other splits of a step's examples and logits")
    found = {row["name"]: row for row in results}
    for loss in dict.fromkeys(row["loss"] for row in results):
        rows = [found[case.name] for case in splits(loss).values()]
        table.add_row(loss, *(number(row["difference"], passes(row)) for row in rows))
    return table


def bf16_table(results: list[dict[str, Any]]) -> Table:
    """Relative errors of deltas of runs in bf16, and of a plain loop without masters."""
    table = Table(title=f"bf16: relative error of the delta after {STEPS} steps, to the plain loop in fp32")
    table.add_column("loss")
    found = {row["name"]: row for row in results}
    for case in low_precision(""):
        ranks = f"{case.ranks} rank{'s'[: case.ranks - 1]}"
        table.add_column(f"ZeRO-{case.stage}\n{ranks}{', LoRA' if case.lora else ''}", justify="right")
    table.add_column("no masters", justify="right")
    table.add_column("no masters\nLoRA", justify="right")
    for loss in dict.fromkeys(row["loss"] for row in results if row["bf16"]):
        rows = [found[case.name] for case in low_precision(loss)]
        pure = [next(row["pure"] for row in rows if row["lora"] == lora) for lora in (False, True)]
        table.add_row(loss, *(number(row["relative"], passes(row)) for row in rows), *map(number, pure))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare sharded training with a plain loop.")
    parser.add_argument("--losses", help="types of losses or names of cases, with commas between; all")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what it started ends too
    wanted = arguments.losses.split(",") if arguments.losses else list(LOSS_CASES)
    names = [name for name, loss in LOSS_CASES.items() if name in wanted or loss.type in wanted]
    console = Console(width=None if sys.stdout.isatty() else 160)
    torch.set_num_threads(1)
    disable_progress_bar()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = make_setting(Path(folder))
        for name in names:
            started = time.perf_counter()
            results += measure(setting, [*matrix(name), *splits(name).values(), *low_precision(name)])
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=1))
            mine = [row for row in results if row["loss"] == name]
            console.print(
                f"{name}: {len(mine)} runs in {time.perf_counter() - started:.0f} s, "
                f"largest difference {max(row['difference'] for row in mine if not row['bf16']):.1e}, "
                f"bf16 {max((row['relative'] for row in mine if row['bf16']), default=math.nan):.1e}"
            )
    for table in (sharding_table(results), splits_table(results), bf16_table(results)):
        console.print(table)
    sys.exit(0 if all(passes(row) for row in results) else 1)


if __name__ == "__main__":
    main()
