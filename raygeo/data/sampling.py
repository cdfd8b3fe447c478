"""Rollouts sampled from a teacher and graded as they come: one task is a slice of the prompts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from raygeo.data.grading import Grading, grader
from raygeo.data.readers import Prompt
from raygeo.data.revisions import text_revisions
from raygeo.data.validation import tail_left
from raygeo.generation.choice import LOCAL
from raygeo.generation.endpoint import EndpointEngine, EndpointSettings
from raygeo.generation.engine import Completion, Engine, EngineSettings, Journal, Request, Students
from raygeo.generation.renderer import Renderer
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath
from raygeo.tables import SCHEMAS
from raygeo.workload import Rows, Task, Workload

_DEFAULT = Loading()


def _is_none(count: int) -> bool:
    return count == 0


class DecodingSettings(Settings):
    """How completions are drawn from a model."""

    foreign: ClassVar[dict[str, str]] = {
        "n": "samples",
        "num_generations": "samples",
        "num_return_sequences": "samples",
        "max_tokens": "max_new_tokens",
        "max_completion_length": "max_new_tokens",
        "do_sample": "is not a setting; temperature: 0 decodes greedily",
        "top_p": "is not offered; completions are drawn from the whole law",
        "top_k": "is not offered; completions are drawn from the whole law",
    }

    samples: int = Field(8, ge=1, le=1 << 16)
    """Completions per prompt."""
    temperature: float = Field(1.0, ge=0)
    """Softmax temperature; 0 decodes greedily."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest completion; one that has not ended by then is truncated, and marked so."""
    seed: int = Field(0, ge=0)
    """Seed of the draws."""
    top_logprobs: int = Field(0, ge=0, exclude_if=_is_none)
    """Keep the log-probabilities of so many of the teacher's likeliest tokens at each token, for losses that learn from
    its whole law; 0 keeps none. They are those that were drawn from: at ``temperature``, or at 1 where it is 0."""
    batch_size: int = Field(256, ge=1)
    """Completions decoded together; halved where memory runs out."""
    prompts_per_task: int = Field(64, ge=1)
    """Prompts per unit of work."""


