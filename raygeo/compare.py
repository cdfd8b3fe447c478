"""Checkpoints and adapters compared without a study: the analyses of a study, its store and its page."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.session import connect
from raygeo.cluster.settings import ActorSettings
from raygeo.config import LEARNED, MEASURED, GeometrySettings, ProbeSettings, apply_override, parse_settings
from raygeo.errors import ConfigError, DataError, DeltaError, RaygeoError
from raygeo.geometry.weights.norms import BaseWeights
from raygeo.progress import Progress, StageTime, stage_table
from raygeo.report.page import PageContext
from raygeo.rollouts.readers import JsonlReader
from raygeo.rollouts.validation import Rejection, required_text
from raygeo.settings import Settings, content_key
from raygeo.stages.context import Workbench, timed_stage
from raygeo.stages.geometry import Material, analyse
from raygeo.stages.probes import PROBES, save_probes
from raygeo.stages.report import now, save_page, versions
from raygeo.stages.rollouts import context_length
from raygeo.stages.student import KIND, find_model, hash_folder, link_folder
from raygeo.store import AnyPath, Store
from raygeo.students.checkpoint import Checkpoint, is_model
from raygeo.students.delta import ADAPTER_CONFIG, open_delta
from raygeo.students.encoding import encode
from raygeo.students.loading import load_tokenizer
from raygeo.students.run import Run
from raygeo.tables import BASE, SCHEMAS

DELTAS = "deltas"
SETTINGS = "comparison.yaml"

PURPOSE = "Models that were fine-tuned from one base are compared by their weights."
UNKNOWN = (
    "How the models were trained is not known here, neither their losses and learning rates nor their seeds and data, "
    "so no difference between them can be put down to any of these."
)
NOT_ASKED = (
    "Only weights were compared: no solutions were given, so what needs texts (paths between models, representations, "
    "curvature) was not asked for and is missing."
)


class Compared(Settings):
    """One of the models."""

    name: str = Field(min_length=1)
    """Its name in tables and figures."""
    model: str
    """A folder or a hub id of a complete model, a PEFT LoRA adapter, or a full delta of raygeo's."""


class Comparison(Settings):
    """What is compared, and how."""

    base: str
    """The model they were trained from, a folder or a hub id."""
    models: tuple[Compared, ...] = Field(min_length=1)
    """The models."""
    store: str = "store/comparison"
    """Where tables and the page go: a path or a URI. It holds no study."""
    solutions: JsonlReader | None = None
    """Texts on which likelihood, representations and curvature are measured, each with a prompt and a completion."""
    probes: ProbeSettings = ProbeSettings()
    """How many of them."""
    geometry: GeometrySettings = GeometrySettings(coherence=None)
    """The analyses."""
    actors: ActorSettings = ActorSettings()
    """Resources of the actors."""
    reference_run: str | None = None
    """The model others are compared with in summaries; by default the first."""

    @model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        names = [compared.name for compared in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} names more than one model; give each a --name of its own")
        if BASE in names:
            raise ValueError(f"a model cannot be named {BASE!r}, which is what all are compared with; use --name")
        if self.reference_run is not None and self.reference_run not in names:
            raise ValueError(f"the reference {self.reference_run!r} is none of {', '.join(names)}")
        asked = [name for name in MEASURED if getattr(self.geometry, name) is not None]
        if asked and self.solutions is None:
            raise ValueError(f"geometry.{asked[0]} is measured on texts; give --solutions, a file of JSON lines")
        unknown = [name for name in LEARNED if getattr(self.geometry, name) is not None]
        if unknown:
            raise ValueError(f"geometry.{unknown[0]} needs the losses that models were trained with; leave it out")
        return self

    @property
    def reference(self) -> str:
        """Name of the model that others are compared with."""
        return self.reference_run or self.models[0].name


