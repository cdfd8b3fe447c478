"""How diverse the answers of each run are: several to each problem, as the evaluation drew them or drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raygeo.analyses.between import AnswerLength
from raygeo.data.exam import Exam
from raygeo.errors import DataError
from raygeo.evaluation.diversity import Answer, diversity
from raygeo.evaluation.statistics import pass_rows
from raygeo.generation.engine import Students
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.tables import schema, to_arrow
from raygeo.workload import Rows, Task, Workload

Drawn = list[dict[str, Any]]
"""Rows as in the table ``answers``, of one run."""
EVALUATION, HERE = "evaluation", "here"


class DifferenceSettings(Settings):
    """How diversity is measured of given answers."""

    benchmark: str = "heldout"
    """Whose problems are looked at: the held-out ones, or those of a benchmark whose answers the evaluation drew
    several of."""
    problems: int = Field(64, ge=2)
    """How many of its problems (the first ones)."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of problems behind each 95 % interval."""
    seed: int = Field(0, ge=0)
    """Seed of the resampling, and of answers drawn here; the same for all runs."""


class DiversitySettings(AnswerLength, DifferenceSettings):
    """Whose answers are looked at, and how they are drawn where the evaluation drew one a problem."""

    reuse: bool = True
    """Look at the answers of the evaluation where it drew several a problem (``evaluation.answers.samples``)."""
    samples: int = Field(16, ge=2)
    """Answers to each problem that are drawn here."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of answers drawn here."""
    generation_batch_size: int = Field(64, ge=1)
    """Answers drawn together."""


class Diversity(Workload):
    """Diversity of the answers of every run and of the base; one task each (``evaluation.diversity``).

    Tokens are those of the answers' texts by the student's own tokenizer, whose length is the vocabulary.

    Args:
        settings: whose answers, and how they are drawn.
        runs: the runs, the base among them.
        base: folder of the base student.
        exam: the held-out problems, and the renderer whose tokenizer texts are divided by.
        answers: the table of that name.

    Raises:
        DataError: there is neither a problem to ask nor an answer to look at.
    """

    name = "diversity"
    tables: ClassVar = {
        "diversity": schema(
            """How different the answers of a run are, `samples` to each of `problems`, drawn by the evaluation or here.
            `quantity`: ead_per_input and ead_across_input (expectation-adjusted distinct n-grams, n = 1 to 5),
            distinct_answers and distinct_equations (how many a problem has), answer_entropy (nats), pass@k. Low and
            high are ends of 95 % intervals over problems.""",
            "run, benchmark, drawn, quantity: text; value, low, high: float; problems, samples: int",
        )
    }

    def __init__(
        self, settings: DiversitySettings, runs: Sequence[Run], base: AnyPath, exam: Exam | None, answers: pa.Table
    ):
        self.settings, self.base = settings, base
        self.given = _several(answers, settings) if settings.reuse else {}
        self.runs = [run for run in runs if not self.given or run.name in self.given]
        if exam is None or not (self.given or (settings.benchmark == "heldout" and len(exam.problems) > 1)):
            raise DataError(
                f"there are no answers to {settings.benchmark!r} to compare, several to a problem, and no held-out "
                "problems to draw them for; set evaluation.answers.samples and temperature, or give prompts with gold "
                "answers."
            )
        self.exam = exam.first(settings.problems)
        self.uses = {} if self.given else self.exam.revisions

    def tasks(self) -> list[Task]:
        """One task a run; all cost the same."""
        how = DifferenceSettings.of(self.settings) if self.given else self.settings
        return [
            Task(
                self.key(how, self.exam.asked, run.name, run.key, self.given.get(run.name)),
                1.0,
                run,
                f"diversity of {run.name}",
            )
            for run in self.runs
        ]

    def setup(self) -> Students | None:
        """The base model with room for every run's delta; none where answers are given."""
        return None if self.given else self.exam.engine.students(self.base, self.runs)

    def compute(self, state: Students | None, payload: Run) -> dict[str, Rows]:
        """Draw one run's answers, or take those given, and compare them."""
        rows = self.given[payload.name] if state is None else self._draw(state, payload)
        settings, tokenizer = self.settings, self.exam.renderer.tokenizer
        tokens = tokenizer([row["completion"] for row in rows], add_special_tokens=False)["input_ids"]
        asked: dict[str, list[Answer]] = {}
        for row, ids in zip(rows, tokens, strict=True):
            asked.setdefault(row["problem_id"], []).append(Answer(row["completion"], ids, row["extracted"]))
        found = diversity(list(asked.values()), len(tokenizer), resamples=settings.bootstrap, seed=settings.seed)
        common = {"run": payload.name, "benchmark": settings.benchmark, "drawn": HERE if state else EVALUATION}
        common |= {"problems": len(asked), "samples": len(rows) // len(asked)}
        values = [{"quantity": name} | estimate._asdict() for name, estimate in found.items()]
        values += [
            {"quantity": f"pass@{row['k']}", "value": row["pass_at_k"], "low": row["low"], "high": row["high"]}
            for row in pass_rows(to_arrow("answers", rows))
        ]
        return {"diversity": [common | row for row in values]}

    def _draw(self, students: Students, run: Run) -> Drawn:
        settings = self.settings
        with students.mixed(run.mixture()) as model:
            answers = self.exam.samples(
                model,
                max_new_tokens=settings.answer_tokens,
                batch_size=settings.generation_batch_size,
                samples=settings.samples,
                temperature=settings.temperature,
                seed=settings.seed,
            )
        return [
            {"run": run.name, "benchmark": settings.benchmark, "problem_id": str(number), "sample": sample}
            | {"completion": completion.text, "extracted": verdict.extracted, "truncated": completion.truncated}
            | {"correct": verdict.correct is True and not completion.truncated, "undecided": verdict.correct is None}
            for number, drawn in enumerate(answers)
            for sample, (completion, verdict) in enumerate(drawn)
        ]


_READ = ("run", "benchmark", "problem_id", "sample", "completion", "extracted", "truncated", "correct", "undecided")


def _several(answers: pa.Table, settings: DifferenceSettings) -> Mapping[str, Drawn]:
    """By run, its answers to the first problems of a benchmark; none where problems were answered once.

    Runs that lack some are left out.
    """
    rows = answers.filter(pc.equal(answers["benchmark"], settings.benchmark)).select(_READ)
    if not rows.num_rows or (pc.max(rows["sample"]).as_py() or 0) < 1:
        return {}
    chosen = rows["problem_id"].unique()[: settings.problems]
    rows = rows.filter(pc.is_in(rows["problem_id"], chosen))
    found: dict[str, Drawn] = {}
    for row in rows.to_pylist():
        found.setdefault(row["run"], []).append(row)
    most = max(map(len, found.values()))
    return {run: drawn for run, drawn in found.items() if len(drawn) == most}
