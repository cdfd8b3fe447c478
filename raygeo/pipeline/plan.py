"""From the entries of a study's ``runs`` to the runs themselves: what varies, what is chosen, and what it is called."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple, Optional, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
    model_validator,
)

from raygeo.data.sampling import DecodingSettings
from raygeo.losses.base import Loss
from raygeo.losses.registry import LOSSES, AnyLoss, unknown
from raygeo.models.lora import LoraSettings
from raygeo.naming import HELDOUT_NLL
from raygeo.search.configurations import Configuration, grid, sample
from raygeo.search.naming import describe
from raygeo.search.settings import SweepSettings
from raygeo.search.space import Choice, Domain, Place, Varied, below, refusal
from raygeo.settings import Name, Settings, content_key
from raygeo.training.settings import Reference, RunSpec, TrainingSettings

MOST_RUNS = 10_000
"""Runs of a study: more are not meant."""
MOST_STAGES, MOST_ROUNDS = 16, 1000
"""Stages and rounds of a run: more are not meant."""
WRITTEN = "runs"
"""The key of a validation context that is told, of each run entry, which one of the file it was written as."""
SEEDS: tuple[Place, ...] = (("seed",), ("init_seed",))
"""The seeds of a run; where they are lists, every configuration is trained with each."""

_LAST: tuple[Place, ...] = (("lr",), *SEEDS)
_ONE_OF = {"steps": "epochs", "epochs": "steps"}


class TrainingDefaults(Varied, TrainingSettings):
    """The training settings of every run that says nothing else; what varies here varies in every run."""


_overrides: dict[str, Any] = {
    name: (Optional[Annotated[info.annotation, Field(), *info.metadata]], Field(None, description=info.description))  # noqa: UP045
    for name, info in TrainingSettings.model_fields.items()
}
TrainingOverrides = create_model("TrainingOverrides", __base__=Settings, **_overrides)


class RoundSampling(Settings):
    """How the rollouts of a round are drawn from the run as it is then.

    What is left out is as ``rollouts.sample.decoding`` has it, where the study samples, or else as that is by default.
    """

    samples: int | None = Field(None, ge=1, le=1 << 16)
    """Completions per prompt."""
    temperature: float | None = Field(None, gt=0)
    """Softmax temperature."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest completion; one that has not ended by then is truncated, and marked so."""
    batch_size: int | None = Field(None, ge=1)
    """Completions decoded together; halved where memory runs out."""
    prompts_per_task: int | None = Field(None, ge=1)
    """Prompts per unit of work."""
    seed: int = Field(0, ge=0)
    """Seed of the draws and of the choice of prompts; each round has its own, made of it."""
    prompts: int | None = Field(None, ge=1)
    """How many of the study's training prompts a round takes, by default all: those that follow in a seeded order."""

    def decoding(self, default: DecodingSettings, number: int) -> DecodingSettings:
        """How completions of round ``number`` (from 1) are drawn; ``default`` holds what is not given here."""
        given = {name: value for name, value in self if name in DecodingSettings.model_fields and value is not None}
        own = {"seed": int(content_key("round", self.seed, number), 16) % 2**62, "top_logprobs": 0}
        return default.model_copy(update=given | own)


class _Entry(Varied, TrainingOverrides):
    """What an entry of ``runs`` and each of its stages may say."""

    renamed: ClassVar[dict[str, str]] = TrainingSettings.renamed
    foreign: ClassVar[dict[str, str]] = TrainingSettings.foreign | {
        "training": "is not written here: an entry takes its settings directly, as in lr: 1e-5 beside loss",
    }
    fixed: ClassVar[frozenset[str]] = frozenset({"loss", "name", "stages", "rounds", "sampling", "reference"})

    rounds: int | None = Field(None, ge=1, le=MOST_ROUNDS)
    """Train so many times on rollouts that are drawn from the run as it is then, and not on those of the study. Steps
    or epochs are those of one round."""
    sampling: RoundSampling | None = None
    """How the rollouts of rounds are drawn."""
    reference: Reference | None = None
    """What the loss compares with, where it compares: ``start``, the weights that the stage or round starts from, or
    ``base``, those of the study's student. By default the start of a stage, and in rounds the base."""

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A setting left out takes the study's default, which null would not."""
        return self._spread({name: value for name, value in handler(self).items() if name in self.model_fields_set})

    @property
    def given(self) -> set[str]:
        """The training settings in which the study's defaults have no say: steps replace epochs and the reverse."""
        replaced = {_ONE_OF[name] for name in self.model_fields_set & _ONE_OF.keys() if getattr(self, name) is not None}
        return (self.model_fields_set & TrainingSettings.model_fields.keys()) | replaced

    @model_validator(mode="after")
    def _sampled_in_rounds(self) -> Self:
        if self.sampling is not None and self.rounds is None:
            raise refusal(("sampling",), self.sampling, "it says how the rollouts of rounds are drawn; give rounds")
        return self


