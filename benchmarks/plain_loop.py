"""Training as a reader would write it down: torch alone, one example at a time, no padding, the model's own logits.

What sharded training is compared with. It shares with the trainer the losses, the initial adapter, the order of the
data and the names of tokens, and nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from raygeo.data.tokens import RolloutTokens
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses.base import Example, Loss, LossInputs
from raygeo.losses.batches import token_keys
from raygeo.models.delta import Dense, Entry, LowRank
from raygeo.models.likelihood import TokenLogits, TopLogprobs
from raygeo.models.lora import attach_lora
from raygeo.training.order import step_batches
from raygeo.training.settings import TrainingSettings


@dataclass(frozen=True)
class Row:
    """One tokenised rollout; the completion ends with end-of-text."""

    prompt: list[int]
    completion: list[int]


def read_row(tokenizer: Any, prompt: str, completion: str) -> Row:
    """Tokenise prompt and completion apart."""
    ids = tokenizer(completion, add_special_tokens=False).input_ids
    return Row(tokenizer(prompt).input_ids, [*ids, tokenizer.eos_token_id])


def completion_logits(model: Any, row: Row, mix: float = 0.0) -> Tensor:
    """Logits that predict the completion's tokens, [n, V] fp32; ``mix`` as in ``Loss.embedding_mix``."""
    ids = torch.tensor([row.prompt + row.completion])
    predicting = slice(len(row.prompt) - 1, -1)
    if mix == 0:
        return model(ids).logits[0, predicting].float()
    guessed = ids.clone()
    with torch.no_grad():
        guessed[0, len(row.prompt) :] = model(ids).logits[0, predicting].argmax(-1)
    embed = model.get_input_embeddings()
    return model(inputs_embeds=(1 - mix) * embed(ids) + mix * embed(guessed)).logits[0, predicting].float()


def completion_logprobs(logits: Tensor, row: Row) -> Tensor:
    """Log-probabilities of the completion's tokens: [n]."""
    return logits.log_softmax(-1).gather(-1, torch.tensor(row.completion)[:, None])[:, 0]


def prompt_logprobs(model: Any, row: Row) -> Tensor:
    """Log-probabilities of the prompt's tokens but the first: [n]."""
    logits = model(torch.tensor([row.prompt])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(row.prompt)[1:, None])[:, 0]


