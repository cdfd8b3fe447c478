"""Greedy answers of the base and of every run on held-out problems, stored one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from raygeo.rollouts.grading import Grading, grader
from raygeo.rollouts.readers import Prompt
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.students.generation import generate
from raygeo.students.loading import default_device, load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.workload import Rows, Task, Workload


class AnswerSettings(Settings):
    """How answers are decoded; the same for every model, the base included."""

    max_new_tokens: int = Field(256, ge=1)
    """Longest answer; one that has not ended by then is truncated, counted, and wrong."""
    batch_size: int = Field(256, ge=1)
    """Answers decoded together; part of the key, because padding can flip a near tie."""
    problems_per_task: int = Field(256, ge=1)
    """Problems per unit of work."""


class Answers(Workload):
    """One task a run and a slice of a benchmark's problems -> table ``answers``."""

    name = "answers"
    tables = ("answers",)

    def __init__(
        self,
        settings: AnswerSettings,
        runs: Sequence[Run],
        base: AnyPath,
        base_key: str,
        benchmarks: Mapping[str, Sequence[Prompt]],
        grading: Grading,
    ):
        self.settings, self.runs, self.base, self.base_key = settings, runs, base, base_key
        self.benchmarks, self.grading = benchmarks, grading

    def tasks(self) -> list[Task]:
        """Slices of problems for every run."""
        size = self.settings.problems_per_task
        tasks = []
        for benchmark, problems in self.benchmarks.items():
            for start in range(0, len(problems), size):
                part = problems[start : start + size]
                slice_key = content_key("answers", self.settings, self.base_key, self.grading, [vars(p) for p in part])
                tasks += [
                    Task(
                        content_key(slice_key, benchmark, run.key),
                        float(len(part)),
                        (run, benchmark, part),
                        f"{run.name} on {benchmark}",
                    )
                    for run in self.runs
                ]
        return tasks

    def setup(self) -> Any:
        """The base model with room for every run's delta."""
        model, tokenizer = load_student(self.base, device=default_device())
        names = {name for run in self.runs for _, delta in run.mixture() for name in delta}
        return MixedWeights(model, names), tokenizer

    def compute(self, state: Any, payload: Any) -> dict[str, Rows]:
        """Answer and grade one slice with the run's weights."""
        weights, tokenizer = state
        run, benchmark, problems = payload
        with weights.mixed(run.mixture()) as model:
            answers = generate(
                model,
                tokenizer,
                [p.prompt for p in problems],
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.batch_size,
            )
        completions = [answer[0] for answer in answers]
        with grader(self.grading) as grade:
            verdicts = grade.grade_many([(c.text, p.gold) for c, p in zip(completions, problems, strict=True)])
        return {
            "answers": [
                {
                    "run": run.name,
                    "benchmark": benchmark,
                    "problem_id": p.prompt_id,
                    "completion": c.text,
                    "extracted": verdict.extracted,
                    "correct": verdict.correct and not c.truncated,
                    "truncated": c.truncated,
                    "tokens": c.tokens,
                }
                for p, c, verdict in zip(problems, completions, verdicts, strict=True)
            ]
        }
