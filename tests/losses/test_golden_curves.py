"""Short training runs of every loss, in fp64 on the CPU, against the curves kept in ``golden/<type>.json``.

A curve that changes says that a loss, the likelihood or the selection did. Where that is meant, write the file anew:
``python tests/losses/test_golden_curves.py --write TYPE [TYPE ...]``.
"""

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa
import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from loss_cases import needs_logits
from student_cases import draw_rollouts
from transformers import GPT2Config, GPT2LMHeadModel

from raygeo.losses import LOSSES
from raygeo.losses.base import Loss, LossInputs
from raygeo.losses.counting import units
from raygeo.rollouts.mismatched import mismatch
from raygeo.rollouts.tokens import RolloutTokens
from raygeo.students.encoding import Batch, collate
from raygeo.students.likelihood import Likelihood, completion_states, token_logprobs
from raygeo.students.word_problems import word_tokenizer

GOLDEN = Path(__file__).parent / "golden"
STEPS, BATCH, LEARNING_RATE = 12, 4, 3e-3
DATA_OPTIONS = ("type", "prompts", "rows")


def variants(loss_type: str) -> dict[str, Loss]:
    """The loss as it is by default, and with every other choice of every named option that is not about its data."""
    kind = LOSSES[loss_type]
    found = {"default": kind()}
    for name, field in kind.model_fields.items():
        choices = (False, True) if field.annotation is bool else ()
        if get_origin(field.annotation) is Literal and name not in DATA_OPTIONS:
            choices = get_args(field.annotation)
        found |= {f"{name}={choice}": kind(**{name: choice}) for choice in choices if choice != field.default}
    return found


CASES = {(loss_type, variant): loss for loss_type in LOSSES for variant, loss in variants(loss_type).items()}


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
    rows = [(row["prompt"], row["completion"], True) for row in table.to_pylist()]
    tokens = RolloutTokens.encode(tokenizer, rows)
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
        given |= {"reference_states": base_states(rows), "reference_head": head}
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


def train(loss: Loss) -> dict[str, list[float]]:
    """Objective and plain token NLL at every step of AdamW."""
    student = copy.deepcopy(setting().base)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    likelihood = Likelihood(student, loss.token_terms)
    examples = loss.select(setting().table).examples
    curves: dict[str, list[float]] = {"objective": [], "nll": []}
    for step in range(STEPS):
        chosen = [examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)]
        rows = tuple(row for example in chosen for row in example.rows)
        batch = setting().batch(rows)
        outputs = likelihood(batch, **model_inputs(loss, rows, step))
        given = loss_inputs(loss, student, rows, [w for example in chosen for w in example.weights])
        output = loss(LossInputs(logprobs=outputs.pop("logprobs"), mask=batch.mask, terms=outputs, **given))
        counts = units(chosen, setting().tokens.completion_lengths)
        objective = output.total / counts[output.unit]
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        nll, unit = output.metrics["nll"]
        curves["objective"].append(objective.item())
        curves["nll"].append(nll.item() / counts[unit])
    return curves


def golden_file(loss_type: str) -> Path:
    return GOLDEN / f"{loss_type}.json"


def test_every_loss_has_a_golden_file():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(LOSSES)


@pytest.mark.parametrize(("loss_type", "variant"), CASES, ids=["-".join(case) for case in CASES])
def test_curve_is_the_one_kept(loss_type, variant):
    path = golden_file(loss_type)
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if variant not in kept:
        pytest.fail(
            f"{path} has no curve {variant!r}; if this is meant, look at the new curve and keep it with "
            f"python tests/losses/test_golden_curves.py --write {loss_type}"
        )
    found = train(CASES[loss_type, variant])
    for name, values in kept[variant].items():
        assert found[name] == pytest.approx(values, rel=1e-6, abs=1e-9), name


def write(loss_type: str) -> None:
    """Keep the curves of one loss as they are now, to 12 digits."""
    curves = {
        variant: {name: [float(f"{value:.12g}") for value in values] for name, values in train(loss).items()}
        for (kind, variant), loss in CASES.items()
        if kind == loss_type
    }
    GOLDEN.mkdir(exist_ok=True)
    golden_file(loss_type).write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keep the curves of losses as they are now.")
    parser.add_argument("--write", nargs="+", required=True, choices=list(LOSSES), metavar="TYPE")
    for requested in parser.parse_args().write:
        write(requested)
        print(golden_file(requested))