def plan_comparison(
    base: str,
    models: Sequence[str],
    *,
    names: Sequence[str] = (),
    store: str | None = None,
    solutions: str | None = None,
    reference: str | None = None,
    overrides: Sequence[str] = (),
) -> Comparison:
    """Make settings of what was said on the command line; ``overrides`` are ``a.b=c`` over the other settings.

    Without ``names``, models are called after their folders, with as much of the path as tells them apart. Without
    ``solutions``, the analyses that need texts are off.

    Raises:
        ConfigError: naming what is wrong.
    """
    if names and len(names) != len(models):
        raise ConfigError(
            f"there are {len(models)} models and {len(names)} names; give --name once for each, or never."
        )
    called = list(names) or name_models(models)
    raw: dict[str, Any] = {
        "base": base,
        "models": [{"name": name, "model": model} for name, model in zip(called, models, strict=True)],
        "reference_run": reference,
    }
    if store is not None:
        raw["store"] = store
    if solutions is not None:
        raw["solutions"] = {"path": solutions}
    for override in overrides:
        apply_override(raw, override)
    off = LEARNED if solutions is not None else (*LEARNED, *MEASURED)
    raw["geometry"] = dict.fromkeys(off) | raw.get("geometry", {})
    return parse_settings(Comparison, raw, "raygeo compare")


