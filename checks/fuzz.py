"""Bad input of every kind, made from seeds: each case must be used, refused in raygeo's own words, or set aside.

``python -m checks.fuzz --cases 50000`` tries all kinds and prints what became of them; a case that ends in a library's
traceback, takes more than a second of CPU, or much more memory than it has bytes, is printed with the seed that makes
it again: ``python -m checks.fuzz --kind models --seed 17 --cases 1``.
"""

import argparse
import csv
import json
import os
import random
import resource
import shutil
import signal
import string
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from raygeo.errors import RaygeoError

CPU_SECONDS = 1.0
"""What a case may take."""
MEMORY = 256 << 20
"""Bytes that a case may add to what the process has held at most; no case has a hundredth of that."""
_PATIENCE = 5

Json = Any
Case = Callable[[random.Random, Path], object]


class Slow(BaseException):
    """A case was stopped: it would have gone on."""


class Accepted(Exception):
    """What cannot work was taken."""


@dataclass
class Outcome:
    """What became of some cases: how many were ``used``, how many ``refused`` by class of error, and ``findings``."""

    used: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.used + self.refused.total() + len(self.findings)


# -- odd values -------------------------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "\n", "\x00", "a\x00b", "\x1b[31m", "\u202e", "\ud800", "é" * 3, "-", "..", "../..", "/", "/dev/null",
    "~", "~nouser/x", "a" * 5000, "%s", "{prompt}", "{prompt}{prompt}", "${HOME}", "null", "nan", "inf", "1e999",
    "0x10", "१२", "1_000", "true", "=", "a=b", "a.b.c", "s3://", "s3://b/k?x=%zz", "file:///tmp/%20x", "'", '"', "`",
    "<b>", "\\", "####", "#### 1e9", "\\boxed{", "\\boxed{{{{", "[", "[[[[", "{", "[1, 2", '[{"role": 1}]', "𝟙", "()",
    "(a+)+$",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 1 << 31, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 1 << 200, 10**400, 0.0, -0.0, 0.5, -3.0, 1e-320,
    1e308, float("nan"), float("inf"), -float("inf"), True, False,
)  # fmt: skip


def odd(rng: random.Random, depth: int = 0) -> Json:
    """A value that nobody expects."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind == 4:
        return None
    if kind == 5:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(12)))
    if kind == 6:
        return {rng.choice(TEXTS): odd(rng, depth + 1) for _ in range(rng.randrange(3))}
    return [odd(rng, depth + 1) for _ in range(rng.randrange(4))]


def places(value: Json, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in plain data."""
    yield above
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*above, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*above, index))


