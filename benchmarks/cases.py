"""What is trained on in the benchmarks: a student with random weights (its speed is that of a trained one) and rollouts
with as many right as wrong ones, so that an epoch has equally many steps for losses on rows and on pairs.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import torch

from raygeo.data.reference import ReferenceLogprobs, ReferenceSettings, save_reference
from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.lora import LoraSettings
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import Carelessness, ProblemSettings, draw_problem, solve, word_tokenizer
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import TrainingSettings

VOCABULARY = 151_936
TINY = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64)
QWEN3_4B = Architecture(
    hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, intermediate=9728, init_std=0.02, rope_theta=1e6,
    context=4096,
)  # fmt: skip
_SAMPLES = 4


@dataclass(frozen=True)
class Case:
    """One student and its rollouts; a step sees ``rows`` rows or half as many pairs, ``micro_rows`` rows at a time."""

    name: str
    architecture: Architecture
    completions: tuple[int, int] | None = None
    """Shortest and longest completion, of random tokens; without it, solutions of word problems."""
    vocabulary: int | None = None
    """Rows of the embedding; without it as many as the tokenizer has tokens."""
    rows: int = 32
    micro_rows: int = 16
    precision: Literal["fp32", "bf16"] = "fp32"
    lora: LoraSettings | None = None
    zero_stage: Literal[0, 1, 2, 3] = 0

    def resized(self, rows: int | None = None, completions: tuple[int, int] | None = None) -> "Case":
        """The case with other ``rows`` and lengths of random completions, where given.

        Raises:
            ValueError: ``rows`` are not whole prompts of 4 rollouts.
        """
        if rows is not None and (rows < _SAMPLES or rows % _SAMPLES):
            raise ValueError(f"a step of {rows} rows; give a multiple of {_SAMPLES}")
        return replace(
            self,
            rows=rows or self.rows,
            micro_rows=min(self.micro_rows, rows or self.rows),
            completions=self.completions and (completions or self.completions),
        )

    def __str__(self) -> str:
        """The case in words, with what a step sees."""
        lengths = "" if self.completions is None else " of {}-{} completion tokens".format(*self.completions)
        return f"{self.name}: {self.rows} rows{lengths}, {self.micro_rows} at a time"


CASES = {
    "word-problems": Case("word-problems", Architecture()),
    "vocabulary": Case(
        "vocabulary", Architecture(), completions=(40, 120), vocabulary=VOCABULARY, rows=4, micro_rows=2
    ),
    "tiny": Case("tiny", TINY, rows=8, micro_rows=4),
}


@dataclass(frozen=True)
class Prepared:
    """A case on disk: what runs read, the steps of an epoch, and what the reference pass over all rows took."""

    case: Case
    store: Store
    inputs: RunInputs
    steps: int
    threads: int
    reference_seconds: float
    reference_cpu_seconds: float

    def training(self, *, pairs: bool, lr: float = 1e-4) -> TrainingSettings:
        """Settings shared by all competitors: AdamW at a constant rate, gradients clipped, no decay, no schedule."""
        case = self.case
        return TrainingSettings(
            lr=lr, steps=self.steps, batch_size=case.rows // 2 if pairs else case.rows,
            micro_batch_size=case.micro_rows // 2 if pairs else case.micro_rows,
            warmup_ratio=0.0, lr_scheduler_type="constant", precision=case.precision, lora=case.lora,
            zero_stage=case.zero_stage, cpus=self.threads, snapshots=0,
        )  # fmt: skip


def prepare(case: Case, steps: int, threads: int, folder: Path, seed: int = 0) -> Prepared:
    """Make the student, ``steps`` steps of rollouts, and the reference log-probabilities, timing the last."""
    prompts = steps * case.rows // _SAMPLES
    rows = _word_rows(prompts, seed) if case.completions is None else _random_rows(prompts, case.completions, seed)
    tokenizer = word_tokenizer()
    model = build_model(case.architecture, tokenizer, seed)
    if case.vocabulary is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
    if case.precision == "bf16":
        model.bfloat16()
    student = folder / "student"
    model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    if case.completions is None:
        tokens = RolloutTokens.encode(
            PlainRenderer(tokenizer), ((row["prompt"], row["completion"], True) for row in rows)
        )
    else:
        tokens = _random_tokens(rows, case.vocabulary or len(tokenizer), seed)
    for name in ("tokens", "reference"):
        (folder / name).mkdir()
    tokens.save(folder / "tokens")
    store = Store(folder / "store")
    store.write_unit("rollouts", {"rollouts": to_arrow("rollouts", rows)})

    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    work = ReferenceLogprobs(ReferenceSettings(), str(student), str(folder / "tokens"), "bench", dtype)
    state = work.setup()
    began = time.perf_counter(), time.process_time()
    found = [row for task in work.tasks() for row in work.compute(state, task.payload)["reference"]]
    seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    save_reference([to_arrow("reference", found)], tokens, folder / "reference")
    inputs = RunInputs(
        "rollouts", str(student), "student", str(folder / "tokens"), int(tokenizer.pad_token_id),
        str(folder / "reference"),
    )  # fmt: skip
    return Prepared(case, store, inputs, steps, threads, seconds, cpu_seconds)


def _word_rows(prompts: int, seed: int) -> list[dict[str, Any]]:
    rng, careless = Random(seed), Carelessness(carry=0.4, gets=0.4, gives=0.2, skip=0.1)
    rows: list[dict[str, Any]] = []
    for number in range(prompts):
        kept: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        while min(map(len, kept.values())) < _SAMPLES // 2:
            problem = draw_problem(ProblemSettings(), rng)
            kept = {True: [], False: []}
            for _ in range(16):
                completion = solve(problem, careless, rng, "teacher")
                correct = completion.endswith(f" {problem.gold}")
                if len(kept[correct]) < _SAMPLES // 2:
                    kept[correct].append({"prompt": problem.prompt, "completion": completion, "gold": problem.gold})
        rows += [
            _row(number, sample, row, correct)
            for sample, (row, correct) in enumerate((row, ok) for ok, group in kept.items() for row in group)
        ]
    return rows


def _random_rows(prompts: int, completions: tuple[int, int], seed: int) -> list[dict[str, Any]]:
    rng = Random(seed)
    rows = []
    for number in range(prompts):
        prompt = rng.randint(20, 60)
        for sample in range(_SAMPLES):
            text = {"prompt": str(prompt), "completion": str(rng.randint(*completions)), "gold": ""}
            rows.append(_row(number, sample, text, sample < _SAMPLES // 2))
    return rows


def _row(prompt: int, sample: int, text: dict[str, str], correct: bool) -> dict[str, Any]:
    return text | {
        "prompt_id": str(prompt), "sample": sample, "reward": float(correct), "correct": correct,
        "truncated": False, "source": "bench", "split": "train",
    }  # fmt: skip


def _random_tokens(rows: list[dict[str, Any]], vocabulary: int, seed: int) -> RolloutTokens:
    """Sequences of the lengths the rows name; rollouts of one prompt start alike."""
    rng, sequences = np.random.default_rng(seed), []
    for first in range(0, len(rows), _SAMPLES):
        prompt = rng.integers(3, vocabulary, int(rows[first]["prompt"]))
        lengths = [int(row["completion"]) for row in rows[first : first + _SAMPLES]]
        sequences += [np.concatenate([prompt, rng.integers(3, vocabulary, length)]) for length in lengths]
    offsets = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
    return RolloutTokens(
        np.concatenate(sequences).astype(np.int32), offsets,
        np.array([int(row["prompt"]) for row in rows], dtype=np.int64),
    )  # fmt: skip
