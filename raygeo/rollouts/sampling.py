"""Rollouts sampled from a teacher and graded as they come: one task is a slice of the prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from raygeo.rollouts.grading import Grading, grader
from raygeo.rollouts.readers import Prompt
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.encoding import collate, encode, length_buckets
from raygeo.students.generation import generate
from raygeo.students.likelihood import Likelihood, TokenLogits
from raygeo.students.loading import default_device, load_student
from raygeo.workload import Rows, Task, Workload


class DecodingSettings(Settings):
    """How completions are drawn from a model."""

    samples: int = Field(8, ge=1)
    """Completions per prompt."""
    temperature: float = Field(1.0, ge=0)
    """Softmax temperature; 0 decodes greedily."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest completion; one that has not ended by then is truncated, and marked so."""
    seed: int = Field(0, ge=0)
    """Seed of the draws."""
    batch_size: int = Field(256, ge=1)
    """Completions decoded together."""
    prompts_per_task: int = Field(64, ge=1)
    """Prompts per unit of work."""


class Sampling(Workload):
    """One task a slice of prompts -> table ``rollouts``, graded, all in the training split.

    Rows hold the teacher's log-probabilities at the sampling temperature: those of the draws, or of the tokens of the
    text where it does not tokenise back to the tokens drawn. Greedy rollouts have none.
    """

    name = "rollouts"
    tables = ("rollouts",)

    def __init__(
        self,
        settings: DecodingSettings,
        teacher: AnyPath,
        teacher_key: str,
        prompts: Sequence[Prompt],
        grading: Grading,
    ):
        self.settings, self.teacher, self.teacher_key = settings, teacher, teacher_key
        self.prompts, self.grading = prompts, grading

    def tasks(self) -> list[Task]:
        """Slices of prompts; the seed of each is its own, so the order they run in does not matter."""
        size = self.settings.prompts_per_task
        slices = [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]
        return [
            Task(
                content_key("sampling", self.settings, self.teacher_key, self.grading, number, [vars(p) for p in part]),
                float(len(part)),
                (number, part),
                f"prompts {number * size} to {number * size + len(part)}",
            )
            for number, part in enumerate(slices)
        ]

    def setup(self) -> Any:
        """The teacher and its tokenizer."""
        model, tokenizer = load_student(self.teacher, device=default_device())
        return model, tokenizer

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Sample and grade one slice."""
        model, tokenizer = state
        number, prompts = payload
        settings = self.settings
        drawn = generate(
            model,
            tokenizer,
            [p.prompt for p in prompts],
            samples=settings.samples,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=int(content_key(settings.seed, number), 16) % 2**63,
            batch_size=settings.batch_size,
        )
        pairs = [
            (p, sample, c)
            for p, completions in zip(prompts, drawn, strict=True)
            for sample, c in enumerate(completions)
        ]
        logprobs = [c.logprobs for _, _, c in pairs]
        if settings.temperature > 0:
            misfits = [i for i, known in enumerate(logprobs) if known is None]
            texts = [(pairs[i][0].prompt, pairs[i][2].text, not pairs[i][2].truncated) for i in misfits]
            scores = score(model, tokenizer, texts, temperature=settings.temperature, batch_size=settings.batch_size)
            for i, scored in zip(misfits, scores, strict=True):
                logprobs[i] = scored
        with grader(self.grading) as grade:
            verdicts = grade.grade_many([(c.text, p.gold) for p, _, c in pairs])
        return {
            "rollouts": [
                {
                    "prompt_id": p.prompt_id,
                    "prompt": p.prompt,
                    "gold": p.gold,
                    "sample": sample,
                    "completion": c.text,
                    "reward": float(verdict.correct and not c.truncated),
                    "correct": verdict.correct and not c.truncated,
                    "truncated": c.truncated,
                    "source": "teacher",
                    "split": "train",
                    "logprobs": drawn,
                }
                for (p, sample, c), verdict, drawn in zip(pairs, verdicts, logprobs, strict=True)
            ]
        }


def score(
    model: Any, tokenizer: Any, texts: Sequence[tuple[str, str, bool]], *, temperature: float, batch_size: int
) -> list[tuple[float, ...]]:
    """Return the log-probability of each completion token of (prompt, completion, ended) ``texts``, teacher-forced.

    Tokens are those that training reads; probabilities are softmax(logits / ``temperature``).
    """

    def tempered(tokens: TokenLogits) -> dict[str, Tensor]:
        return {"tempered": -F.cross_entropy(tokens.logits / temperature, tokens.targets, reduction="none")}

    likelihood = Likelihood(model, tempered)
    sequences = [encode(tokenizer, prompt, completion, ended=ended) for prompt, completion, ended in texts]
    scores: list[tuple[float, ...]] = [()] * len(sequences)
    filled = [i for i, sequence in enumerate(sequences) if sequence.completion_length > 0]
    for bucket in length_buckets([len(sequences[i]) for i in filled], batch_size):
        rows = [filled[place] for place in bucket]
        batch = collate([sequences[i] for i in rows], tokenizer.pad_token_id).to(model.device)
        with torch.inference_mode():
            logprobs = likelihood(batch)["tempered"]
        for i, row, mask in zip(rows, logprobs, batch.mask, strict=True):
            scores[i] = tuple(row[mask].tolist())
    return scores