def changed(rng: random.Random, value: Json, times: int = 1, new: Callable[[random.Random], Json] = odd) -> Json:
    """Plain data with something odd in it: put in the place of something, added, left out, or put elsewhere."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        known = list(places(value))
        where = rng.choice(known)
        if not where:
            if rng.random() < 0.02:
                return new(rng)
            continue
        *parents, last = where
        node = value
        for part in parents:
            node = node[part]
        how = rng.randrange(8)
        if how == 0:
            del node[last]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(TEXTS)] = new(rng)
        elif how == 2 and isinstance(node, list):
            node.insert(last, new(rng))
        elif how == 3:
            other = value
            for part in rng.choice(known):
                try:
                    other = other[part]
                except (KeyError, IndexError, TypeError):
                    break
            node[last] = json.loads(json.dumps(other))
        elif how == 4:
            node[last] = [node[last]] * rng.randrange(4)
        else:
            node[last] = new(rng)
    return value


def garbled(rng: random.Random, content: bytes, times: int | None = None) -> bytes:
    """Bytes with some of them changed, left out, doubled, or cut off."""
    found = bytearray(content)
    for _ in range(times or rng.choice((1, 1, 2, 5, 20))):
        if not found:
            return bytes(found)
        place = rng.randrange(len(found))
        how = rng.randrange(5)
        if how == 0:
            found[place] = rng.randrange(256)
        elif how == 1:
            del found[place : place + rng.choice((1, 1, 4, 64))]
        elif how == 2:
            found[place:place] = found[place : place + rng.choice((1, 8, 64))]
        elif how == 3:
            found[place:place] = rng.choice((b"\x00", b"\xff\xfe", b"\n", b'"', b"{", b"[" * 2000, b"9" * 400, b": "))
        elif rng.random() < 0.2:
            del found[place:]
    return bytes(found)


# -- study files ------------------------------------------------------------------------------------------------------

STUDIES: tuple[Json, ...] = (
    {
        "name": "fuzz",
        "rollouts": {"sample": {"prompts": 8, "decoding": {"samples": 2}}, "heldout": 0.25},
        "training": {
            "steps": 2,
            "lr": [1e-4, 1e-3],
            "seed": [0, 1],
            "betas": [0.9, 0.99],
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
        },
        "runs": [{"loss": {"type": "sft"}}, {"loss": {"type": "dpo", "beta": [0.1, 0.5]}, "name": "d"}],
        "evaluation": {"benchmarks": [{"name": "more", "problems": 8, "seed": 3}]},
        "geometry": {"curvature": None, "similarity": {}},
        "student": {"word_problems": {"architecture": {"layers": 1, "heads": 2, "kv_heads": 1}}},
        "caveats": ["made up"],
    },
    {
        "name": "read",
        "store": "store/read",
        "rollouts": {
            "read": [{"type": "jsonl", "path": "x.jsonl", "fields": {"completion": "answer"}, "limit": 5}],
            "grading": "exact",
            "max_set_aside": 0.1,
        },
        "student": {"model": "some/model", "chat": {}},
        "training": {"epochs": 1, "batch_size": 8, "micro_batch_size": 2, "zero_stage": 1},
        "runs": [
            {"loss": "pointwise", "except": ["rift"]},
            {"loss": {"type": "dpo"}, "lr": {"log_uniform": [1e-5, 1e-3]}},
        ],
        "sweep": {
            "search": "random",
            "samples": 3,
            "objectives": [{"metric": "eval/heldout/nll"}],
            "scheduler": {"type": "asha"},
        },
        "actors": {"cpus": 1},
        "probes": {"sequences": 8},
    },
)

BOMB = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)),
    ]
)
SNIPPETS = (
    f"{BOMB}\n", "caveats: &c [*c]\n", "<<: {name: x}\n", "<<: [1, 2]\n", "? [a, b]\n: 1\n", "? {a: b}\n: 1\n",
    "store: !!python/object/apply:os.system ['false']\n", "store: !!binary aGVsbG8=\n", "store: !!set {a, b}\n",
    "store: 2020-01-01\n", "store: 99999-99-99\n", "caveats: " + "[" * 3000 + "\n", "caveats: " + "{a: " * 400 + "\n",
    "name: other\n", "---\nname: x\n", "%YAML 9.9\n---\n", "\t- x\n", "store: &x y\nname: *x\n", "name: *nowhere\n",
    "store: !!float x\n", "store: !!int '9_9'\n", "store: 1:60:60\n", "store: " + "9" * 5000 + "\n", "1: 2\n",
    "null: 3\n", "store: !!timestamp 2020-13-45\n", "2020-01-01: x\n", "1.5: y\n", "true: no\n", 'store: "\\x00"\n',
    "!!omap []: 1\n", "? &k [1]\n: *k\n", "caveats: !!omap [1]\n", "caveats: !!pairs [[1]]\n", "store: !!null x\n",
    "store: !!bool maybe\n",
)  # fmt: skip
OVERRIDES = (
    "training.lr=1e-3", "runs.0.loss.beta=2", "runs.9.lr=1", "runs.x=1", "a=b", "=", "training=", "training.steps=[",
    "training.betas=[2, -3]", "runs.-1.lr=3", "name=*a", "name=&a [*a]", "student.model=~nouser/x", "..=3",
    "training..lr=3", "runs=", "training.seed=" + "9" * 30, "training.seed=nan", "store=!!binary x",
    "rollouts.read.0.path=[]", "caveats=5e", "training.lr=inf", "runs.0=1", "runs.0.loss=all",
    "training.seed=" + "9" * 6000, "training.1=3", "training.lora.r.x=1",
)  # fmt: skip


def study(rng: random.Random, folder: Path) -> object:
    """A study file with something odd in it, and odd overrides."""
    from raygeo.pipeline.config import load_study, parse_study, study_yaml
    from raygeo.pipeline.written import read_yaml

    raw = changed(rng, rng.choice(STUDIES), rng.choice((1, 1, 2, 4)))
    try:
        text = yaml.safe_dump(raw, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        text = json.dumps(raw)
    if rng.random() < 0.3:
        text += rng.choice(SNIPPETS)
    content = text.encode(errors="surrogatepass")
    if rng.random() < 0.2:
        content = garbled(rng, content)
    file = folder / "study.yaml"
    file.write_bytes(content)
    overrides = [rng.choice(OVERRIDES)] if rng.random() < 0.25 else []
    loaded = load_study(file, overrides)
    loaded.specs()
    if parse_study(read_yaml(study_yaml(loaded))) != loaded:
        raise Accepted("a study that its own study.yaml does not give back")
    return None


NONSENSE: tuple[tuple[str, tuple[Json, ...]], ...] = (
    ("training.betas", ([2, -3], [1.0, 0.9], [0.9, 1.5], [-0.1, 0.9])),
    ("training.seed", (1 << 64, 10**30, -1, 1 << 63)), ("training.init_seed", (1 << 64, 10**30)),
    ("rollouts.heldout_seed", (1 << 64, 10**30)), ("rollouts.sample.prompts_seed", (1 << 64,)),
    ("rollouts.sample.prompts", (0, -5, 10**12, 10**30)), ("rollouts.sample.decoding.samples", (0, 10**9, 10**30)),
    ("rollouts.sample.decoding.max_new_tokens", (0, 10**13)),
    ("training.lora.target_modules", ([], [""], ["  "], ["q\nproj"])), ("training.lora.r", (0, 10**9, 10**30)),
    ("training.lora.lora_alpha", (0, -1, "x")), ("training.steps", (0, 10**15, 10**30)),
    ("training.epochs", (0, -1, 1e30)), ("training.batch_size", (0, 10**13)), ("training.workers", (0, 10**9)),
    ("training.cpus", (0, 1e30)), ("training.lr", (0, -1, 1e30, "nan", ".inf")), ("training.adam_epsilon", (0, -1)),
    ("training.weight_decay", (-1, 1e300)), ("training.snapshots", (10**13,)),
    ("training.lr", (list(range(1, 2 * 10**5)),)), ("training.seed", (list(range(10**6)),)),
    ("evaluation.benchmarks.0.problems", (0, -1, 10**12)),
    ("evaluation.benchmarks.0.name", ("", "a\x07b", "a\nb", "x" * 5000)),
    ("runs.1.name", ("", "a\x00b", "a\nb", "../../x", "x" * 5000, "\x1b[31m")),
    ("name", ("a\n", "..", "-", "a/b", "x" * 5000, "")), ("store", ("a\x00b", "~nouser/x", "")),
    ("student.model", ("", "~nouser/x", "a\x00b", "a/b/c\x00")),
    ("student.word_problems.architecture.layers", (10**9,)), ("student.word_problems.architecture.hidden", (10**9,)),
    ("actors.cpus", (0, 1e30, -1)), ("probes.sequences", (0, 10**30)),
    ("caveats", (["\x1b]0;x\x07"], ["x" * (1 << 20)])),
)  # fmt: skip
GRID = {
    "lr": [1e-4 + 1e-6 * i for i in range(100)],
    "seed": list(range(100)),
    "weight_decay": [0.01 * i for i in range(100)],
}


def with_value(path: str, value: Json) -> Json:
    """The first of the studies with a value in the place ``a.b.0.c``."""
    raw = json.loads(json.dumps(STUDIES[0]))
    node: Any = raw
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[int(last) if isinstance(node, list) else last] = value
    return raw


def nonsense(rng: random.Random, folder: Path) -> object:
    """A study with a value that cannot work, which must be refused."""
    from raygeo.pipeline.config import parse_study

    raw = json.loads(json.dumps(STUDIES[0]))
    path, values = rng.choice(NONSENSE)
    value = rng.choice(values)
    if rng.random() < 0.05:
        raw["training"] |= GRID
        path, value = "training", "a grid of a million"
    elif rng.random() < 0.05:
        raw["sweep"] = {"search": "random", "samples": rng.choice((10**9, 10**30))}
        path, value = "sweep.samples", raw["sweep"]["samples"]
    else:
        raw = with_value(path, value)
    parse_study(raw)
    raise Accepted(f"{path}: {str(value)[:60]}")


# -- rollouts ---------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5.\n#### 5"}]
ROWS: dict[str, list[Json]] = {
    "flat": [
        {
            "prompt": f"What is {i} + 3?",
            "completion": f"It is {i + 3}.\n#### {i + 3}",
            "gold": str(i + 3),
            "correct": i % 2 == 0,
            "reward": 1.0,
            "truncated": False,
            "sample": i,
            "prompt_id": f"p{i}",
            "source": "t",
            "logprobs": [-0.5, -0.25],
        }
        for i in range(4)
    ],
    "messages": [{"messages": MESSAGES, "correct": True}, {"conversations": MESSAGES, "reward": 0.5}],
    "preference": [
        {"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "6"},
        {"chosen": MESSAGES, "rejected": MESSAGES[:1] * 2},
        {"chosen": "User: hi\nAssistant: 5", "rejected": "User: hi\nAssistant: 6"},
    ],
    "unpaired": [{"prompt": "What is 2 + 3?", "completion": "5", "label": True}],
    "lists": [
        {
            "problem": "What is 2 + 3?",
            "generations": ["5", "6"],
            "correctness_math_verify": [True, False],
            "finish_reasons": ["stop", "length"],
            "answer": "5",
        },
        {"question": "q", "r1_solution_1": "a", "r1_solution_2": "b", "final_answer": "5"},
    ],
    "steps": [
        {
            "question": {"problem": "2 + 3?", "ground_truth_answer": "5", "pre_generated_steps": ["a", "b"]},
            "label": {
                "steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}],
                "finish_reason": "solution",
            },
        },
    ],
    "gsm8k": [{"question": "What is 2 + 3?", "answer": "It is 5.\n#### 5"}],
    "solutions": [{"question": "2 + 3?", "ground_truth": "A: 5", "6B": {"solution": "x\nA: 5", "is_correct": True}}],
    "problems": [
        {"problem": "2 + 3?", "answer": "5", "unique_id": "a"},
        {"question": "2?", "final_answer": 5, "id": 3},
    ],
}


def _fields(rng: random.Random) -> Json:
    fields = {
        rng.choice(
            ("prompt", "completion", "gold", "reward", "steps", "messages", "label", "system", "input", "sample")
        ): rng.choice(
            (
                "prompt",
                "completion",
                "a.b",
                "label.steps",
                "messages.0.content",
                "steps",
                "",
                ".",
                "0",
                "question.problem",
                "generations",
                ["r1_solution_1", "r1_solution_2"],
                [],
            )
        )
        for _ in range(rng.randrange(3))
    }
    return fields


def rollouts(rng: random.Random, folder: Path) -> object:
    """Files of rollouts of every shape and format, with something odd in them."""
    from raygeo.data.incoming import record_parts
    from raygeo.data.readers import read_prompts
    from raygeo.data.readers.base import PromptReader
    from raygeo.pipeline.config import parse_settings

    shape = rng.choice(list(ROWS))
    rows = ROWS[shape] * rng.choice((1, 1, 3))
    if rng.random() < 0.85:
        rows = [changed(rng, row, rng.randrange(4)) for row in rows]
    own = shape in ("gsm8k", "solutions", "problems")
    form = rng.choice(("jsonl", "jsonl", "csv", "parquet", "joined", "datasets") if not own else ("jsonl",))
    if form == "datasets" and rng.random() < 0.9:
        form = "jsonl"
    file = folder / f"rows.{'parquet' if form == 'parquet' else 'csv' if form == 'csv' else 'jsonl'}"
    if form == "csv":
        _write_csv(file, rows)
    elif form == "parquet":
        rows = _write_parquet(file, rows)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows))
    if rng.random() < 0.25:
        file.write_bytes(garbled(rng, file.read_bytes()))
    how: Json = {"type": shape if own else form, "path": str(file)}
    if not own:
        how |= {"fields": _fields(rng), "shape": rng.choice(("auto", "auto", shape, "flat", "lists"))}
        if rng.random() < 0.2:
            how |= {"threshold": rng.choice((0, 0.5, -1e300)), "step_rule": rng.choice(("last", "all"))}
    if form == "joined":
        side = {"type": "jsonl", "path": str(file)}
        how = {**how, "left": side, "right": side, "on": rng.choice(("prompt", "prompt_id", "a.b", "", "label.steps"))}
        del how["path"]
    if form == "datasets":
        how = {**how, "name": str(folder)}
        del how["path"]
    if rng.random() < 0.1:
        how = changed(rng, how)
    if not isinstance(how, dict):
        return None
    reader = parse_settings(_reader_settings(), {"reader": how}, "reader").reader
    reader.fingerprint()
    for part in record_parts(reader.rollouts(), 64):
        part.validate()
    reader.described()
    reader.resolved().made_of()
    if isinstance(reader, PromptReader):
        read_prompts(reader, max_set_aside=rng.choice((0.0, 1.0)))
    return None


@cache
def _reader_settings() -> Any:
    from raygeo.data.readers import AnyReader
    from raygeo.settings import Settings

    class Reading(Settings):
        """A reader by itself."""

        reader: AnyReader

    return Reading


def _write_csv(file: Path, rows: list[Json]) -> None:
    rows = [row for row in rows if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="", errors="surrogatepass") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        for row in rows:
            writer.writerow([json.dumps(v) if isinstance(v, list | dict) else v for v in (row.get(n) for n in names)])


def _write_parquet(file: Path, rows: list[Json]) -> list[Json]:
    rows = [row for row in rows if isinstance(row, dict)]
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            columns[name] = pa.array([json.dumps(value) for value in values])
    try:
        pq.write_table(pa.table(columns), file)
    except (pa.ArrowException, UnicodeError):
        pq.write_table(pa.table({"prompt": pa.array(["x"])}), file)
    return rows


def grading(rng: random.Random, folder: Path) -> object:
    """Odd answers and gold answers, judged by numbers; and what is read out of them before mathematics is."""
    from raygeo.data.grading import gold_kind, grade_exact, last_boxed
    from raygeo.data.math_grading import final_answer, shown_answer
    from raygeo.data.validation import plain_gold

    pieces = (
        *TEXTS, "\\boxed{5}", "\\boxed{\\frac{1}{2}}", "the answer is ", "#### ", "A: ", "**", "$", "{", "}", "1,000",
        "3/0", "1/2", ".", "-", " 5 ", "\n",
    )  # fmt: skip
    completion, gold = ("".join(rng.choice(pieces) for _ in range(rng.randrange(1, 40))) for _ in range(2))
    completion *= rng.choice((1, 1, 1, 60))
    long = rng.choice((" ", "$", "\\", "{", "\\boxed ", "\\boxed 5 ", "**a", "A:", "1,", "_", "aa, ", "\n", "#"))
    completion += (
        rng.choice(("", "", "\\boxed 5", "#### ")) + long * rng.choice((0, 0, 3, 20_000)) + rng.choice(("", "x"))
    )
    last_boxed(completion)
    final_answer(completion)
    shown_answer(completion)
    gold_kind(gold)
    plain_gold(gold)
    grade_exact(completion, gold)
    return None


# -- models, adapters and deltas --------------------------------------------------------------------------------------


@cache
def _base() -> Path:
    """A student of one layer and its tokenizer."""
    from raygeo.toy.architecture import Architecture, build_model
    from raygeo.toy.word_problems import word_tokenizer

    folder = Path(_kept()) / "base"
    tokenizer = word_tokenizer()
    shape = Architecture(hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, intermediate=16, context=64)
    build_model(shape, tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _adapter() -> Path:
    """An adapter of the student, as PEFT writes it."""
    folder = Path(_kept()) / "adapter"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for module, (out, into) in {"self_attn.q_proj": (16, 16), "mlp.up_proj": (16, 16)}.items():
        stem = f"base_model.model.model.layers.0.{module}"
        factors[f"{stem}.lora_A.weight"] = torch.randn(2, into, generator=generator)
        factors[f"{stem}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": str(_base()),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "bias": "none",
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@cache
def _kept() -> str:
    return tempfile.mkdtemp(prefix="raygeo-fuzz-", dir=_WHERE or None)


_WHERE = ""
DTYPES = (
    torch.int8, torch.int32, torch.bool, torch.complex64, torch.float64, torch.bfloat16, torch.float16, torch.uint8,
    torch.float8_e4m3fn,
)  # fmt: skip


def _odd_tensors(rng: random.Random, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of which one is of another kind, shape or name, missing, left over, or not finite."""
    tensors = dict(tensors)
    for _ in range(rng.choice((1, 1, 2))):
        if not tensors:
            break
        name = rng.choice(sorted(tensors))
        value = tensors[name]
        how = rng.randrange(9)
        if how == 0:
            tensors[name] = value.to(rng.choice(DTYPES))
        elif how == 1:
            del tensors[name]
        elif how == 2:
            tensors[
                rng.choice((f"{name}.more", "x", "", "../x", name.replace(".0.", ".7."), name.upper(), "a\x00b"))
            ] = value.clone()
        elif how == 3:
            tensors[name] = value.new_zeros(
                rng.choice(((0,), (), (1, 1), (3, 2), (*value.shape, 1), (0, *value.shape[1:])))
            )
        elif how == 4:
            changed_value = value.clone()
            odd_number = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38))
            if value.is_floating_point():
                changed_value.view(-1)[:1] = odd_number
            tensors[name] = changed_value
        elif how == 5:
            tensors[name] = value.t().contiguous() if value.ndim == 2 else value
        elif how == 6:
            tensors = (
                {key: entry.to(rng.choice(DTYPES)) for key, entry in tensors.items()} if rng.random() < 0.3 else tensors
            )
        elif how == 7:
            tensors[
                rng.choice((f"model.layers.{rng.choice((1, 9, 10**9))}.x", "lm_head.weight", f"{name}.lora_A.weight"))
            ] = value.clone()
        else:
            tensors[name] = torch.zeros_like(value)
    return tensors


