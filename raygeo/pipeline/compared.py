"""The models of a comparison: put into the store, seen to belong together, and written down as its runs."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raygeo.errors import DeltaError, RaygeoError, StudentError
from raygeo.geometry.weights.base import BaseWeights
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.checkpoint import Checkpoint, is_model
from raygeo.models.delta import check_finite, check_format, open_delta
from raygeo.models.folder import check_model, weight_files
from raygeo.models.hub import find_model
from raygeo.models.run import Run
from raygeo.paths import local_path
from raygeo.pipeline.comparison import Compared, Comparison
from raygeo.pipeline.context import StageContext
from raygeo.pipeline.published import KIND
from raygeo.pipeline.student import hash_folder, hold_files, link_folder
from raygeo.records import FINISHED, RunRecord
from raygeo.settings import content_key
from raygeo.store import AnyPath
from raygeo.tables import BASE, to_arrow

DELTAS = "deltas"


@dataclass(frozen=True)
class Models:
    """The base in the store and its key, the runs with it first, and sentences about what could not be checked."""

    key: str
    base: AnyPath
    runs: list[Run]
    unchecked: list[str]


def find_models(comparison: Comparison) -> list[Path]:
    """Folders of the base and of the models, in order; what is not on this machine is fetched.

    Raises:
        DeltaError: one of the models is neither complete nor an adapter.
        StudentError: one cannot be found, or the base is no complete model.
    """
    base, *models = (find_model(model) for model in (comparison.base, *(given.model for given in comparison.models)))
    if not is_model(base):
        try:
            check_model(base)
            weight_files(base)
        except StudentError as error:
            raise StudentError(
                f"the base {comparison.base!r}, which comes before what was trained from it (raygeo compare BASE "
                f"MODEL...): {error}"
            ) from error
    for given, folder in zip(comparison.models, models, strict=True):
        try:
            check_format(folder)
        except DeltaError as error:
            raise DeltaError(f"{given.name}: {error}") from error
    return [base, *models]


def provide_models(context: StageContext, comparison: Comparison) -> Models:
    """Put the base and the models into the store, refuse those that do not belong together, and publish the runs."""
    store, sources = context.store, find_models(comparison)
    with ThreadPoolExecutor() as threads:
        base_key, *keys = threads.map(hash_folder, sources)
    base = _link(context, KIND, base_key, sources[0])
    weights, loading = BaseWeights(base), comparison.student
    runs, records, unchecked = [Run(BASE, content_key(base_key, BASE, *loading.keyed), None, loading=loading)], [], []
    for compared, key, source in zip(comparison.models, keys, sources[1:], strict=True):
        known = store.has_folder(DELTAS, key)
        folder = _link(context, DELTAS, key, source)
        try:
            delta = open_delta(folder, weights)
            for name, entry in delta.items():
                weights.check(name, entry)
            check_finite(delta)
            for name, value in delta.carried.items():
                if not torch.equal(value[()].float(), weights.tensor(name).float()):
                    raise DeltaError(
                        f"{source} brings weights of its own for {name}, which are not those of {comparison.base}; "
                        "give the base it was trained from, resized as it was."
                    )
        except RaygeoError as error:
            if not known:
                store.delete_folder(DELTAS, key)
            said = str(error).replace(str(folder), str(source)).replace(str(base), str(sources[0]))
            raise type(error)(f"{compared.name}: {said}") from error
        if delta.low_rank:
            unchecked += _check_lineage(compared.name, source, comparison.base, sources[0], weights)
        tuned = Checkpoint(folder) if delta.base is not None else None
        if tuned is not None and tuned.index.bare:
            unchecked.append(
                f"transformers does not know the family of {compared.name}, so its tensors were compared by the names "
                "they have in its files, constants that training never changes among them."
            )
        run_key = content_key("compared", base_key, key)
        measured_key = content_key(run_key, *loading.keyed) if loading.keyed else run_key
        own_base = base if tuned is not None else None
        runs.append(Run(compared.name, measured_key, folder, base=own_base, loading=loading))
        records.append(
            RunRecord(
                run=compared.name,
                key=run_key,
                status=FINISHED,
                delta=store.path(DELTAS, key),
                student=base_key,
                stored=None if tuned is None else _stored_as(tuned),
                model=compared.model,
                **_said_of(compared, adapter=delta.low_rank),
            )
        )
    store.publish_rows("runs", to_arrow("runs", [record.row() for record in records]))
    return Models(base_key, base, runs, unchecked)


def _said_of(compared: Compared, *, adapter: bool) -> dict[str, Any]:
    """What a record holds of how a model was trained, where that is said."""
    if compared.trained is None:
        return {}
    said = compared.trained.model_dump()
    return {"loss": {"type": said.pop("loss")}, "training": said | {"lora": {} if adapter else None}}


def _link(context: StageContext, kind: str, key: str, source: Path) -> AnyPath:
    """Put a model's files into the store, unless they are there."""
    known = context.store.has_folder(kind, key)
    if not known:
        link_folder(context.store, kind, key, source)
    hold_files(context.store, kind, key)
    context.count(not known, known)
    return context.store.stored(kind, key)


def _check_lineage(name: str, adapter: Path, base: str, source: Path, weights: Checkpoint) -> list[str]:
    """Refuse an adapter that says it was trained from another base; say so where its word cannot be checked."""
    said = AdapterConfig.read(adapter).base
    if said == base:
        return []
    folder = _folder(said)
    if said and folder is not None and is_model(folder):
        if folder.resolve() != source.resolve() and not weights.equals(Checkpoint(folder)):
            raise DeltaError(f"{name} was trained from {said}, whose weights are not those of {base}; give that base.")
        return []
    if said and not Path(base).expanduser().is_dir():
        raise DeltaError(
            f"{name} says that it was trained from {said}, and not from {base}. Give the base it names; if both are "
            "the same weights, give the folder of one."
        )
    named = f"names {said} as its base" if said else "does not name its base"
    return [f"{name} {named}; that {base} is what it was trained from was checked by names and shapes alone."]


def _folder(said: str | None) -> Path | None:
    """The folder that a name may stand for, if it can be one."""
    try:
        return local_path(said or ".")
    except ValueError:
        return None


def _stored_as(model: Checkpoint) -> str:
    """The dtype that most numbers of a model are stored in."""
    sizes: Counter[str] = Counter()
    for name in model.names():
        sizes[model.dtype(name)] += math.prod(model.shape(name))
    return sizes.most_common(1)[0][0]
