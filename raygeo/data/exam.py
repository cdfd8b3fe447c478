"""Problems that a model is asked, and how its answers are judged: the same for benchmarks and along paths."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raygeo.data.grading import Grading, Verdict, grader
from raygeo.data.revisions import text_revisions
from raygeo.generation.choice import LOCAL
from raygeo.generation.engine import Completion, EngineSettings, Request
from raygeo.generation.renderer import Renderer

ANSWER_TOKENS = 256
"""Length at which answers are cut off where nothing else is said."""


@dataclass(frozen=True)
class Exam:
    """``problems`` are (prompt, gold answer) pairs, which ``renderer`` puts to a model; ``grading`` judges answers.

    The ``engine`` writes them.
    """

    problems: Sequence[tuple[str, str]]
    grading: Grading
    renderer: Renderer
    engine: EngineSettings = LOCAL

    def first(self, count: int) -> "Exam":
        """The exam of the first so many problems."""
        return replace(self, problems=self.problems[:count])

    @property
    def key(self) -> list[Any]:
        """What content keys hold of it: problems, how they are asked and judged, and the revisions of what does."""
        return [*self.asked, self.revisions]

    @property
    def asked(self) -> list[Any]:
        """``key`` without the revisions, for workloads that have them in ``uses``."""
        return [self.renderer.identity, self.engine.identity, self.grading, list(self.problems)]

    @property
    def revisions(self) -> dict[str, int]:
        """Revisions of the code that asks and judges, by name."""
        return text_revisions([type(self.renderer)], [type(self.engine)])

    def answers(self, model: Any, *, max_new_tokens: int, batch_size: int) -> list[tuple[Completion, Verdict]]:
        """Greedy answers of a model at the weights it has, and what is thought of them, in the order of the problems.

        A verdict is on the text alone; whether an answer that was cut off counts is for the caller to say.
        """
        return [answer for (answer,) in self.samples(model, max_new_tokens=max_new_tokens, batch_size=batch_size)]

    def samples(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[tuple[Completion, Verdict]]]:
        """So many answers to each problem, drawn at a temperature, and what is thought of them."""
        engine = self.engine.engine(model, self.renderer, batch_size)
        prompts, golds = [prompt for prompt, _ in self.problems], [gold for _, gold in self.problems]
        written = engine.generate(Request(prompts, max_new_tokens, samples, temperature, seed))
        with grader(self.grading) as judge:
            texts = [(answer.text, gold) for each, gold in zip(written, golds, strict=True) for answer in each]
            verdicts = iter(judge.grade_many(texts))
            return [[(answer, next(verdicts)) for answer in each] for each in written]
