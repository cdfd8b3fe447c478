"""A first study of rollouts and a model, written for a person to change: ``raygeo init``."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from raygeo.data.merging import validate
from raygeo.data.validation import Validated, counts
from raygeo.errors import ConfigError, DataError
from raygeo.generation.renderer import renderer_for
from raygeo.losses.registry import LOSSES
from raygeo.models.hub import find_model
from raygeo.models.loading import context_length, load_tokenizer, model_shape, read_config
from raygeo.outputs import output_file, write_output
from raygeo.pipeline.config import RolloutRules, parse_settings, parse_study
from raygeo.pipeline.preview import Asked, unfit_for, written
from raygeo.pipeline.shipped import MODELINE
from raygeo.pipeline.written import read_yaml
from raygeo.report.typeset import percent

_ASKED_FOR = ("sft", "rft", "dft", "rift", "grpo", "dpo")
"""Losses that a draft has where the rollouts allow them."""
_OTHERS_RATE = {"grpo": 1e-5, "dpo": 5e-6}
_RATE, _LARGE, _ROUND = 1e-4, 10**9, 64
_HELDOUT, _FEW = 0.2, 10


def draft_study(data: str, model: str, out: Path, *, overrides: Sequence[str] = (), rows: int = 1000) -> list[str]:
    """Write to ``out`` a study of the rollouts at ``data`` and the student ``model``; return what to say of it.

    The first ``rows`` records are read, or all for 0. A loss that cannot learn from them is left out, and so is
    accuracy where there are no gold answers; the longest row sets the longest that is learned from. Learning rates are
    common ones for adapters, and not tuned. ``overrides`` are of the reader, or of ``chat``.

    Raises:
        ConfigError: the file is there already or cannot be written, or an override is wrong.
        DataError: the rollouts cannot be read, all of them are of no use, or none is right.
        StudentError: the model cannot be found or has no usable tokenizer.
    """
    out = output_file(out)
    if out.exists():
        raise ConfigError(f"{out} is there already; name another file with --out, or delete it.")
    if data.endswith((".yaml", ".yml")):
        raise ConfigError(f"{data} is a study, or no data; give the rollouts: a file, a folder, or a hub id.")
    raw = written([data], overrides)
    asked = parse_settings(Asked, raw, "raygeo init")
    source = find_model(model)
    renderer, config = renderer_for(load_tokenizer(source), asked.chat), read_config(source)
    context = context_length(config)
    asked.reader.check()
    reader = asked.reader.resolved()
    described = " ".join(reader.described().split())
    if rows:
        reader = reader.model_copy(update={"limit": min(rows, reader.limit or rows)})
    lengths: list[tuple[int, int]] = []
    found = validate(
        list(reader.rollouts()),
        grading="auto",
        max_set_aside=1.0,
        unfit=partial(unfit_for, renderer, context, lengths),
        text=renderer.without_end,
    )
    known = {row["name"]: row["value"] for row in counts(found.rollouts, found)}
    if not known["correct"]:
        raise DataError(
            f"{data}: none of {known['rows']:,} rollouts is right, so there is nothing to learn from. `raygeo data` "
            "shows how they are read; --set fields.correct=KEY names their verdicts."
        )
    if known["prompts"] < _FEW:
        raise DataError(f"{data}: {known['prompts']} prompts are too few to hold some out; give at least {_FEW}.")
    losses, left_out = _losses(found.rollouts, wrong=known["wrong"] > 0)
    size = sum(parameter.numel() for parameter in model_shape(config).parameters())
    gpu = size >= _LARGE or torch.cuda.is_available()
    fitting = [pair for pair in lengths if context is None or sum(pair) <= context]
    asks, answers = (max(column) for column in zip(*fitting, strict=True))
    longest = _up(max(map(sum, fitting)), context)
    text = "\n".join(
        [
            *_head(data, model, raw, described, known, found, large=size >= _LARGE),
            *_set_aside(found, known["rows"]),
            *_training(found, losses, left_out, longest, gpu=gpu),
            *_measured(found.rollouts, _up(answers, None if context is None else context - asks), size, gpu=gpu),
            "",
        ]
    )
    parse_study(read_yaml(text), str(out))
    write_output(out, text)
    return [
        f"{out}: {len(losses)} losses ({', '.join(losses)}) on {data}, read as {described}",
        *(f"set aside: {number} x {reason}" for reason, number in _reasons(found)),
        *(f"left out: {said}" for said in left_out),
        f"Read it, change what is marked with `set`, and then: raygeo plan {out}",
    ]


def _losses(rollouts: pa.Table, *, wrong: bool) -> tuple[list[str], list[str]]:
    """Those of the losses that find something to learn from, and of all others why not."""
    rewards = rollouts.group_by("prompt_id").aggregate([("reward", "min"), ("reward", "max")])
    unlike = pc.any(pc.not_equal(rewards["reward_min"], rewards["reward_max"])).as_py()
    found, left_out = [], []
    for name in _ASKED_FOR:
        if not wrong and name in ("rft", "rift"):
            left_out.append(f"{name}: no rollout is wrong, so it would train what sft does")
            continue
        if not unlike and name == "grpo":
            said = "so it would learn from its bias alone, which weighs all rollouts alike, wrong ones too"
            left_out.append(f"{name}: no prompt has rollouts of different rewards, {said}")
            continue
        try:
            LOSSES[name]().select(rollouts)
        except DataError as error:
            left_out.append(f"{name}: {error}")
        else:
            found.append(name)
    return found, left_out


def _head(
    data: str, model: str, raw: dict[str, Any], described: str, known: dict[str, int], found: Validated,
    *, large: bool,
) -> Iterator[str]:  # fmt: skip
    """What is learned from and what learns."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{Path(model).name}-{Path(data).name.partition('.')[0]}")
    yield MODELINE
    yield f"# Drafted by raygeo init from {known['rows']:,} rollouts of {known['prompts']:,} prompts,"
    yield f"# {percent(known['correct'] / known['rows'])} of them right. `raygeo plan` says what it takes, and"
    yield "# `raygeo losses` and `raygeo analyses` what else there is."
    yield f"name: {name.strip('._-')[:200]}"
    yield ""
    yield "student:"
    yield f"  model: {_flow(model)}"
    if large:
        yield "  dtype: bf16   # how it is held where it is measured"
    if raw["chat"]:
        yield f"  chat: {_flow(raw['chat'])}"
    yield ""
    yield "rollouts:"
    yield f"  read: [{_flow(raw['reader'])}]   # {described}"
    if found.graded:
        yield f"  grading: {found.grading.grading}   # {' '.join(found.grading.reason.split())}"


