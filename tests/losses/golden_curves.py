"""Short training runs of every loss, in fp64 on the CPU, and the files ``golden/<type>.json`` that keep them.

``python tests/losses/golden_curves.py TYPE [TYPE ...]`` writes the files of these losses as they are now.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from loss_cases import needs_logits
from study_cases import draw_rollouts
from transformers import GPT2Config, GPT2LMHeadModel

from raygeo.data.mismatched import mismatch
from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses.base import Loss, LossInputs
from raygeo.losses.batches import apart, with_prompts
from raygeo.losses.counting import units
from raygeo.losses.registry import LOSSES, variants
from raygeo.models.batches import Batch, collate
from raygeo.models.likelihood import Likelihood, completion_states, token_logprobs, top_logprobs
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.settings import REVISION

GOLDEN = Path(__file__).parent / "golden"
STEPS, BATCH, LEARNING_RATE = 12, 4, 3e-3
TOP = 8
"""Likeliest tokens that are kept of the writer, as a teacher."""


@dataclass(frozen=True)
class Setting:
    """Rollouts of eight prompts, the student before training, and the model said to have written them."""

    table: pa.Table
    tokens: RolloutTokens
    mismatched: RolloutTokens
    base: torch.nn.Module
    writer: torch.nn.Module
    pad_id: int

    def batch(self, rows: Sequence[int], mismatched: bool = False) -> Batch:
        tokens = self.mismatched if mismatched else self.tokens
        return collate([tokens[row] for row in rows], self.pad_id)


def exact_model(vocabulary: int, seed: int) -> GPT2LMHeadModel:
    """A model that is the same on every machine: wholly in fp64, where other families take norms and softmax in fp32,
    and with weights drawn without a transcendental function.
    """
    shape = GPT2Config(
        vocab_size=vocabulary, n_positions=128, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = GPT2LMHeadModel(shape).eval().double()
    generator = np.random.default_rng(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.from_numpy(generator.uniform(-0.2, 0.2, parameter.shape))
    return model


@cache
def setting() -> Setting:
    tokenizer = word_tokenizer()
    table = draw_rollouts(8, samples=3, seed=4)
    sources = pa.array(["student" if row % 2 else "teacher" for row in range(len(table))], pa.large_string())
    table = table.set_column(table.schema.get_field_index("source"), "source", sources)
    rows = [(row["prompt"], row["completion"], True) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(PlainRenderer(tokenizer), rows)
    mismatched = mismatch(tokens, table["prompt_id"].to_pylist(), max_tokens=128)
    base, writer = (exact_model(len(tokenizer), seed) for seed in (0, 1))
    return Setting(table, tokens, mismatched, base, writer, tokenizer.pad_token_id)


@cache
@torch.no_grad()
def frozen_logprobs(model: str, rows: tuple[int, ...], mismatched: bool = False) -> torch.Tensor:
    return token_logprobs(getattr(setting(), model), setting().batch(rows, mismatched))


@cache
@torch.no_grad()
def base_states(rows: tuple[int, ...]) -> torch.Tensor:
    return completion_states(setting().base, setting().batch(rows))


def model_inputs(loss: Loss, rows: tuple[int, ...], step: int) -> dict[str, Any]:
    """What the likelihood is given besides tokens; a token is named by its place in the table and by the step."""
    given: dict[str, Any] = {"embedding_mix": loss.embedding_mix}
    if needs_logits(loss):
        offsets = setting().tokens.completion_offsets
        given["keys"] = torch.cat([torch.arange(*offsets[row : row + 2]) for row in rows]) + (step << 40)
    if "reference_logits" in loss.needs:
        head = setting().base.get_output_embeddings().weight
        given |= {"reference_states": base_states(rows), "reference_head": (head, None)}
    if "teacher" in loss.needs:
        states = completion_states(setting().writer, setting().batch(rows))
        given["teacher"] = top_logprobs(setting().writer, states, TOP)
    return given


def loss_inputs(loss: Loss, student: torch.nn.Module, rows: tuple[int, ...], weights: list[float]) -> dict[str, Any]:
    """What the loss is given besides the likelihood's outputs."""
    given: dict[str, Any] = {"weights": torch.tensor(weights, dtype=torch.float64)}
    if loss.unit == "pair":
        given["pairs"] = torch.arange(len(rows)).view(-1, 2)
    if "reference" in loss.needs:
        given["reference_logprobs"] = frozen_logprobs("base", rows)
    if "behaviour" in loss.needs:
        given["behaviour_logprobs"] = frozen_logprobs("writer", rows)
    if "mismatched" in loss.needs:
        with torch.no_grad():
            moved = token_logprobs(student, setting().batch(rows, mismatched=True))
        given["kl_baseline"] = (moved - frozen_logprobs("base", rows, mismatched=True)).sum() / len(rows)
    return given