def _odd_header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header says something odd."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = rng.choice([key for key in header if key != "__metadata__"] or ["x"])
    how = rng.randrange(6)
    if how == 0:
        return rng.choice((1 << 62, 10**8, 0, 1, size - 1, size + 7)).to_bytes(8, "little") + content[8:]
    if how == 1:
        header[name] = {
            **header.get(name, {}),
            "shape": rng.choice(([1 << 62], [1 << 32, 1 << 32], [-1], [0], [], ["x"], [10**30])),
        }
    elif how == 2:
        header[name] = {
            **header.get(name, {}),
            "data_offsets": rng.choice(([0, 1 << 62], [5, 0], [0, 0], [-1, 3], [0], "x")),
        }
    elif how == 3:
        header[name] = {**header.get(name, {}), "dtype": rng.choice(("F4", "", "C64", "I64", "BOOL", 3))}
    elif how == 4:
        header = changed(rng, header)
    else:
        return garbled(rng, content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


CONFIG_VALUES: tuple[Json, ...] = (
    "owner/kernel", "kernels-community/x", 10**6, 10**9, 10**18, -1, 0, 1.5, "x", None, [], {}, True, ["a"], {"a": 1},
    1 << 70, "sdpa", "flash_attention_2", "../../x.safetensors", "gptq", float("inf"),
)  # fmt: skip
CONFIG_KEYS = (
    "_attn_implementation", "attn_implementation", "_experts_implementation", "auto_map", "quantization_config",
    "model_type", "architectures", "transformers_weights", "torch_dtype", "dtype", "vocab_size", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "rope_parameters", "rope_scaling", "tie_word_embeddings", "layer_types",
    "sliding_window", "hidden_act", "eos_token_id", "pad_token_id", "is_encoder_decoder", "text_config",
    "attention_dropout", "rms_norm_eps", "initializer_range", "use_cache", "id2label", "num_labels",
    "per_layer_config", "base_model_tp_plan", "_name_or_path", "transformers_version", "return_dict",
)  # fmt: skip
MODEL_TYPES = (
    "llama", "gpt2", "mixtral", "t5", "bert", "mamba", "gemma3", "qwen3_moe", "gpt_neox", "falcon", "no-such", "phi3",
)  # fmt: skip


def _odd_json(rng: random.Random, file: Path, keys: tuple[str, ...] = (), values: tuple[Json, ...] = ()) -> None:
    content = file.read_bytes()
    if rng.random() < 0.15:
        file.write_bytes(garbled(rng, content))
        return
    found = json.loads(content)
    if keys and rng.random() < 0.7:
        for _ in range(rng.choice((1, 1, 2))):
            found[rng.choice(keys)] = rng.choice(values) if rng.random() < 0.8 else odd(rng)
    else:
        found = changed(rng, found, rng.choice((1, 1, 3)))
    file.write_text(json.dumps(found))


def _odd_file(rng: random.Random, folder: Path, name: str) -> None:
    """Something in the place of a file that is not one, or not in this folder."""
    file = folder / name
    file.unlink(missing_ok=True)
    how = rng.randrange(6)
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/random", "/etc/passwd", "/proc/self/mem", "nowhere", name)))
    elif how == 3:
        file.write_bytes(b"")
    elif how == 4:
        file.write_bytes(bytes(rng.randrange(256) for _ in range(200)))


def model(rng: random.Random, folder: Path) -> object:
    """A model's folder with something odd in it: weights, header, index, configuration, tokenizer, special files."""
    from raygeo.models.checkpoint import Checkpoint
    from raygeo.models.delta import check_finite, open_delta
    from raygeo.models.loading import load_tokenizer, read_config
    from raygeo.models.soundness import check_student
    from raygeo.pipeline.student import hash_folder

    folder = folder / "model"
    shutil.copytree(_base(), folder)
    how = rng.randrange(10)
    weights = folder / "model.safetensors"
    if how < 2:
        save_file(_odd_tensors(rng, load_file(weights)), weights)
    elif how == 2:
        weights.write_bytes(_odd_header(rng, weights.read_bytes()))
    elif how == 3:
        names = list(load_file(weights))
        shard = rng.choice(
            (
                "w.bin",
                "../model.safetensors",
                "/etc/passwd",
                "sub/w.safetensors",
                "w.safetensors",
                "",
                3,
                None,
                "a\x00.safetensors",
            )
        )
        weights.rename(folder / "w.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "w.safetensors") | {rng.choice(names): shard}}
        if rng.random() < 0.4:
            index = changed(rng, index, 2)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how < 6:
        _odd_json(rng, folder / "config.json", CONFIG_KEYS, (*CONFIG_VALUES, *MODEL_TYPES))
    elif how == 6:
        _odd_json(rng, folder / rng.choice(("tokenizer.json", "tokenizer_config.json")))
    elif how == 7:
        file = folder / "generation_config.json"
        file.write_text(json.dumps({"eos_token_id": odd(rng)} if rng.random() < 0.7 else odd(rng)))
    elif how == 8:
        _odd_file(
            rng,
            folder,
            rng.choice(
                (
                    "config.json",
                    "model.safetensors",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "generation_config.json",
                )
            ),
        )
    else:
        given = {
            "places": {"model.embed_tokens.weight": ["../base/model.safetensors", "x"]},
            "tied": {},
            "embedding": None,
        }
        (folder / "raygeo_parameters.json").write_text(
            json.dumps(changed(rng, given, 2) if rng.random() < 0.8 else odd(rng))
        )
        found = Checkpoint(folder)
        for name in found.names():
            found.tensor(name)
    which = rng.randrange(4)
    if which == 0:
        read_config(folder)
        load_tokenizer(folder)
        hash_folder(folder)
    elif which == 1:
        hash_folder(folder)
        check_finite(open_delta(folder, _base()))
    else:
        hash_folder(folder)
        check_student(folder)
    return None


PATTERNS = (
    "(a+)+$", "(.*)*x", "[", "(?P<x", "q_proj", "^model.layers.0.self_attn.q_proj", ".*" * 30, "(q|q)*proj", "\\d+",
    "", "model\\.layers\\.[0-9]+\\.mlp\\.up_proj", "(((((.*)*)*)*)*)*y", "q_proj|up_proj", "{", "*",
)  # fmt: skip


def adapter(rng: random.Random, folder: Path) -> object:
    """An adapter, or a full delta, with something odd in it."""
    from raygeo.models.adapters import save_adapter
    from raygeo.models.delta import check_delta, check_finite, open_delta
    from raygeo.pipeline.student import hash_folder

    folder = folder / "adapter"
    shutil.copytree(_adapter(), folder)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    how = rng.randrange(8)
    if how == 0:
        save_file(_odd_tensors(rng, load_file(weights)), weights)
    elif how == 1:
        weights.write_bytes(_odd_header(rng, weights.read_bytes()))
    elif how < 4:
        _odd_json(
            rng,
            config,
            (
                "r",
                "lora_alpha",
                "rank_pattern",
                "alpha_pattern",
                "peft_type",
                "use_rslora",
                "fan_in_fan_out",
                "init_lora_weights",
                "modules_to_save",
                "use_dora",
                "layer_replication",
                "base_model_name_or_path",
                "target_modules",
                "lora_bias",
            ),
            CONFIG_VALUES,
        )
    elif how == 4:
        found = json.loads(config.read_text())
        found[rng.choice(("rank_pattern", "alpha_pattern"))] = {
            rng.choice(PATTERNS): rng.choice((2, 4, "x", 0, None, 10**30))
        }
        config.write_text(json.dumps(found))
    elif how == 5:
        _odd_file(rng, folder, rng.choice(("adapter_config.json", "adapter_model.safetensors")))
    else:
        weights.unlink()
        save_file(_odd_tensors(rng, load_file(_base() / "model.safetensors")), folder / "delta.safetensors")
        if how == 7:
            file = folder / "delta.safetensors"
            file.write_bytes(_odd_header(rng, file.read_bytes()))
    if rng.random() < 0.5:
        hash_folder(folder)
    delta = open_delta(folder)
    check_finite(delta)
    for name in delta:
        delta[name].dense()
    if delta.low_rank:
        save_adapter(folder.parent / "sum", [(0.5, delta), (0.5, delta)])
    if rng.random() < 0.3:
        check_delta(folder)
    return None


# -- stores and paths -------------------------------------------------------------------------------------------------


@cache
def _store() -> Path:
    """A store with the tables of a small study, a student and a run."""
    from dataclasses import asdict

    from raygeo.models.parameters import index_parameters, save_index
    from raygeo.pipeline.config import parse_study, study_yaml
    from raygeo.pipeline.report import about_study
    from raygeo.pipeline.standing import ABOUT
    from raygeo.records import RunRecord
    from raygeo.store import Store
    from raygeo.tables import to_arrow

    root = Path(_kept()) / "store"
    store = Store(root)
    study = parse_study(STUDIES[0])
    store.write_bytes("study.yaml", study_yaml(study).encode())
    store.write_bytes(ABOUT, json.dumps(asdict(about_study(study, ("start", "train")))).encode())
    copy = Path(_kept()) / "copy"
    shutil.copytree(_base(), copy)
    save_index(index_parameters(copy, copy), copy)
    store.save_folder("students", "s1", copy)
    copy = Path(_kept()) / "copy-adapter"
    shutil.copytree(_adapter(), copy)
    store.save_folder("deltas", "k1", copy)
    records = [
        RunRecord(
            name,
            key,
            "finished",
            {"type": "sft"},
            {"lr": 1e-3, "seed": 0, "init_seed": 0},
            steps=2,
            examples=4,
            tokens=9,
            seconds=1.0,
            delta=store.path("deltas", key),
            student="s1",
        )
        for name, key in (("sft-lr0.0001-s0", "k1"), ("d", "k2"))
    ]
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records]))
    rows: dict[str, list[Json]] = {
        "training_curves": [{"run": "d", "step": i, "metric": "nll", "value": 1.0 / (i + 1)} for i in range(3)],
        "accuracy": [
            {"run": "d", "benchmark": "heldout", "n": 8, "correct": 4, "accuracy": 0.5, "low": 0.2, "high": 0.8}
        ],
        "counts": [
            {"stage": "rollouts", "name": "rows", "value": 8},
            {"stage": "rollouts", "name": "graded by exact: x", "value": 8},
        ],
        "missing": [{"stage": "geometry", "part": "cka", "reason": "it failed"}],
    }
    for name, found in rows.items():
        store.publish_rows(name, to_arrow(name, found))
        store.write_unit("0123456789abcdef-r1", {name: found})
    return root


