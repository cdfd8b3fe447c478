"""Rollouts sampled from a teacher and graded as they come: one task is a slice of the prompts."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from raygeo.rollouts.grading import Grading, grader
from raygeo.rollouts.readers import Prompt
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.generation import generate
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
    """One task a slice of prompts -> table ``rollouts``, graded, all in the training split."""

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
                }
                for (p, sample, c), verdict in zip(pairs, verdicts, strict=True)
            ]
        }
