"""Answers of the base and of every run to problems, stored one by one."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from raygeo.data.exam import ANSWER_TOKENS, Exam
from raygeo.data.grading import Grading
from raygeo.data.readers import Prompt
from raygeo.generation.choice import LOCAL
from raygeo.generation.engine import EngineSettings, Students
from raygeo.generation.renderer import Renderer
from raygeo.models.run import Run
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.tables import SCHEMAS
from raygeo.workload import Rows, Task, Workload


class AnswerSettings(Settings):
    """How answers are decoded; the same for every model, the base included."""

    max_new_tokens: int = Field(ANSWER_TOKENS, ge=1)
    """Longest answer; one that has not ended by then is truncated, counted, and wrong."""
    batch_size: int = Field(256, ge=1)
    """Answers decoded together; part of the key, because padding can flip a near tie."""
    problems_per_task: int = Field(256, ge=1)
    """Problems per unit of work."""
    samples: int = Field(1, ge=1)
    """Answers a problem: accuracy is their mean (avg@k), and pass@k is estimated for k up to this."""
    temperature: float = Field(0.0, ge=0)
    """Softmax temperature; 0 decodes greedily."""
    seed: int = Field(0, ge=0)
    """Seed of the draws; no effect at temperature 0."""

    @model_validator(mode="after")
    def _drawn(self) -> "AnswerSettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples at temperature 0 are all the same; give a temperature, or one sample")
        return self

    @property
    def keyed(self) -> dict[str, Any]:
        """What content keys hold of them: of how samples are drawn nothing where none are."""
        drawn = {"samples", "temperature", "seed"} if self.temperature == 0 else set()
        return self.model_dump(mode="json", exclude=drawn)


class Answers(Workload):
    """One task a run and a slice of a benchmark's problems -> table ``answers``.

    An answer that could not be judged is not correct, but marked as undecided.
    """

    name = "answers"
    tables: ClassVar = {"answers": SCHEMAS["answers"]}

    def __init__(
        self,
        settings: AnswerSettings,
        runs: Sequence[Run],
        base: AnyPath,
        base_key: str,
        benchmarks: Mapping[str, Sequence[Prompt]],
        grading: Grading,
        renderer: Renderer,
        engine: EngineSettings = LOCAL,
    ):
        self.engine = engine
        self.settings, self.runs, self.base, self.base_key = settings, runs, base, base_key
        self.benchmarks, self.grading, self.renderer = benchmarks, grading, renderer
        self.uses = self._exam(()).revisions

    def tasks(self) -> list[Task]:
        """Slices of problems for every run."""
        size = self.settings.problems_per_task
        tasks = []
        for benchmark, problems in self.benchmarks.items():
            for start in range(0, len(problems), size):
                part = problems[start : start + size]
                exam = self._exam(part)
                asked = content_key(
                    self.settings.keyed, self.base_key, exam.asked, [problem.prompt_id for problem in part]
                )
                tasks += [
                    Task(
                        self.key(asked, benchmark, run.key),
                        float(len(part)),
                        (run, benchmark, part),
                        f"{run.name} on {benchmark}",
                    )
                    for run in self.runs
                ]
        return tasks

    def setup(self) -> Students:
        """The base model with room for every run's delta."""
        return self.engine.students(self.base, self.runs)

    def compute(self, state: Students, payload: tuple[Run, str, list[Prompt]]) -> dict[str, Rows]:
        """Answer and grade one slice with the run's weights."""
        run, benchmark, problems = payload
        settings = self.settings
        with state.mixed(run.mixture()) as model:
            answers = self._exam(problems).samples(
                model,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
                samples=settings.samples,
                temperature=settings.temperature,
                seed=int(content_key(settings.seed, benchmark, problems[0].prompt_id), 16) % 2**63,
            )
        return {
            "answers": [
                {
                    "run": run.name,
                    "benchmark": benchmark,
                    "problem_id": p.prompt_id,
                    "sample": sample,
                    "completion": c.text,
                    "extracted": verdict.extracted,
                    "correct": verdict.correct is True and not c.truncated,
                    "undecided": verdict.correct is None and not c.truncated,
                    "truncated": c.truncated,
                    "tokens": c.tokens,
                }
                for p, drawn in zip(problems, answers, strict=True)
                for sample, (c, verdict) in enumerate(drawn)
            ]
        }

    def _exam(self, problems: Sequence[Prompt]) -> Exam:
        return Exam([(problem.prompt, problem.gold) for problem in problems], self.grading, self.renderer, self.engine)
