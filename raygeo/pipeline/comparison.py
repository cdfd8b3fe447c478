"""What is compared, and how: the settings of ``raygeo compare``, from the command line or from a file."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from raygeo.analyses.analysis import Need
from raygeo.analyses.registry import analyses
from raygeo.cluster.settings import ActorSettings
from raygeo.data.readers.jsonl import JsonlReader
from raygeo.errors import ConfigError
from raygeo.generation.renderer import ChatSettings
from raygeo.models.loading import Loading
from raygeo.paths import local_path
from raygeo.pipeline.config import (
    GeometrySettings,
    Overrides,
    ProbeSettings,
    Written,
    find_own,
    parse_written,
    read_written,
)
from raygeo.report.typeset import counted
from raygeo.search.space import refusal
from raygeo.settings import AnyPlace, Name, Settings
from raygeo.tables import BASE

AnyModel = str | PathLike
"""A folder or a hub id."""
AnyModels = AnyModel | Sequence[AnyModel] | Mapping[str, AnyModel]
"""Models, or one; by name, or named after their folders."""


class Trained(Settings):
    """How a model was trained, by the word of who trained it: those of one loss and rate differ in seeds alone."""

    loss: Name
    """A name of the loss, one of raygeo's or any other."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    seed: int = Field(0, ge=0)
    """Seed of the data order."""
    init_seed: int = Field(0, ge=0)
    """Seed of the adapter initialisation."""


class Compared(Settings):
    """One of the models."""

    name: Name
    """Its name in tables and figures."""
    model: str
    """A folder or a hub id of a complete model, a PEFT LoRA adapter, or a full delta of raygeo's."""
    trained: Trained | None = None
    """How it was trained, where that is known; then cosines stand beside those of other seeds, and losses are told
    apart."""


class Comparison(Settings):
    """What is compared, and how."""

    base: str
    """The model they were trained from, a folder or a hub id."""
    models: tuple[Compared, ...] = Field(min_length=1)
    """The models."""
    store: AnyPlace = "store/comparison"
    """Where tables and the page go: a path or a URI. It holds no study."""
    solutions: JsonlReader | None = None
    """Texts on which likelihood, representations and curvature are measured, each with a prompt and a completion."""
    chat: ChatSettings = ChatSettings()
    """How they are put to the models: as they are, or in the chat template of the base's tokenizer."""
    probes: ProbeSettings = ProbeSettings()
    """How many of them."""
    geometry: GeometrySettings
    """The analyses; those that need what a comparison lacks are off unless asked for."""
    student: Loading = Loading()
    """How models are held where they are measured."""
    actors: ActorSettings = ActorSettings()
    """Resources of the actors."""
    reference_run: str | None = None
    """The model others are compared with in summaries; by default the first."""

    @model_validator(mode="before")
    @classmethod
    def _without(cls, raw: Any) -> Any:
        """Switch off the analyses that there is nothing for."""
        if not isinstance(raw, dict) or not isinstance(raw.get("geometry", {}), dict):
            return raw
        lacks = lacking(raw.get("solutions") is not None)
        off: list[str] = []
        for name, analysis in analyses(own=()).items():
            if analysis.needs & lacks.keys() or set(analysis.after) & set(off):
                off.append(name)
        return raw | {"geometry": dict.fromkeys(off) | raw.get("geometry", {})}

    @model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        names = [compared.name for compared in self.models]
        for index, name in enumerate(names):
            place = ("models", index, "name")
            if name in names[:index]:
                raise refusal(place, name, f"{name} names more than one model; give each a --name of its own")
            if name == BASE:
                said = f"a model cannot be named {BASE!r}, which is what all are compared with; use --name"
                raise refusal(place, name, said)
        if self.reference_run is not None and self.reference_run not in names:
            said = f"the reference {self.reference_run!r} is none of {', '.join(names)}"
            raise refusal(("reference_run",), self.reference_run, said)
        self.geometry.refuse_lacking(lacking(self.solutions is not None))
        return self

    @property
    def reference(self) -> str:
        """Name of the model that others are compared with."""
        return self.reference_run or self.models[0].name

    @property
    def described(self) -> list[str]:
        """Names of the models of which it is said how they were trained."""
        return [compared.name for compared in self.models if compared.trained is not None]