def _odd_table(rng: random.Random, file: Path) -> None:
    how = rng.randrange(5)
    if how == 0:
        file.write_bytes(garbled(rng, file.read_bytes()))
        return
    table = pq.read_table(file)
    rows = table.to_pylist()
    if how == 1:
        table = table.drop_columns([rng.choice(table.column_names)])
    elif how == 2:
        name = rng.choice(table.column_names)
        column: Any = rng.choice(
            (
                pa.array([b"\xff"] * len(rows)),
                pa.array([[1]] * len(rows)),
                pa.array([Decimal("1.5")] * len(rows)),
                pa.array([date(2020, 1, 1)] * len(rows)),
                pa.array(["x"] * len(rows)),
                pa.nulls(len(rows)),
                pa.array([True] * len(rows)),
            )
        )
        table = table.set_column(table.column_names.index(name), name, column)
    elif how == 3 and rows:
        row = rng.randrange(len(rows))
        name = rng.choice(table.column_names)
        value = rng.choice(
            ("../../../etc", "a\x00b", "", "base", "/etc", "<script>", "d", "x" * 5000, "null", "[]", "{", "\x1b[3m")
        )
        try:
            kind = table.schema.field(name).type
            found = (
                pa.array([value if i == row else r[name] for i, r in enumerate(rows)], kind)
                if pa.types.is_large_string(kind) or pa.types.is_string(kind)
                else pa.array(
                    [rng.choice((None, -1, 1 << 62)) if i == row else r[name] for i, r in enumerate(rows)], kind
                )
            )
            table = table.set_column(table.column_names.index(name), name, found)
        except (pa.ArrowException, OverflowError, TypeError):
            pass
    else:
        metadata = {b"raygeo.revisions": rng.choice((b"x", b"[]", b'{"a": "b"}', b"\xff", b"3"))}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, file)


