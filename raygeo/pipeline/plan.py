"""From the entries of a study's ``runs`` to the runs themselves: what varies, what is chosen, and what it is called."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Optional

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
)

from raygeo.losses.registry import LOSSES, AnyLoss, unknown
from raygeo.search.configurations import Configuration, grid, sample
from raygeo.search.naming import describe
from raygeo.search.settings import SweepSettings
from raygeo.search.space import Choice, Domain, Place, Varied, refusal
from raygeo.settings import Name, Settings
from raygeo.training.settings import RunSpec, TrainingSettings

MOST_RUNS = 10_000
"""Runs of a study: more are not meant."""
SEEDS: tuple[Place, ...] = (("seed",), ("init_seed",))
"""The seeds of a run; where they are lists, every configuration is trained with each."""

_LAST: tuple[Place, ...] = (("lr",), *SEEDS)
_ONE_OF = {"steps": "epochs", "epochs": "steps"}


class TrainingDefaults(Varied, TrainingSettings):
    """The training settings of every run that says nothing else; what varies here varies in every run."""


_overrides: dict[str, Any] = {
    name: (Optional[info.annotation], Field(None, description=info.description))  # noqa: UP045
    for name, info in TrainingSettings.model_fields.items()
}
TrainingOverrides = create_model("TrainingOverrides", __base__=Settings, **_overrides)


class RunEntry(Varied, TrainingOverrides):
    """A loss with its hyper-parameters: any training setting may be overridden, and any option may vary."""

    renamed: ClassVar[dict[str, str]] = TrainingSettings.renamed
    foreign: ClassVar[dict[str, str]] = TrainingSettings.foreign
    fixed: ClassVar[frozenset[str]] = frozenset({"loss", "name"})

    loss: AnyLoss
    """The loss and its options."""
    name: Name | None = None
    """A name to use instead of the loss's."""

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A setting left out takes the study's default, which null would not."""
        return self._spread({name: value for name, value in handler(self).items() if name in self.model_fields_set})

    @property
    def given(self) -> set[str]:
        """The training settings in which the study's defaults have no say: steps replace epochs and the reverse."""
        replaced = {_ONE_OF[name] for name in self.model_fields_set & _ONE_OF.keys() if getattr(self, name) is not None}
        return self.model_fields_set | replaced

    def space(self, defaults: TrainingDefaults) -> dict[Place, Domain]:
        """All that varies in the entry or, where it says nothing, in ``defaults``; learning rate and seeds last."""
        merged = {place: domain for place, domain in defaults.domains.items() if place[0] not in self.given}
        merged |= self.domains
        return {place: merged[place] for place in (*(p for p in merged if p not in _LAST), *_LAST) if place in merged}

    def resolve(self, defaults: TrainingDefaults, values: Configuration) -> RunSpec:
        """The run with ``values`` for all that varies, named after the entry."""
        training = defaults.at({place: value for place, value in values.items() if place[0] not in self.given})
        own = self.at({place: value for place, value in values.items() if place[0] in self.given})
        loss, name = own.pop("loss"), own.pop("name", None) or self.loss.type
        training |= dict.fromkeys(self.given - {"loss", "name"}) | own
        return RunSpec.model_validate({"name": name, "loss": loss, "training": training})


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


def _joined(entries: Sequence[tuple[RunEntry, ...]]) -> tuple[RunEntry, ...]:
    return tuple(entry for several in entries for entry in several)


RunEntries = Annotated[
    tuple[Annotated[RunEntry, WrapValidator(_expanded)], ...], AfterValidator(_joined), Field(min_length=1)
]
"""The entries of a study; ``loss: all`` is written out as one for every loss."""


@dataclass(frozen=True)
class PlannedRun:
    """A run, and what was chosen for everything that varies in the entry of ``runs`` with index ``entry``."""

    entry: int
    values: Configuration
    spec: RunSpec

    @property
    def name(self) -> str:
        """The run's name."""
        return self.spec.name


@dataclass(frozen=True)
class Plan:
    """The runs of a study: its entries, the defaults they share, and how values are chosen."""

    entries: Sequence[RunEntry]
    defaults: TrainingDefaults
    sweep: SweepSettings

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
        chosen, one for each value of a list and each end of a range.
        """
        points = [trial.spec for trial in self.trials()]
        for index in self.open_entries():
            space = self.searched(index)
            first = {place: _extremes(domain)[0] for place, domain in space.items()}
            for configuration in (first | {p: value} for p, domain in space.items() for value in _extremes(domain)):
                points += [trial.spec for trial in self.runs_of(index, configuration)[:1]]
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
        """The runs of one configuration of an entry, one for each of its seeds."""
        entry = self.entries[index]
        space = entry.space(self.defaults)
        trials = []
        for seeds in grid({place: domain for place, domain in space.items() if _crossed(place, domain)}):
            values = configuration | seeds
            trials.append(PlannedRun(index, values, self._watched(entry.resolve(self.defaults, values))))
        if entry.name is not None and not space:
            return trials
        chosen = describe({place: value for place, value in configuration.items() if place not in _LAST})
        return [replace(trial, spec=_named(trial.spec, chosen)) for trial in trials]

    def _watched(self, spec: RunSpec) -> RunSpec:
        """The run with its held-out NLL measured as often as the scheduler wants to see it."""
        if self.sweep.scheduler is None or spec.training.eval_every is not None:
            return spec
        training = spec.training.model_copy(update={"eval_every": self.sweep.scheduler.grace})
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


def _named(spec: RunSpec, chosen: str) -> RunSpec:
    """Name the run as in ``dpo-beta0.1-lr5e-05-s0``: loss, choices, learning rate, data seed, adapter seed if not 0."""
    training = spec.training
    parts = [spec.name, *([chosen] if chosen else []), f"lr{training.lr:g}", f"s{training.seed}"]
    if training.lora is not None and training.init_seed:
        parts.append(f"i{training.init_seed}")
    return spec.model_copy(update={"name": "-".join(parts)})