class PlainLoop:
    """One run of ``loss`` on ``rollouts`` from the model in the folder ``student``, all of it in ``dtype``.

    In bf16 there are no masters: weights and moments are bf16 as well. ``objective`` and
    ``grad_norm`` (before clipping) have a number for every step.
    """

    def __init__(
        self,
        student: str,
        rollouts: pa.Table,
        loss: Loss,
        settings: TrainingSettings,
        dtype: torch.dtype = torch.float32,
    ):
        self.rollouts, self.loss, self.settings = rollouts, loss, settings
        tokenizer = AutoTokenizer.from_pretrained(student)
        texts = list(zip(rollouts["prompt"].to_pylist(), rollouts["completion"].to_pylist(), strict=True))
        self.rows = [read_row(tokenizer, *text) for text in texts]
        self.names = RolloutTokens.encode(PlainRenderer(tokenizer), [(*text, True) for text in texts])
        self.base, self.model = (AutoModelForCausalLM.from_pretrained(student, dtype=dtype).eval() for _ in range(2))
        if settings.lora is not None:
            self.model = attach_lora(self.model, settings.lora, settings.init_seed).to(dtype)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().clone() for name, p in self.trained.items()}
        self.objective: list[float] = []
        self.grad_norm: list[float] = []

    def run(self) -> "PlainLoop":
        """Take all steps."""
        settings = self.settings
        assert settings.steps is not None
        groups = [
            {"params": [p for p in self.trained.values() if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.trained.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], betas=settings.betas, eps=settings.adam_epsilon
        )
        examples = self.loss.select(self.rollouts).examples
        order = step_batches(examples, len(self.rows), settings.batch_size, settings.steps, settings.seed)
        for step, drawn in enumerate(order):
            batch = self._chosen(examples, drawn) if self.loss.kept_share < 1 else drawn
            self.objective.append(self._backward([examples[i] for i in batch], step))
            self.grad_norm.append(float(nn.utils.clip_grad_norm_(self.trained.values(), settings.max_grad_norm)))
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * _warm_cosine(step, settings.steps, settings.warmup_ratio)
            optimizer.step()
            optimizer.zero_grad()
        return self

    @property
    def moved(self) -> float:
        """Largest change of any number that is trained."""
        return max(float((p.detach() - self.start[name]).abs().max()) for name, p in self.trained.items())

    def delta(self) -> dict[str, Entry]:
        """What training changed, as ``open_delta`` would read it."""
        lora = self.settings.lora
        if lora is None:
            return {name: Dense(p.detach().float() - self.start[name].float()) for name, p in self.trained.items()}
        factors = {name: p.detach().float() for name, p in self.trained.items()}
        modules = {name.rpartition(".lora_")[0] for name in factors}
        return {
            module.removeprefix("base_model.model.") + ".weight": LowRank(
                b=factors[f"{module}.lora_B.default.weight"],
                a=factors[f"{module}.lora_A.default.weight"],
                scale=lora.lora_alpha / lora.r,
            )
            for module in modules
        }

    @torch.no_grad()
    def _chosen(self, examples: Sequence[Example], drawn: np.ndarray) -> np.ndarray:
        """The examples of a step that its loss chooses."""
        sketches = []
        for i in drawn:
            row = self.rows[examples[i].rows[0]]
            logprobs = completion_logprobs(completion_logits(self.model, row), row)[None]
            sketches.append(self.loss.sketches(torch.tensor([row.completion]), logprobs, torch.ones_like(logprobs) > 0))
        return drawn[self.loss.choose(torch.cat(sketches), math.ceil(self.loss.kept_share * len(drawn)))]

    def _backward(self, examples: list[Example], step: int) -> float:
        """Add up the gradient of the step's loss, an example at a time, and return the loss."""
        rows = [row for example in examples for row in example.rows]
        count = {
            "token": sum(len(self.rows[row].completion) for row in rows),
            "sequence": len(rows),
            "pair": len(examples),
        }[self.loss.unit]
        baseline = self._kl_baseline(rows) if "mismatched" in self.loss.needs else None
        objective = 0.0
        for example in examples:
            total = self.loss(self._inputs(example, step, baseline)).total / count
            total.backward()
            objective += total.item()
        return objective

    def _inputs(self, example: Example, step: int, baseline: Tensor | None) -> LossInputs:
        """Everything known of the example's one or two rows; completions begin at column 0."""
        columns: dict[str, list[Tensor]] = {}
        for number in example.rows:
            for name, value in self._row(number, step).items():
                columns.setdefault(name, []).append(value)
        padded = {name: nn.utils.rnn.pad_sequence(values, batch_first=True) for name, values in columns.items()}
        known = {field.name for field in fields(LossInputs)}
        return LossInputs(
            weights=torch.tensor(example.weights),
            pairs=torch.tensor([[0, 1]]) if self.loss.unit == "pair" else None,
            kl_baseline=baseline,
            terms={name: value for name, value in padded.items() if name not in known},
            **{name: value for name, value in padded.items() if name in known},
        )

    def _row(self, number: int, step: int) -> dict[str, Tensor]:
        """What is known of each completion token of a row: [n] each."""
        row, needs = self.rows[number], self.loss.needs
        logits = completion_logits(self.model, row, self.loss.embedding_mix)
        known = {
            "logprobs": completion_logprobs(logits, row),
            "mask": torch.ones(len(row.completion), dtype=torch.bool),
        }
        base = None
        if needs & {"reference", "reference_logits"}:
            with torch.no_grad():
                base = completion_logits(self.base, row)
            known["reference_logprobs"] = completion_logprobs(base, row)
        if "behaviour" in needs:
            known["behaviour_logprobs"] = torch.tensor(self.rollouts["logprobs"][number].as_py())
        if self.loss.reads_prompts:
            known["prompt_logprobs"] = prompt_logprobs(self.model, row)
        teacher = self._teacher(number) if "teacher" in needs else None
        keys = torch.from_numpy(token_keys(self.names, [number], self.settings.seed, step))
        return known | self.loss.token_terms(TokenLogits(logits, torch.tensor(row.completion), keys, base, teacher))

    def _teacher(self, number: int) -> TopLogprobs:
        """The teacher's likeliest tokens that came with a row."""
        ids, top, tail = (self.rollouts[name][number].as_py() for name in ("top_ids", "top_logprobs", "top_tail"))
        return TopLogprobs(
            torch.tensor(ids).view(len(tail), -1), torch.tensor(top).view(len(tail), -1), torch.tensor(tail)
        )

    @torch.no_grad()
    def _kl_baseline(self, rows: list[int]) -> Tensor:
        """Mean log-ratio of the rows' prompts with the completion of the next rollout of another prompt."""
        prompts = self.rollouts["prompt_id"].to_pylist()
        total = torch.tensor(0.0)
        for number in rows:
            others = (other % len(prompts) for other in range(number, number + len(prompts)))
            other = next(other for other in others if prompts[other] != prompts[number])
            row = replace(self.rows[number], completion=self.rows[other].completion)
            moved, base = (completion_logprobs(completion_logits(m, row), row) for m in (self.model, self.base))
            total += (moved - base).sum()
        return total / len(rows)


def _warm_cosine(step: int, steps: int, warmup: float) -> float:
    """A linear rise, then a cosine that reaches zero at the last step."""
    rise = round(warmup * steps)
    return (step + 1) / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / (steps - 1 - rise))