def store(rng: random.Random, folder: Path) -> object:
    """A store with a broken table, an odd report, or odd keys: its page, its revisions, a run taken out of it."""
    from raygeo.pipeline.export import export_run
    from raygeo.pipeline.published import finished_run, published_tables
    from raygeo.pipeline.revisions import outdated_tables
    from raygeo.pipeline.standing import known_about, made_page
    from raygeo.report.missing import Failures
    from raygeo.store import Store

    root = folder / "store"
    shutil.copytree(_store(), root)
    tables = sorted((root / "tables").glob("*.parquet"))
    how = rng.randrange(6)
    if how < 3:
        _odd_table(rng, rng.choice((*tables, root / "tables" / "runs.parquet")))
    elif how == 3:
        _odd_json(rng, root / "report.json")
    elif how == 4:
        text = (root / "study.yaml").read_bytes()
        (root / "study.yaml").write_bytes(garbled(rng, text) if rng.random() < 0.7 else rng.choice(SNIPPETS).encode())
        if rng.random() < 0.7:
            (root / "report.json").unlink()
    else:
        unit = rng.choice(sorted((root / "units").rglob("*.parquet")))
        _odd_table(rng, unit)
        if rng.random() < 0.5:
            unit.rename(unit.with_name(rng.choice(("x.batch.parquet", "a.parquet", "-r.parquet", "x-r1.2.x.parquet"))))
    opened = Store(root, create=False)
    made_page(opened)
    known_about(opened)
    failures = Failures()
    published_tables(opened, failures)
    for said in failures.reasons.values():
        if not isinstance(said, RaygeoError):
            raise said
    outdated_tables(opened)
    opened.unversioned()
    for name in opened.names():
        opened.units(name)
    run = rng.choice(("sft-lr0.0001-s0", "d", "base", "../x", "a\x00b"))
    if rng.random() < 0.3:
        export_run(opened, run, folder / "out", merged=rng.random() < 0.5)
    else:
        finished_run(opened, run, f"run {run!r}")
    return None


