"""What analyses are made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from raygeo.analyses.pairs import Pairs, choose_pairs
from raygeo.data.exam import Exam
from raygeo.errors import DataError
from raygeo.generation.renderer import ChatSettings, Renderer, renderer_for
from raygeo.geometry.curvature.journal import Journals
from raygeo.geometry.curvature.operators import Gather
from raygeo.losses import Loss
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.records import Condition, RunRecord, configurations
from raygeo.store import AnyPath, Store


@dataclass(frozen=True)
class Training:
    """The loss of every run by name, the store with the rollouts, their unit key, and the folder of their tokens; that
    of a teacher's likeliest tokens, if there is one, and the teacher's key, if these did not come with the rollouts.
    """

    losses: Mapping[str, Loss]
    store: Store
    rollouts: str
    tokens: AnyPath
    teacher: AnyPath | None = None
    teacher_key: str | None = None


@dataclass(frozen=True)
class AnalysisInputs:
    """Runs, and what they can be measured on.

    ``base`` is the folder of the base model; ``runs`` are the base and what was trained from it; ``reference`` names
    the run others are compared with; ``records`` say what is known of the runs' training, by name; ``table`` gives
    tables made so far, by name, those of analyses named in ``after`` among them; ``make_probes`` gives probe files by
    name, "solutions" and "curvature" among them, or none; ``exam`` holds problems with gold answers, if there are
    any. ``journals`` keep steps of unfinished tasks, ``gather`` joins the terms of an operator
    in several processes. ``training`` is what runs learned from, where that is known; ``chat`` says how texts are put
    to the student where there is no exam to say it.
    """

    base: AnyPath
    runs: list[Run]
    reference: str
    records: Mapping[str, RunRecord]
    table: Callable[[str], pa.Table]
    make_probes: Callable[[], Mapping[str, AnyPath]]
    exam: Exam | None = None
    journals: Journals | None = None
    gather: Gather | None = None
    training: Training | None = None
    chat: ChatSettings = field(default_factory=ChatSettings)

    @cached_property
    def renderer(self) -> Renderer:
        """What texts are put to the student with: that of the exam or, without one, the base's as ``chat`` asks.

        Raises:
            StudentError: the base has no tokenizer, or not the chat template asked for.
        """
        return renderer_for(load_tokenizer(self.base), self.chat) if self.exam is None else self.exam.renderer

    @property
    def models(self) -> "AnalysisInputs":
        """The same without what single stages of runs changed, which beside the base is no model (``Run.leg``)."""
        return replace(self, runs=[run for run in self.runs if not run.leg])

    @property
    def conditions(self) -> dict[str, Condition]:
        """How every run was trained, by name; where that is not known, each in a way of its own."""
        known = {name: record.condition for name, record in self.records.items()}
        return {run.name: known.get(run.name) or Condition(run.name, run.name, 0, None) for run in self.runs}

    @property
    def pairs(self) -> Pairs | None:
        """The pairs of runs that are compared unless all are asked for; None where these are all."""
        return choose_pairs([run.name for run in self.runs], self.reference, self.conditions)

    @property
    def steps(self) -> dict[str, int]:
        """The last step of every run whose training is known."""
        return {name: record.steps for name, record in self.records.items() if record.steps is not None}

    @property
    def seed_groups(self) -> dict[str, list[str]]:
        """Names of the runs of each configuration, which differ in nothing but seeds; none if training is not known."""
        trained = (self.records.get(run.name) for run in self.runs)
        known = {record.run: c for record in trained if record is not None and (c := record.condition) is not None}
        first = {condition: name for name, condition in reversed(known.items())}
        names = [name for name, condition in known.items() if first[condition] == name]
        groups = [[names[i] for i in group] for group in configurations([known[name] for name in names])]
        return {f"seeds of {group[0]}": group for group in groups}

    @cached_property
    def probes(self) -> Mapping[str, AnyPath]:
        """Probe files by name.

        Raises:
            DataError: there is nothing to make them of.
        """
        probes = self.make_probes()
        if not probes:
            raise DataError(
                "no held-out prompt has a correct solution, so there is nothing to measure likelihood and curvature "
                "on; hold out more prompts (rollouts.heldout) or sample more."
            )
        return probes

    @property
    def likelihood_probes(self) -> dict[str, AnyPath]:
        """The probes whose likelihood is followed between runs."""
        return {name: path for name, path in self.probes.items() if name != "curvature"}
