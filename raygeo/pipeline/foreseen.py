"""What is known to fail once a study's rows are: refused before anything is asked of a model, and said of each loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from rich.markup import escape

from raygeo.analyses.between import AccuracySettings
from raygeo.analyses.diversity.workload import DiversitySettings
from raygeo.analyses.registry import analyses
from raygeo.data.readers import Prompt
from raygeo.data.sampling import DecodingSettings
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DataError, StudentError
from raygeo.generation.engine import check_prompts
from raygeo.losses.base import Loss, Need
from raygeo.models.loading import context_length, read_config
from raygeo.naming import HELDOUT_NLL, benchmark_of
from raygeo.pipeline.config import HELDOUT, TRAIN, Study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.evaluate import asked_problems
from raygeo.pipeline.monitor import some_problems
from raygeo.pipeline.probes import heldout_solutions
from raygeo.pipeline.published import KIND
from raygeo.pipeline.rollouts import Rollouts, drawn_problems, heldout_problems
from raygeo.pipeline.student import Student
from raygeo.pipeline.train import lay_out_teacher
from raygeo.training.selections import open_behaviour
from raygeo.training.settings import RunSpec


@dataclass(frozen=True)
class Learned:
    """How many examples a loss has, and how many tokens the longest row among them."""

    examples: int
    longest: int


def foresee(
    context: StudyContext, student: Student, rollouts: Rollouts, stages: tuple[str, ...]
) -> Mapping[Loss, Learned]:
    """Say what each loss that learns from the study's rollouts has, which is returned; refuse what cannot be done.

    What only concerns other than these ``stages`` is not refused.

    Raises:
        DataError: naming every loss that finds nothing to learn from or not what it needs, what a sweep judges by that
            cannot be measured, and prompts or rows too long for whoever is to read them.
    """
    study, problems = context.study, asked_problems(context.study, rollouts)[0]
    wrong: list[str] = []
    learned: dict[Loss, Learned] = {}
    if "reference" in stages:
        wrong += _too_long_for_the_teacher(context, student, rollouts)
    specs = study.plan.learning()
    useless = list(_select(rollouts, dict.fromkeys(spec.loss for spec in specs), learned))
    useless += _drop_lacking(context, student, rollouts, learned)
    _say_learned(context, specs, learned)
    if "train" in stages:
        wrong += useless
    for line in useless if "train" not in stages else ():
        context.progress.say(f"  [yellow]{escape(line)}[/yellow]")
    wrong += _unmeasured(study, rollouts, problems, stages)
    wrong += _too_long(study, student, rollouts, problems, stages)
    if wrong:
        raise DataError("\n".join(wrong))
    return learned


def _select(rollouts: Rollouts, losses: Iterable[Loss], learned: dict[Loss, Learned]) -> Iterator[str]:
    """Fill in what each loss learns from; what is wrong with those that learn nothing."""
    table, lengths = rollouts.train, RolloutTokens.open(rollouts.tokens).lengths
    for loss in losses:
        try:
            examples = loss.select(table).examples
        except DataError as error:
            yield str(error)
        else:
            longest = max(int(lengths[row]) for example in examples for row in example.rows)
            learned[loss] = Learned(len(examples), longest)


def _say_learned(context: StudyContext, specs: Iterable[RunSpec], learned: Mapping[Loss, Learned]) -> None:
    """Say how many examples losses have, and of which they have too few."""
    units = {loss: "pairs" if loss.unit == "pair" else "rows" for loss in learned}
    said = dict.fromkeys(f"{loss.label} {found.examples:,} {units[loss]}" for loss, found in learned.items())
    if said:
        context.progress.say(f"  to learn from: {escape(', '.join(said))}")
    few = {(spec.loss, spec.training.batch_size) for spec in specs if spec.loss in learned}
    few = {(loss, batch) for loss, batch in few if learned[loss].examples < batch}
    for loss, batch in sorted(few, key=repr):
        context.progress.say(
            f"  [yellow]{escape(loss.label)}: {learned[loss].examples} {units[loss]} for batches of {batch}[/yellow]; "
            "every step takes some of them more than once: lower batch_size, or bring more rollouts"
        )


def _drop_lacking(
    context: StudyContext, student: Student, rollouts: Rollouts, learned: dict[Loss, Learned]
) -> Iterator[str]:
    """Drop the losses that need what should have come with the rollouts and has not, and say what that is; what has
    come is laid out for training.
    """

    def lay_out_behaviour() -> None:
        open_behaviour(context.store, rollouts.key, rollouts.tokens, RolloutTokens.open(rollouts.tokens))

    brought: dict[Need, Callable[[], object]] = {"behaviour": lay_out_behaviour}
    if student.taught_by is None:
        brought["teacher"] = lambda: lay_out_teacher(context, student, rollouts)
    for need, lay_out in brought.items():
        needing = [loss for loss in learned if need in loss.needs]
        try:
            if needing:
                lay_out()
        except DataError as error:
            for loss in needing:
                learned.pop(loss)
            yield f"{', '.join(dict.fromkeys(loss.label for loss in needing))}: {error}"


def _unmeasured(
    study: Study, rollouts: Rollouts, problems: Mapping[str, list[Prompt]], stages: tuple[str, ...]
) -> Iterator[str]:
    """What a sweep judges by, and analyses need, that these rollouts do not allow to measure."""
    lacks_solutions = not heldout_solutions(rollouts)
    why = "is measured on correct solutions of held-out prompts, and there is none; hold out more (rollouts.heldout)"
    if study.sweep is not None and "train" in stages and ("evaluate" in stages or study.plan.open_entries()):
        for name, metric, analysis in study.judged.measured.values():
            if analysis is None and metric.among != "training":
                if benchmark_of(name) not in problems:
                    yield (
                        f"sweep: {name} needs problems with gold answers that are not trained on, and there are none; "
                        "name the field that holds them (rollouts.read, fields: gold), give evaluation.benchmarks, or "
                        "judge by another metric."
                    )
            elif lacks_solutions and (name == HELDOUT_NLL or (analysis and "solutions" in analysis.needs)):
                yield f"sweep: {name} {why}, or judge by another metric."
    asked = [name for name in study.geometry.asked() if "solutions" in analyses(study.geometry.own)[name].needs]
    if asked and lacks_solutions and "geometry" in stages:
        yield f"geometry: each of {', '.join(asked)} {why}, or set them to null."


def _too_long(
    study: Study,
    student: Student,
    rollouts: Rollouts,
    problems: Mapping[str, list[Prompt]],
    stages: tuple[str, ...],
) -> Iterator[str]:
    """Prompts that the student is to answer and has no room for."""
    answers = study.evaluation.answers
    asked: dict[tuple[str, str], tuple[list[Prompt], int]] = {}
    if "evaluate" in stages:
        every = dict(problems)
        if study.evaluation.monitor is not None:
            monitor = study.evaluation.monitor
            every[TRAIN] = some_problems(rollouts.training_problems, monitor.problems, monitor.seed)
        for name, found in every.items():
            asked["evaluation.answers.max_new_tokens", name] = found, answers.max_new_tokens
    heldout = heldout_problems(rollouts) if "geometry" in stages else []
    for name, settings in study.geometry.asked().items():
        place = f"geometry.{name}.max_new_tokens", HELDOUT
        if isinstance(settings, AccuracySettings):
            asked[place] = heldout[: settings.accuracy_problems], settings.answer_tokens
        elif isinstance(settings, DiversitySettings) and not (settings.reuse and answers.samples > 1):
            few = heldout[: settings.problems] if settings.benchmark == HELDOUT else []
            asked[place] = few, settings.answer_tokens
    if "train" in stages:
        sample = study.rollouts.sample
        decoding = DecodingSettings() if sample is None else sample.decoding
        for run in study.plan.trials():
            for stage in run.stages:
                if stage.rounds is not None:
                    rounds = range(1, stage.rounds + 1)
                    drawn = {
                        p: None for n in rounds for p in drawn_problems(rollouts.training_problems, stage.sampling, n)
                    }
                    new = stage.sampling.decoding(decoding, 1).max_new_tokens
                    asked[f"sampling.max_new_tokens of {stage.spec.name}", TRAIN] = list(drawn), new
    longest = study.evaluation.engine.longest(context_length(read_config(student.folder)))
    for (setting, name), (found, new) in asked.items():
        try:
            check_prompts(rollouts.renderer, [problem.prompt for problem in found], new, longest, "student")
        except StudentError as error:
            yield f"{setting}, {name} prompts: {error}"


def _too_long_for_the_teacher(context: StudyContext, student: Student, rollouts: Rollouts) -> Iterator[str]:
    """Rows that the teacher is to read, and has no room for."""
    if student.taught_by is None or context.study.teacher is None:
        return
    limit = context_length(read_config(context.store.stored(KIND, student.taught_by)))
    longest = int(np.max(RolloutTokens.open(rollouts.tokens).lengths))
    if limit is not None and longest > limit:
        yield (
            f"the longest row has {longest} tokens, and teacher.model {context.study.teacher.model!r} reads {limit} at "
            f"most; set rollouts.max_tokens={limit}, or choose another teacher."
        )