def page(rng: random.Random, folder: Path) -> object:
    """As ``store``, and the whole page."""
    from raygeo.pipeline.report import rewrite_report
    from raygeo.store import Store

    root = folder / "store"
    shutil.copytree(_store(), root)
    _odd_table(rng, rng.choice(sorted((root / "tables").glob("*.parquet"))))
    if rng.random() < 0.5:
        _odd_json(rng, root / "report.json")
    rewrite_report(Store(root, create=False))
    return None


PATHS = (
    "a?b", "a%20b", "a b", "a'b", 'a"b', "~nouser/x", "~", "a\x00b", "", ".", "..", "a#b", "a&b=c", "é", "a\nb",
    "a:b", "::", "x://y", "file://a", "file:///tmp/%00", "s3://", "gs://?", "hdfs:", "file:a", "a" * 300,
    "/dev/null/x", "/proc/self/mem", "a;b", "$HOME", "`x`", "a*b", "[a]", "{a}", "\\\\a\\b", "\udcff", "a/b/c/d",
    "./a", "../a", "http://[::1", "http://a:b@c/d", "s3://k:s@b/x?endpoint_override=%zz", "memory://x", "abfs://x",
    "file://localhost/a", "FILE:///a", "a|b", "<a>", "-", "--x", "a\tb", "s3://a:b", "//a", "///", "\x7f",
)  # fmt: skip