class Sampling(Workload):
    """One task a slice of prompts -> table ``rollouts``, graded, all in the training split.

    A row whose verdict could not be decided has neither verdict nor reward.

    Rows hold the teacher's log-probabilities at the sampling temperature: those of the draws, or of the tokens of the
    text where it does not tokenise back to the tokens drawn. Greedy rollouts have none, nor have those of an engine
    that does not know them. So it is with its likeliest tokens, where ``top_logprobs`` asks for them, but that greedy
    rollouts have them too. ``source`` says who writes. ``ends`` are texts that the student takes for the end of a
    completion: one that the teacher ended in such a way, and not in its end-of-text, carries it. One behind a
    generation prompt that opens a thought begins with that opening, which a student's own prompt may lack. What ended
    in a way that is not known is left out. ``renderer`` is the teacher's, ``loading`` says how it is held.
    """

    name = "rollouts"
    tables: ClassVar = {"rollouts": SCHEMAS["rollouts"]}

    def __init__(
        self,
        settings: DecodingSettings,
        teacher: AnyPath,
        teacher_key: str,
        renderer: Renderer,
        prompts: Sequence[Prompt],
        grading: Grading,
        ends: Sequence[str] = (),
        loading: Loading = _DEFAULT,
        engine: EngineSettings = LOCAL,
        source: str = "teacher",
    ):
        self.source = source
        self.loading, self.engine = loading, engine
        self.settings, self.teacher, self.teacher_key, self.renderer = settings, teacher, teacher_key, renderer
        self.prompts, self.grading, self.ends = prompts, grading, tuple(ends)
        self.opened = renderer.opened
        self.uses = text_revisions([type(renderer)], [type(engine)])

    def tasks(self) -> list[Task]:
        """Slices of prompts; the seed of each is its own, so the order they run in does not matter."""
        size = self.settings.prompts_per_task
        how = (
            self.renderer.identity,
            self.engine.identity,
            self.teacher_key,
            self.grading,
            self.ends,
            *self.loading.keyed,
            *filter(None, [self.opened]),
            *([] if self.source == "teacher" else [self.source]),
        )
        slices = [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]
        return [
            Task(
                self.key(self.settings, *how, number, [vars(p) for p in part]),
                float(len(part)),
                (number, part),
                f"prompts {number * size} to {number * size + len(part)}",
            )
            for number, part in enumerate(slices)
        ]

    def setup(self) -> Students:
        """The teacher."""
        return self.engine.students(self.teacher, [Run("teacher", self.teacher_key, None, loading=self.loading)])

    def compute(self, state: Students, payload: Any) -> dict[str, Rows]:
        """Sample and grade one slice."""
        number, prompts = payload
        with state.mixed(()) as model:
            engine = self.engine.engine(model, self.renderer, self.settings.batch_size)
            return {"rollouts": self.sampled(engine, number, prompts)}

    def sampled(self, engine: Engine, number: int, prompts: Sequence[Prompt], journal: Journal | None = None) -> Rows:
        """The rows of slice ``number``, written by ``engine``."""
        settings, renderer = self.settings, self.renderer
        drawn = engine.generate(
            Request(
                [p.prompt for p in prompts],
                samples=settings.samples,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                seed=int(content_key(settings.seed, number), 16) % 2**63,
                top_logprobs=settings.top_logprobs,
                journal=journal,
            )
        )
        pairs = [
            (p, sample, c)
            for p, completions in zip(prompts, drawn, strict=True)
            for sample, c in enumerate(completions)
            if c.stop != "unknown"
        ]
        logprobs = [c.logprobs for _, _, c in pairs]
        if settings.temperature > 0:
            written = [(p.prompt, c.text + c.end, not c.truncated) for p, _, c in pairs]
            misfits = [
                i
                for i, (_, text, ended) in enumerate(written)
                if tuple(renderer.completion_ids(text, ended)) != pairs[i][2].ids
            ]
            texts = [written[i] for i in misfits]
            for i, scored in zip(misfits, engine.score(texts, temperature=settings.temperature), strict=True):
                logprobs[i] = scored
        likeliest = self._likeliest(engine, [(p.prompt, c) for p, _, c in pairs])
        with grader(self.grading) as grade:
            verdicts = grade.grade_many([(c.text, p.gold) for p, _, c in pairs])
        return [
            {
                "prompt_id": p.prompt_id,
                "prompt": p.prompt,
                "gold": p.gold,
                "sample": sample,
                "completion": self._begun(c.text) + (c.end if c.end in self.ends else ""),
                "reward": None if correct is None else float(correct),
                "correct": correct,
                "truncated": c.truncated,
                "source": self.source,
                "split": "train",
                "logprobs": drawn,
                **top,
            }
            for (p, sample, c), verdict, drawn, top in zip(pairs, verdicts, logprobs, likeliest, strict=True)
            for correct in (False if c.truncated else verdict.correct,)
        ]

    def _likeliest(self, engine: Engine, written: Sequence[tuple[str, Completion]]) -> list[dict[str, Any]]:
        """The columns of each completion's likeliest tokens, where they are asked for and known.

        What the engine scores goes before what it said while it wrote: its tail is summed, not what others leave of 1.
        """
        count, found = self.settings.top_logprobs, []
        if not count:
            return [{}] * len(written)
        texts = [(prompt, c.text + c.end, not c.truncated) for prompt, c in written]
        scored = engine.score_top(texts, count, temperature=self.settings.temperature or 1.0)
        for (_, c), (_, text, ended), top in zip(written, texts, scored, strict=True):
            if top is not None:
                columns = {"top_ids": top.ids, "top_logprobs": top.logprobs, "top_tail": top.tail}
                found.append({name: part.float().flatten().numpy() for name, part in columns.items()})
                found[-1]["top_ids"] = top.ids.flatten().numpy()
                continue
            steps = c.top_logprobs or ()
            ids = tuple(self.renderer.completion_ids(text, ended))
            whole = len(steps) == len(ids) > 0 and c.ids in ((), ids)
            if not whole or any(len(step) < count for step in steps):
                found.append({})
                continue
            best = [sorted(step.items(), key=lambda each: (-each[1], each[0]))[:count] for step in steps]
            logprobs = np.array([[score for _, score in step] for step in best], dtype=np.float32)
            found.append(
                {
                    "top_ids": np.array([i for step in best for i, _ in step], dtype=np.int32),
                    "top_logprobs": logprobs.flatten(),
                    "top_tail": tail_left(logprobs),
                }
            )
        return found

    def _begun(self, text: str) -> str:
        """The text with the thought that the generation prompt has opened, unless it opens that itself."""
        return text if text.lstrip().startswith(self.opened.strip()) else self.opened + text


class SamplingElsewhere(Sampling):
    """The same of a model that a server has; the table ``usage`` counts what each slice took.

    ``journal`` keeps what each prompt was answered, so that a slice that was interrupted asks for the others only.
    """

    tables: ClassVar = {"rollouts": SCHEMAS["rollouts"], "usage": SCHEMAS["usage"]}

    def __init__(
        self,
        settings: DecodingSettings,
        renderer: Renderer,
        prompts: Sequence[Prompt],
        grading: Grading,
        engine: EndpointSettings,
        journal: Journal | None = None,
    ):
        super().__init__(settings, "", engine.model, renderer, prompts, grading, engine=engine)
        self.server, self.journal, self.opened = engine, journal, ""

    def compute(self, state: Students, payload: Any) -> dict[str, Rows]:
        """Sample and grade one slice."""
        number, prompts = payload
        engine = EndpointEngine(self.server, self.renderer)
        rows, used = self.sampled(engine, number, prompts, self.journal), engine.usage
        row = {"model": self.server.model, "prompts": len(prompts), **vars(used), "cost": used.cost(self.server.price)}
        return {"rollouts": rows, "usage": [row]}