def _set_aside(found: Validated, kept: int) -> Iterator[str]:
    """How many rows a study may set aside, where these need more than it allows unasked."""
    share = found.set_aside.num_rows / (found.set_aside.num_rows + kept)
    if share <= RolloutRules().max_set_aside:
        return
    reasons = ", ".join(f"{number} x {reason}" for reason, number in _reasons(found))
    yield f"  max_set_aside: {min(math.ceil(20 * share + 1) / 20, 1.0):g}   # set: of those that were read, {reasons}"


def _reasons(found: Validated) -> list[tuple[str, int]]:
    """The reasons why rows were set aside, most frequent first."""
    return Counter(found.set_aside["reason"].to_pylist()).most_common()


def _training(
    found: Validated, losses: Sequence[str], left_out: Sequence[str], longest: int, *, gpu: bool
) -> Iterator[str]:
    """How it learns."""
    yield f"  heldout: {_HELDOUT}   # share of the prompts that are kept for evaluation and probes"
    yield f"  max_tokens: {longest}   # the longest of the rows that were read; longer ones are set aside"
    yield ""
    yield "training:"
    yield "  epochs: 1"
    yield "  batch_size: 32"
    yield "  micro_batch_size: 4   # rows in memory at once; the result is the same but for rounding"
    yield "  gradient_checkpointing: true"
    yield f"  lr: {_RATE}   # set: a common rate for adapters, not tuned; a list trains each"
    yield "  lora: {r: 32, lora_alpha: 64, target_modules: all-linear}   # null trains all weights"
    if gpu:
        yield "  precision: bf16   # with adapters in fp32"
        yield "  gpus: 1"
    else:
        yield "  gpus: 0   # set: 1, with precision: bf16, and actors: {gpus: 1}, where there are GPUs"
    yield ""
    yield "runs:"
    for number, name in enumerate(losses):
        rate = f", lr: {_OTHERS_RATE[name]:.1e}" if name in _OTHERS_RATE else ""
        seeds = ", seed: [0, 1]" if number == 0 else ""
        remark = "   # two data orders of one loss: the noise floor" if number == 0 else ""
        yield f"  - {{loss: {{type: {name}}}{rate}{seeds}}}{remark}"
    yield from (f"  # {' '.join(said.split())}" for said in left_out)
    if any(value is not None for value in found.rollouts["logprobs"].slice(0, 100).to_pylist()):
        yield "  # - {loss: {type: off-policy-grpo}}   # these rollouts have log-probabilities, which it can use"
    yield ""


def _measured(rollouts: pa.Table, longest: int, size: int, *, gpu: bool) -> Iterator[str]:
    """What is measured of the runs."""
    yield "evaluation:"
    if rollouts["gold"].null_count == rollouts.num_rows:
        yield "  heldout: false   # the rollouts bring no gold answers"
        yield "  # set: benchmarks: [{name: gsm8k, problems: openai/gsm8k}]"
    yield f"  answers: {{max_new_tokens: {longest}}}   # the longest rollout that was read"
    if gpu:
        yield ""
        yield "actors: {gpus: 1}"
    if size < _LARGE:
        return
    yield ""
    yield f"geometry:   # of {size / 1e9:.1f} B parameters: what `raygeo plan` would otherwise find too large"
    yield "  coherence: {examples: 16, gradient_checkpointing: true}"
    yield "  curvature: {batch_size: 1, product: by_layer, max_basis: 20, vectors_on: cpu, fp64_check: false}"
    yield "  sharpness: {batch_size: 1, gradient_checkpointing: true}"


def _up(tokens: int, context: int | None) -> int:
    """So many tokens or somewhat more, as far as the context goes."""
    return min(-(-tokens // _ROUND) * _ROUND, context or tokens + _ROUND)


def _flow(value: Any) -> str:
    """Plain data as YAML on one line: JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