def name_models(models: Sequence[str]) -> list[str]:
    """Name models after the ends of their paths, one part of the path or as many as make all names different.

    Raises:
        ConfigError: a model is given twice.
    """
    paths = [Path(model).expanduser() for model in models]
    parts = [(path.resolve() if path.is_dir() else path).parts for path in paths]
    [(most, count)] = Counter(parts).most_common(1)
    if count > 1:
        raise ConfigError(f"{Path(*most)} is given {count} times; compare each model once.")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part.strip("/") for part in path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def compare_models(comparison: Comparison, *, address: str | None = None, progress: Progress | None = None) -> Store:
    """Compare models: whatever the store lacks is made, and the rest is taken from there. Returns the store.

    ``address`` names a running Ray cluster.

    Raises:
        RaygeoError: what is wrong and what to do about it; everything finished before stays in the store.
    """
    progress = progress or Progress()
    store = Store(comparison.store)
    if store.read_bytes("study.yaml") is not None:
        raise ConfigError(f"{store.location} holds a study, whose tables would be lost; give another --store.")
    settings = yaml.safe_dump(comparison.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    store.write_bytes(SETTINGS, settings.encode())
    times: list[StageTime] = []
    with timed_stage("start", times, progress, None):
        connect(address)
    with ActorPool(comparison.actors) as pool:
        bench = Workbench(store, pool, progress)
        with timed_stage("models", times, progress, bench):
            models = _provide(bench, comparison)
        with timed_stage("geometry", times, progress, bench):
            analyse(bench, _material(bench, comparison, models))
        page = PageContext(
            title=f"{len(models.runs) - 1} models and their base",
            student=f"Base: {comparison.base}",
            reference_run=comparison.reference,
            created=now(),
            settings_yaml=settings,
            versions=versions(),
            timings=[(t.stage, t.seconds, t.made, t.reused) for t in times],
            caveats=[UNKNOWN, *([] if comparison.solutions else [NOT_ASKED]), *models.unchecked],
            purpose=PURPOSE,
        )
        path, _, _ = save_page(store, page)
    progress.say(f"\nreport:  {path}")
    progress.console.print(stage_table(times))
    return store


# -- models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Models:
    """The base in the store and its key, the runs with it first, and sentences about what could not be checked."""

    key: str
    base: AnyPath
    runs: list[Run]
    unchecked: list[str]


def _provide(bench: Workbench, comparison: Comparison) -> _Models:
    """Put the base and the models into the store, refuse those that do not belong together, and publish the runs."""
    store = bench.store
    sources = [find_model(model) for model in (comparison.base, *(compared.model for compared in comparison.models))]
    with ThreadPoolExecutor() as threads:
        base_key, *keys = threads.map(hash_folder, sources)
    weights = BaseWeights(sources[0])
    base = store.stored(KIND, base_key)
    runs, rows, unchecked = [Run(BASE, content_key(base_key, BASE), None)], [], []
    for compared, key, source in zip(comparison.models, keys, sources[1:], strict=True):
        try:
            delta = open_delta(source, weights)
            for name, entry in delta.items():
                weights.check(name, entry)
        except RaygeoError as error:
            raise type(error)(f"{compared.name}: {error}") from error
        if delta.low_rank:
            unchecked += _check_lineage(compared.name, source, comparison.base, weights)
        whole = delta.base is not None
        run_key = content_key("compared", base_key, key)
        runs.append(Run(compared.name, run_key, store.stored(DELTAS, key), base=base if whole else None))
        about = {"model": compared.model, "stored": _stored_as(Checkpoint(source)) if whole else None}
        row = {"run": compared.name, "status": "finished", "delta": store.path(DELTAS, key), "key": run_key}
        rows.append(row | {"params": json.dumps(about), "student": base_key})
    for kind, key, source in zip((KIND, *[DELTAS] * len(keys)), (base_key, *keys), sources, strict=True):
        known = store.has_folder(kind, key)
        if not known:
            link_folder(store, kind, key, source)
        bench.count(not known, known)
    for table in SCHEMAS:  # an earlier comparison in this store may have asked for more
        store.publish(table, [])
    unit = content_key("compared-runs", rows)
    store.write_unit(unit, {"runs": rows})
    store.publish("runs", [unit])
    return _Models(base_key, base, runs, unchecked)


def _check_lineage(name: str, adapter: Path, base: str, weights: Checkpoint) -> list[str]:
    """Refuse an adapter that says it was trained from another base; say so where its word cannot be checked."""
    said = json.loads((adapter / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    if said == base:
        return []
    folder = Path(said or "").expanduser()
    if said and is_model(folder):
        if folder.resolve() != weights.folder.resolve() and not weights.equals(Checkpoint(folder)):
            raise DeltaError(f"{name} was trained from {said}, whose weights are not those of {base}; give that base.")
        return []
    if said and not Path(base).expanduser().is_dir():
        raise DeltaError(
            f"{name} says that it was trained from {said}, and not from {base}. Give the base it names; if both are "
            "the same weights, give the folder of one."
        )
    named = f"names {said} as its base" if said else "does not name its base"
    return [f"{name} {named}; that {base} is what it was trained from was checked by names and shapes alone."]


def _stored_as(model: Checkpoint) -> str:
    """The dtype that most numbers of a model are stored in."""
    sizes: Counter[str] = Counter()
    for name in model.names():
        sizes[model.dtype(name)] += math.prod(model.shape(name))
    return sizes.most_common(1)[0][0]


# -- what they are measured on ------------------------------------------------------------------------------------


def _material(bench: Workbench, comparison: Comparison, models: _Models) -> Material:
    return Material(
        geometry=comparison.geometry,
        store=bench.store,
        base=models.base,
        runs=models.runs,
        reference=comparison.reference,
        steps={},
        make_probes=lambda: _probes(bench.store, comparison, models),
        problems=[],
        grading="exact",
        actors=comparison.actors,
    )


def _probes(store: Store, comparison: Comparison, models: _Models) -> dict[str, AnyPath]:
    """Make the probes of the solutions given: ``solutions``, and ``curvature``, the first of them."""
    reader, settings = comparison.solutions, comparison.probes
    if reader is None:
        return {}
    pairs = _read_pairs(reader)[: settings.sequences]
    key = content_key("compared-probes", settings, pairs, models.key)
    probes = {"solutions": pairs, "curvature": pairs[: settings.curvature_sequences]}
    if not store.has_folder(PROBES, key):
        tokenizer, limit = load_tokenizer(models.base), context_length(models.base)
        lengths = [len(encode(tokenizer, *pair)) for pair in pairs]
        if max(lengths) > limit:
            raise DataError(
                f"{reader.path}: solution {lengths.index(max(lengths)) + 1} has {max(lengths)} tokens with its prompt, "
                f"and {comparison.base} takes {limit}; leave out what is longer."
            )
        save_probes(store, models.base, key, probes)
    return {name: store.stored(PROBES, key, f"{name}.npz") for name in probes}


def _read_pairs(reader: JsonlReader) -> list[tuple[str, str]]:
    """Prompts with completions, in order.

    Raises:
        DataError: there are none, or one cannot be used or was cut off.
    """
    pairs, bad = [], []
    for record in reader.rollouts():
        try:
            if record.error is not None:
                raise Rejection(record.error)
            if record.values.get("truncated"):
                raise Rejection("completion was cut off")
            pairs.append((required_text(record.values, "prompt"), required_text(record.values, "completion")))
        except Rejection as reason:
            bad.append(f"{record.origin}:{record.line} {reason}")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(pairs) + len(bad)} solutions cannot be used: {'; '.join(bad[:3])}. Correct them, or "
            "take them out."
        )
    if not pairs:
        raise DataError(f"{reader.path} holds no solution; give JSON lines with a prompt and a completion each.")
    return pairs
