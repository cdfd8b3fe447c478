"""What analyses of the NLL between runs have in common: settings, what keys hold of answers, and named runs."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import Field

from raygeo.data.exam import ANSWER_TOKENS, Exam
from raygeo.data.probes import Probe
from raygeo.errors import ConfigError
from raygeo.geometry.connectivity.evaluator import Evaluator
from raygeo.geometry.connectivity.measures import AnswerErrors
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.workload import Workload


class LikelihoodSettings(Settings):
    """How likelihoods between runs are measured."""

    batch_size: int = Field(16, ge=1)
    """Sequences per forward pass."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling; the same examples are drawn for all runs and all points."""


class AnswerLength(Settings):
    """How long answers may be that an analysis has written."""

    max_new_tokens: int | None = Field(None, ge=1)
    """Length at which an answer is cut off; by default that of ``evaluation.answers``."""

    @property
    def answer_tokens(self) -> int:
        """The length, also where nothing was said of answers."""
        return self.max_new_tokens or ANSWER_TOKENS


class AccuracySettings(AnswerLength):
    """How accuracy between runs is measured besides."""

    changes_base: ClassVar[bool] = False
    """Whether models are asked in which the base's own weights are changed, which no sum of deltas is."""

    accuracy_problems: int = Field(64, ge=0)
    """How many problems (the first ones) the accuracy is measured on; 0 turns it off."""
    generation_batch_size: int = Field(64, ge=1)
    """Problems answered together."""

    def mixed(self, runs: int) -> int:
        """Of how many of the study's trained ``runs`` a model that is asked is mixed, at the most: one.

        Analyses that mix more say so, so that an engine that has no room for them is refused before work starts.
        """
        return min(runs, 1)


class Asked:
    """The problems that an analysis asks: the first of those there are.

    Args:
        settings: how many, and how they are answered.
        exam: the problems; None where there are none.
    """

    def __init__(self, settings: AccuracySettings, exam: Exam | None):
        self.settings = settings
        self.exam = None if exam is None else exam.first(settings.accuracy_problems)

    @property
    def problems(self) -> int:
        """How many problems are asked."""
        return 0 if self.exam is None else len(self.exam.problems)

    @property
    def revisions(self) -> dict[str, int]:
        """Revisions of the code that asks and judges, by name."""
        return self.exam.revisions if self.exam is not None and self.problems else {}

    @property
    def key(self) -> list[Any] | None:
        """What a key holds of the answers, None where no problem is asked."""
        if self.exam is None or not self.problems:
            return None
        return ["complete", *self.exam.asked, self.settings.answer_tokens, self.settings.generation_batch_size]

    def measure(self) -> AnswerErrors | None:
        """What judges a model's answers, None where no problem is asked."""
        if self.exam is None or not self.problems:
            return None
        settings = self.settings
        return AnswerErrors(self.exam, max_new_tokens=settings.answer_tokens, batch_size=settings.generation_batch_size)


class ProbeWorkload(Workload):
    """What is measured on one probe, and on problems where they are asked; by default on halves of the probe.

    Args:
        settings: how likelihoods are measured, and accuracy besides.
        runs: the runs, the base among them or not.
        base: folder of the base student.
        probe: probe file.
        exam: problems for the accuracy; None where there are none.
    """

    batch_settings: ClassVar = ("batch_size",)
    in_keys: ClassVar[type[LikelihoodSettings]] = LikelihoodSettings
    """The settings that decide what a likelihood is; those of accuracy come with the problems."""

    def __init__(self, settings: Any, runs: Sequence[Run], base: AnyPath, probe: AnyPath, exam: Exam | None):
        self.settings = settings
        self.runs = list(runs)
        self.base = base
        self.probe = probe
        self.asked = Asked(settings, exam)
        self.uses = self.asked.revisions

    @property
    def trained(self) -> list[Run]:
        """The runs without the base."""
        return [run for run in self.runs if run.delta is not None]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What all keys hold: settings, probe and problems."""
        return self.in_keys.of(self.settings), Probe.load(self.probe).key, self.asked.key

    def setup(self) -> Any:
        """Load the base student once, halve the probe and tokenise what is measured."""
        student = ResidentStudent.load(self.base, self.runs)
        return Evaluator(student, Probe.load(self.probe), self.settings.batch_size, self.asked.measure())


def find_runs(runs: Sequence[Run], groups: Iterable[Sequence[str]], setting: str) -> list[tuple[Run, ...]]:
    """The runs named in each of ``groups``, in order.

    Raises:
        ConfigError: a name is not that of a trained run or the base, or stands there twice; ``setting`` says where it
            was read.
    """
    named = {run.name: run for run in runs}
    found = []
    for group in groups:
        unknown = [name for name in group if name not in named]
        if unknown or len(set(group)) < len(group):
            wrong = f"no run is called {' or '.join(map(repr, unknown))}" if unknown else "it names one run twice"
            raise ConfigError(f"{setting} {list(group)}: {wrong}; the runs are {', '.join(named)}.")
        found.append(tuple(named[name] for name in group))
    return found