def train(loss: Loss) -> list[float]:
    """The objective at every step of AdamW."""
    student = copy.deepcopy(setting().base)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    likelihood = Likelihood(student, loss.token_terms)
    examples = loss.select(setting().table).examples
    curve = []
    for step in range(STEPS):
        chosen = [examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)]
        rows = tuple(row for example in chosen for row in example.rows)
        batch = setting().batch(rows)
        read = with_prompts(batch) if loss.reads_prompts else batch
        outputs = likelihood(read, **model_inputs(loss, rows, step))
        given = loss_inputs(loss, student, rows, [w for example in chosen for w in example.weights])
        logprobs = outputs.pop("logprobs")
        known = apart(logprobs, batch.mask) if loss.reads_prompts else {"logprobs": logprobs}
        output = loss(LossInputs(mask=batch.mask, terms=outputs, **known, **given))
        counts = units(chosen, setting().tokens.completion_lengths)
        objective = output.total / counts[output.unit]
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        curve.append(objective.item())
    return curve


@dataclass(frozen=True)
class Golden:
    """The curves of a loss in all its variants, and the revisions of trainer and loss that they were made with."""

    revisions: list[int]
    curves: dict[str, list[float]]

    @classmethod
    def kept(cls, loss_type: str) -> "Golden":
        path = golden_file(loss_type)
        return cls(**json.loads(path.read_text())) if path.is_file() else cls([], {})

    @classmethod
    def now(cls, loss_type: str) -> "Golden":
        kind = LOSSES[loss_type]
        return cls([REVISION, kind.revision], {name: train(loss) for name, loss in variants(kind).items()})

    def write(self, loss_type: str) -> None:
        """Keep these curves, to 12 digits, one a line."""
        lines = [
            f"  {json.dumps(name)}: [{', '.join(f'{value:.12g}' for value in curve)}]"
            for name, curve in self.curves.items()
        ]
        curves = ",\n".join(lines)
        golden_file(loss_type).write_text(f'{{\n "revisions": {self.revisions},\n "curves": {{\n{curves}\n }}\n}}\n')


def golden_file(loss_type: str) -> Path:
    return GOLDEN / f"{loss_type}.json"


def moved(kept: Golden, now: Golden) -> list[str]:
    """The curves whose numbers differ though the revisions do not."""
    both = kept.curves.keys() & now.curves.keys() if kept.revisions == now.revisions else ()
    return [name for name in sorted(both) if now.curves[name] != pytest.approx(kept.curves[name], rel=1e-6, abs=1e-9)]


def difference(loss_type: str, kept: Golden, now: Golden) -> str | None:
    """How the kept curves of a loss differ from what it does now, and what to do; None if they do not."""
    anew = f"write {golden_file(loss_type).name} anew with python tests/losses/golden_curves.py {loss_type}"
    if names := moved(kept, now):
        return (
            f"{', '.join(names)} trains otherwise than before: if this is meant, raise the revision "
            f"({LOSSES[loss_type].__name__}.revision; REVISION of raygeo/training/settings.py if all losses changed) "
            f"and {anew}"
        )
    if not kept.curves:
        return f"no curves of {loss_type} are kept: {anew}"
    if kept.revisions != now.revisions:
        return f"the curves of {loss_type} are of the revisions {kept.revisions}, it has {now.revisions}: {anew}"
    if kept.curves.keys() != now.curves.keys():
        return f"curves are kept of {sorted(kept.curves)}, {loss_type} has {sorted(now.curves)}: {anew}"
    return None


def main(types: Sequence[str]) -> None:
    for loss_type in types:
        now = Golden.now(loss_type)
        if moved(Golden.kept(loss_type), now):
            raise SystemExit(difference(loss_type, Golden.kept(loss_type), now))
        now.write(loss_type)
        print(golden_file(loss_type))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep the curves of losses as they are now.")
    parser.add_argument("types", nargs="+", choices=list(LOSSES), metavar="TYPE")
    main(parser.parse_args().types)