class StageEntry(_Entry):
    """A stage of a run: a loss, with whatever differs from the entry."""

    loss: AnyLoss
    """The loss and its options."""

    @model_validator(mode="wrap")
    @classmethod
    def _fixed(cls, raw: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        stage = handler(raw)
        for place, domain in stage.domains.items():
            said = "nothing varies within a stage; give one entry of runs for each value, which share what is the same"
            raise refusal(place, domain.plain(), said)
        return stage

    @property
    def label(self) -> str:
        """What the stage is called in the names of runs."""
        return stage_label(self.loss.label, self.rounds)


class RunEntry(_Entry):
    """A loss with its hyper-parameters, or several in stages: any training setting may be overridden, and any option
    of the entry may vary.
    """

    loss: AnyLoss | None = None
    """The loss and its options; left out where there are stages."""
    stages: Annotated[tuple[StageEntry, ...], Field(max_length=MOST_STAGES)] = ()
    """Train in stages, each from where the one before it ended: a list of losses, each with whatever differs from the
    entry. Runs that begin with the same stages train them once."""
    name: Name | None = None
    """A name to use instead of the loss's."""

    @model_validator(mode="after")
    def _one_loss(self) -> Self:
        if (self.loss is None) == (not self.stages):
            raise ValueError("give either loss, or stages, each with a loss of its own")
        if self.stages and (odd := sorted(self.model_fields_set & {"rounds", "sampling", "reference"})):
            raise refusal((odd[0],), getattr(self, odd[0]), "of a run in stages, each stage says this for itself")
        if len(self.stages) == 1:
            raise refusal(("stages",), list(self.stages), "one stage is a run; give loss instead, or a second stage")
        return self

    @property
    def parts(self) -> tuple["_Entry", ...]:
        """The stages, or the entry itself as the only one."""
        return self.stages or (self,)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The loss of each stage."""
        return tuple(loss for part in self.parts if (loss := getattr(part, "loss", None)) is not None)

    @property
    def stem(self) -> str:
        """What the names of its runs begin with."""
        labels = (stage_label(loss.label, part.rounds) for loss, part in zip(self.losses, self.parts, strict=True))
        return self.name or "+".join(labels)

    @property
    def is_chain(self) -> bool:
        """Whether its runs are trained in several stages, or in rounds."""
        return bool(self.stages) or self.rounds is not None

    def space(self, defaults: TrainingDefaults) -> dict[Place, Domain]:
        """All that varies in the entry or, where it says nothing, in ``defaults``; learning rate and seeds last."""
        merged = {place: domain for place, domain in defaults.domains.items() if place[0] not in self.given}
        merged |= self.domains
        return {place: merged[place] for place in (*(p for p in merged if p not in _LAST), *_LAST) if place in merged}

    def listed_twice(self, defaults: TrainingDefaults, place: tuple[str, int]) -> Iterator[tuple[str | int, ...]]:
        """Where a value is listed more than once: in this entry, which is at ``place``, or in ``defaults``."""
        for where, domain in self.space(defaults).items():
            if isinstance(domain, Choice) and len({*map(repr, domain.values)}) < len(domain.values):
                yield (*(place if where[0] in self.own else ("training",)), *where)

    def resolve(self, defaults: TrainingDefaults, values: Configuration) -> tuple["PlannedStage", ...]:
        """The stages of the run with ``values`` for all that varies, named after the entry."""
        training = defaults.at({place: value for place, value in values.items() if place[0] not in self.own})
        own = self.at({place: value for place, value in values.items() if place[0] in self.own})
        training |= dict.fromkeys(self.given) | {name: own[name] for name in own.keys() & self.given}
        found: list[PlannedStage] = []
        for part in self.parts:
            written = part.model_dump()
            loss = own["loss"] if part is self else written["loss"]
            settings = training
            if part is not self:
                settings = training | dict.fromkeys(part.given) | {n: written[n] for n in written.keys() & part.given}
            if part.rounds is not None:
                settings = settings | {"snapshots": 0}  # the delta after each round is kept
            reference = part.reference or ("start" if part.rounds is None else "base")
            if not found and part.rounds is None:
                reference = "start"  # which is the base
            plain = {"name": self.stem, "loss": loss, "training": settings, "reference": reference}
            try:
                spec = RunSpec.model_validate(plain)
            except ValidationError as error:
                above = () if part is self else ("stages", len(found))
                raise below(above, error, without=("training",)) from None
            found.append(PlannedStage(spec, part.rounds, part.sampling or RoundSampling()))
        return tuple(found)

    @property
    def own(self) -> set[str]:
        """What of all that varies is said here, and not by the study's defaults."""
        return self.given | {"loss"}


_GROUPED = {name: loss for name, loss in LOSSES.items() if loss.in_groups}
ALL: Mapping[str, tuple[str, ...]] = {
    "all": tuple(_GROUPED),
    "pointwise": tuple(name for name, loss in _GROUPED.items() if loss().unit != "pair"),
    "pairwise": tuple(name for name, loss in _GROUPED.items() if loss().unit == "pair"),
}
"""What may stand for a loss in an entry, which is then one of each of these losses as it is by default: every loss,
those on single rollouts, those on pairs. ``except`` beside it lists losses to leave out."""


def _expanded(raw: Any, handler: ValidatorFunctionWrapHandler) -> tuple[RunEntry, ...]:
    """The entries that one in the file stands for."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("loss"), str):
        return (handler(raw),)
    rest = dict(raw)
    which, left_out = rest.pop("loss"), rest.pop("except", [])
    if which not in ALL:
        raise refusal(("loss",), which, f"a loss is written {{type: {which}}}; {', '.join(ALL)} stand for several")
    if not isinstance(left_out, list):
        raise refusal(("except",), left_out, "give a list of types of losses")
    for name in left_out:
        if name not in [*LOSSES]:
            raise refusal(("except",), left_out, unknown(name))
    if rest.get("name") is not None:
        raise refusal(("name",), rest["name"], f"one name cannot be that of {which} losses; leave it out")
    return tuple(handler({"loss": {"type": name}, **rest}) for name in ALL[which] if name not in left_out)


def _joined(entries: Sequence[tuple[RunEntry, ...]], info: ValidationInfo) -> tuple[RunEntry, ...]:
    if info.context is not None:
        info.context[WRITTEN] = [place for place, several in enumerate(entries) for _ in several]
    return tuple(entry for several in entries for entry in several)


RunEntries = Annotated[
    tuple[Annotated[RunEntry, WrapValidator(_expanded)], ...], AfterValidator(_joined), Field(min_length=1)
]
"""The entries of a study; ``loss: all`` is written out as one for every loss."""


@dataclass(frozen=True)
class PlannedStage:
    """How a stage is trained: once on the study's rollouts, or in rounds on those that are sampled for each."""

    spec: RunSpec
    rounds: int | None
    sampling: RoundSampling

    @property
    def label(self) -> str:
        """What the stage is called."""
        return stage_label(self.spec.loss.label, self.rounds)

    @property
    def specs(self) -> list[RunSpec]:
        """One for each training: each round is one."""
        if self.rounds is None:
            return [self.spec]
        return [_renamed(self.spec, f"{self.spec.name}-round{number}") for number in range(1, self.rounds + 1)]


@dataclass(frozen=True)
class PlannedRun:
    """A run, and what was chosen for everything that varies in the entry of ``runs`` with index ``entry``."""

    entry: int
    values: Configuration
    name: str
    stages: tuple[PlannedStage, ...]

    @property
    def spec(self) -> RunSpec:
        """The last stage, under the run's name: that of a run with no other."""
        return _renamed(self.stages[-1].spec, self.name)

    @property
    def is_chain(self) -> bool:
        """Whether it is trained in several stages, or in rounds."""
        return len(self.stages) > 1 or self.stages[0].rounds is not None

    @property
    def trainings(self) -> list[RunSpec]:
        """One for each stage and round that is trained."""
        return [spec for stage in self.stages for spec in stage.specs]

    @property
    def adapters(self) -> LoraSettings | None:
        """The adapters that all stages and rounds together are; None where one trains all weights."""
        trained = [spec.training.lora for spec in self.trainings]
        known = [lora for lora in trained if lora is not None]
        return known[-1].model_copy(update={"r": sum(lora.r for lora in known)}) if len(known) == len(trained) else None

    @property
    def names(self) -> set[str]:
        """All names: those under which it is measured, and those of its trainings."""
        return {*self.shown, *(spec.name for spec in self.trainings)}

    @property
    def shown(self) -> list[str]:
        """Names under which it is measured: its own, and those of its stages if it has several."""
        return [self.name, *([stage.spec.name for stage in self.stages] if len(self.stages) > 1 else [])]


def described(stage: PlannedStage) -> dict[str, Any]:
    """A stage as plain data, as ``RunRecord.stages`` hold it."""
    loss, training = (settings.model_dump(mode="json") for settings in (stage.spec.loss, stage.spec.training))
    plain = {"label": stage.label, "loss": loss, "training": training, "reference": stage.spec.reference}
    if stage.rounds is None:
        return plain
    return plain | {"rounds": stage.rounds, "sampling": stage.sampling.model_dump(mode="json")}


def stage_label(loss: str, rounds: int | None) -> str:
    """What a stage is called: ``sft``, ``grpo-3rounds``."""
    return loss if rounds is None else f"{loss}-{rounds}rounds"


class _Point(NamedTuple):
    """A training: whether it is among those that are ``learning``, and ``referring``."""

    spec: RunSpec
    learns: bool
    refers: bool


@dataclass(frozen=True)
class Plan:
    """The runs of a study: its entries, the defaults they share, and how values are chosen.

    ``places`` says of each entry which one of the file it was written as, where these differ.
    """

    entries: Sequence[RunEntry]
    defaults: TrainingDefaults
    sweep: SweepSettings
    places: Sequence[int] = ()

    def place(self, index: int) -> tuple[str, int]:
        """Where an entry is written."""
        return "runs", (self.places or range(len(self.entries)))[index]

    def trials(self) -> list[PlannedRun]:
        """Every run that is known before training starts, in the order of the entries.

        A search by Optuna chooses the runs of entries that vary as it goes: these are not among them.
        """
        return [
            trial
            for index in range(len(self.entries))
            for configuration in self._configurations(index)
            for trial in self.runs_of(index, configuration)
        ]

    def points(self) -> list[RunSpec]:
        """Runs that together need whatever a run may need: the known ones and, in entries whose runs are yet to be
        chosen, one for each value of a list and each end of a range. Stages that runs share are there once.
        """
        return [point.spec for point in self._points()]

    def learning(self) -> list[RunSpec]:
        """Those of the points that learn from the study's rollouts, and not in rounds from their own."""
        return [point.spec for point in self._points() if point.learns]

    def referring(self) -> list[RunSpec]:
        """Those of the points that learn from the study's rollouts and compare with the study's student, if they do."""
        return [point.spec for point in self._points() if point.refers]

    def _points(self) -> list[_Point]:
        """The points, and of which kinds each is."""
        shared: dict[tuple[str, ...], _Point] = {}
        for trial in self.trials():
            so_far: tuple[str, ...] = ()
            for number, stage in enumerate(trial.stages):
                refers = stage.rounds is None and (number == 0 or stage.spec.reference == "base")
                for spec in stage.specs:
                    what = [spec.model_dump_json(exclude={"name"}), str(stage.rounds), stage.sampling.model_dump_json()]
                    so_far = (*so_far, "".join(what))
                    shared.setdefault(so_far, _Point(spec, stage.rounds is None, refers))
        points = list(shared.values())
        for index in self.open_entries():
            space = self.searched(index)
            first = {place: _extremes(domain)[0] for place, domain in space.items()}
            for configuration in (first | {p: value} for p, domain in space.items() for value in _extremes(domain)):
                points += [_Point(trial.spec, True, True) for trial in self.runs_of(index, configuration)[:1]]
        return points

    def count(self) -> int:
        """How many runs ``trials`` lists, at most."""
        found = 0
        for index, entry in enumerate(self.entries):
            space = entry.space(self.defaults)
            sizes = {place: len(domain.values) for place, domain in space.items() if isinstance(domain, Choice)}
            seeds = math.prod(size for place, size in sizes.items() if _crossed(place, space[place]))
            chosen = math.prod(sizes.values()) // seeds
            if self.sweep.search != "grid" and self.searched(index):
                chosen = self.sweep.samples
            found += seeds * chosen
        return found

    def open_entries(self) -> list[int]:
        """Indices of the entries whose runs are chosen while the sweep runs."""
        return [i for i in range(len(self.entries)) if self.sweep.search == "optuna" and self.searched(i)]

    def searched(self, index: int) -> dict[Place, Domain]:
        """What is chosen in an entry: all that varies but its seeds, which are all trained."""
        space = self.entries[index].space(self.defaults)
        return {place: domain for place, domain in space.items() if not _crossed(place, domain)}

    def runs_of(self, index: int, configuration: Configuration) -> list[PlannedRun]:
        """The runs of one configuration of an entry, one for each of its seeds.

        Raises:
            pydantic.ValidationError: what the entry says does not go with what the study's defaults say.
        """
        entry = self.entries[index]
        space = entry.space(self.defaults)
        trials = []
        for seeds in grid({place: domain for place, domain in space.items() if _crossed(place, domain)}):
            values = configuration | seeds
            try:
                stages = entry.resolve(self.defaults, values)
            except ValidationError as error:
                raise below(self.place(index), error) from None
            stages = tuple(replace(stage, spec=self._watched(stage.spec)) for stage in stages)
            trials.append(PlannedRun(index, values, entry.stem, stages))
        if entry.name is None or space:
            chosen = describe({place: value for place, value in configuration.items() if place not in _LAST})
            trials = [replace(trial, name=_full_name(trial, chosen)) for trial in trials]
        return [_with_named_stages(trial) for trial in trials]

    def _watched(self, spec: RunSpec) -> RunSpec:
        """The run with its held-out NLL measured as often as the scheduler wants to see it."""
        scheduler = self.sweep.scheduler
        if scheduler is None or scheduler.metric != HELDOUT_NLL or spec.training.eval_every is not None:
            return spec
        training = spec.training.model_copy(update={"eval_every": scheduler.grace})
        return spec.model_copy(update={"training": training})

    def _configurations(self, index: int) -> list[Configuration]:
        space = self.searched(index)
        if not space or self.sweep.search == "grid":
            return grid(space)
        if self.sweep.search == "random":
            return sample(space, self.sweep.samples, self.sweep.seed)
        return []


def _crossed(place: Place, domain: Domain) -> bool:
    return place in SEEDS and isinstance(domain, Choice)


def _extremes(domain: Domain) -> Sequence[Any]:
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


def _full_name(trial: PlannedRun, chosen: str) -> str:
    """Name a run as in ``dpo-beta0.1-lr5e-05-s0``: loss, choices, learning rate, data seed, adapter seed if not 0.

    Where stages differ in one of these, theirs are joined by ``+``.
    """
    trainings = [stage.spec.training for stage in trial.stages]
    parts = [trial.name, *([chosen] if chosen else [])]
    parts.append("lr" + "+".join(dict.fromkeys(f"{training.lr:g}" for training in trainings)))
    parts.append("s" + "+".join(dict.fromkeys(str(training.seed) for training in trainings)))
    inits = [training.init_seed for training in trainings if training.lora is not None]
    if any(inits):
        parts.append("i" + "+".join(dict.fromkeys(map(str, inits))))
    return "-".join(parts)


def _with_named_stages(trial: PlannedRun) -> PlannedRun:
    """The run with each of several stages named ``<run>-leg1`` and so on, and the only one as the run."""
    several = len(trial.stages) > 1
    named = (f"{trial.name}-leg{number}" if several else trial.name for number in range(1, len(trial.stages) + 1))
    stages = (replace(stage, spec=_renamed(stage.spec, name)) for stage, name in zip(trial.stages, named, strict=True))
    return replace(trial, stages=tuple(stages))


def _renamed(spec: RunSpec, name: str) -> RunSpec:
    return spec.model_copy(update={"name": name})