def path(rng: random.Random, folder: Path) -> object:
    """Odd paths and URIs wherever one may be named."""
    from raygeo.data.readers.files import hash_paths, locate
    from raygeo.models.delta import open_delta
    from raygeo.models.hub import find_model
    from raygeo.pipeline.comparison import plan_comparison
    from raygeo.pipeline.config import load_study
    from raygeo.store import Store

    name = rng.choice(PATHS)
    if rng.random() < 0.3:
        name += rng.choice(PATHS)
    before = Path.cwd()
    os.chdir(folder)
    try:
        if rng.random() < 0.3:
            with suppress(OSError, ValueError):
                (folder / name).mkdir()
        which = rng.randrange(8)
        if which == 0:
            opened = Store(_local(name), create=rng.random() < 0.5)
            opened.write_bytes("x", b"x")
            opened.table("runs")
        elif which == 1:
            load_study(name)
        elif which == 2:
            find_model(_no_hub(name))
        elif which == 3:
            locate(_local(name))
        elif which == 4:
            hash_paths(_local(name))
        elif which == 5:
            open_delta(_no_hub(name))
        elif which == 6:
            plan_comparison(name, [name, rng.choice(PATHS)])
        else:
            opened = Store(folder / "s")
            key = rng.choice(PATHS)
            rng.choice((opened.has_folder, opened.folder, opened.stored))("deltas", key)
    finally:
        os.chdir(before)
    return None