def lacking(solutions: bool) -> dict[Need, str]:
    """What a comparison lacks, and what to do about it; ``solutions`` says whether texts were given."""
    lacks: dict[Need, str] = {"training": "needs what models were trained with, which is not known; leave it out"}
    if not solutions:
        lacks["solutions"] = "is measured on texts; give --solutions, a file of JSON lines"
    return lacks


def plan_comparison(
    base: AnyModel,
    models: AnyModels,
    *,
    names: Sequence[str] = (),
    store: "str | PathLike[str] | None" = None,
    solutions: "str | PathLike[str] | None" = None,
    reference: str | None = None,
    overrides: Overrides = (),
) -> Comparison:
    """Make settings of what was said on the command line; ``overrides`` go before the other settings.

    Without ``names`` or a mapping by names, models are called after their folders, with as much of the path as tells
    them apart. Without ``solutions``, the analyses that need texts are off.

    Raises:
        ConfigError: naming what is wrong.
    """
    if isinstance(models, Mapping):
        names, models = list(models), list(models.values())
    elif isinstance(models, AnyModel):
        models = [models]
    elif isinstance(models, Iterable):
        models = list(models)
    if not isinstance(models, Sequence) or not all(isinstance(model, AnyModel) for model in [base, *models]):
        raise ConfigError(
            "models, and the base that they were trained from, are given as folders or hub ids, each a text or a path."
        )
    if not models:
        raise ConfigError(
            f"there is nothing to compare with {str(base)!r}; give models that were trained from it, as in "
            "raygeo compare BASE MODEL MODEL, or a file that has base and models, and whose name ends in .yaml."
        )
    if names and len(names) != len(models):
        raise ConfigError(
            f"there are {counted(len(models), 'model')} and {counted(len(names), 'name')}; give --name once for each, "
            "or never."
        )
    called = list(names) or name_models([str(model) for model in models])
    raw = {
        "base": str(base),
        "models": [{"name": name, "model": str(model)} for name, model in zip(called, models, strict=True)],
    }
    written = Written("raygeo compare", raw)
    said = {"store": store, "reference_run": reference, "solutions": None if solutions is None else {"path": solutions}}
    written.override({}, said)
    written.override(overrides, {})
    find_own(written.raw)
    return parse_written(Comparison, written)


def load_comparison(
    path: str,
    *,
    store: str | None = None,
    solutions: str | None = None,
    reference: str | None = None,
    overrides: Overrides = (),
) -> Comparison:
    """Read a comparison from a file; what was said on the command line goes before it.

    Raises:
        ConfigError: naming what is wrong.
    """
    written = read_written(path, "comparison")
    if written.raw.keys() & {"rollouts", "runs"} and not written.raw.keys() & {"base", "models"}:
        raise ConfigError(f"{path!r} holds a study; run it by raygeo run {path}.")
    said = {"store": store, "reference_run": reference, "solutions": None if solutions is None else {"path": solutions}}
    written.override(overrides, said)
    find_own(written.raw, path)
    return parse_written(Comparison, written)


def name_models(models: Sequence[str]) -> list[str]:
    """Name models after the ends of their paths, one part of the path or as many as make all names different.

    Raises:
        ConfigError: a model is given twice.
    """
    try:
        paths = [local_path(model) for model in models]
        parts = [(path.resolve() if path.is_dir() else path).parts for path in paths]
    except (ValueError, OSError) as error:
        raise ConfigError(f"a model of raygeo compare cannot be found: {error}.") from error
    [(most, count)] = Counter(parts).most_common(1)
    if count > 1:
        raise ConfigError(f"{Path(*most)} is given {count} times; compare each model once.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part.strip("/") for part in path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names