def _local(name: str) -> str:
    """The name, unless it would reach out to a network."""
    return name if not name.startswith(("s3://k", "gs:", "hdfs:", "abfs:", "s3://a")) else name.replace("://", ":/")


def _no_hub(name: str) -> str:
    """The name, unless it might be that of a model on the hub."""
    return name if name.count("/") != 1 or name.startswith(("/", ".", "~")) else f"./{name}"


KINDS: dict[str, tuple[Case, int]] = {
    "study": (study, 30),
    "nonsense": (nonsense, 5),
    "rollouts": (rollouts, 25),
    "grading": (grading, 5),
    "model": (model, 12),
    "adapter": (adapter, 10),
    "store": (store, 8),
    "page": (page, 1),
    "path": (path, 4),
}
"""The kinds of cases, and how many of a hundred are of each."""


# -- trying -----------------------------------------------------------------------------------------------------------


def attempt(kind: str, seed: int, outcome: Outcome, patience: int = _PATIENCE) -> None:
    """Try one case, and note what became of it."""
    case, _ = KINDS[kind]
    rng = random.Random(f"{kind}:{seed}")
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=_kept()))
    most, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    found = ""
    refused: str | None = None
    try:
        with _limited(patience):
            case(rng, folder)
    except RaygeoError as error:
        refused = type(error).__name__
        if "Traceback" in str(error):
            found = "a traceback in a message"
    except Slow:
        found = "did not end"
    except Accepted as taken:
        found = f"accepted: {taken}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # libraries in Rust panic past Exception
        own = [f for f in traceback.extract_tb(error.__traceback__) if "/raygeo/" in f.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        said = (str(error).strip() or "no message").splitlines()[0]
        found = f"{type(error).__name__} in {where}: {said[:150]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024
    if not found and seconds > CPU_SECONDS:
        found = f"slow: {seconds:.1f} s"
    if not found and grown > MEMORY:
        found = f"large: {grown >> 20} MiB"
    if found:
        outcome.findings.append((seed, found))
    elif refused is not None:
        outcome.refused[refused] += 1
    else:
        outcome.used += 1


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    """Stop what does not end."""

    def stop(*_: object) -> None:
        raise Slow

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(20 * seconds)  # waits without any work, on a busy machine
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _quiet() -> None:
    """No bars of libraries."""
    import datasets
    from transformers.utils import logging as said

    said.disable_progress_bar()
    datasets.disable_progress_bars()


def warmed(kind: str) -> None:
    """Import and make what all cases of a kind share, so that the first does not pay for it."""
    for seed in (-1, -2, -3):
        attempt(kind, seed, Outcome(), 600)


def run(cases: int, first: int = 0, kinds: tuple[str, ...] = tuple(KINDS)) -> dict[str, Outcome]:
    """Try so many cases, those of each kind numbered from ``first``."""
    outcomes = {}
    whole = sum(KINDS[kind][1] for kind in kinds)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            warmed(kind)
            outcomes[kind] = Outcome()
            for seed in range(first, first + max(1, round(cases * KINDS[kind][1] / whole))):
                attempt(kind, seed, outcomes[kind])
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="the first case of each kind")
    parser.add_argument("--kind", choices=tuple(KINDS), help="only this one")
    parser.add_argument("--memory", type=int, default=24, help="GiB of address space that the process may take")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (given.memory << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    torch.set_num_threads(1)
    import logging

    logging.disable(logging.ERROR)
    _quiet()
    try:
        outcomes = run(given.cases, given.seed, (given.kind,) if given.kind else tuple(KINDS))
    finally:
        shutil.rmtree(_kept(), ignore_errors=True)
    found = 0
    for kind, outcome in outcomes.items():
        refused = ", ".join(f"{name} {number}" for name, number in outcome.refused.most_common())
        counts = f"{outcome.cases:6} cases, {outcome.used:6} used, {len(outcome.findings):5} findings"
        print(f"{kind:10} {counts}; refused: {refused}")
        grouped: dict[str, list[int]] = {}
        for seed, said in outcome.findings:
            grouped.setdefault(said, []).append(seed)
        for said, seeds in sorted(grouped.items(), key=lambda item: -len(item[1])):
            print(f"    {len(seeds):5} x {said} (seed {seeds[0]})")
        found += len(outcome.findings)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
