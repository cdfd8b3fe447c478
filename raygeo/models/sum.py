"""The sum of deltas of stages that follow each other: what all of them together changed, exactly, in fp32."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.delta import ADAPTER_FILE, Delta, LowRank, module_name, open_delta, shard_file
from raygeo.models.folder import ADAPTER_CONFIG
from raygeo.store import AnyPath

REVISION = 1
"""Part of the key of every sum."""
SHARD_BYTES = 4 << 30
"""About how large the files of a full sum are."""


def save_sum(deltas: Sequence[AnyPath], folder: Path, count: int | None = None) -> None:
    """Write the sum of the ``deltas``, each relative to where the one before it ended, as a delta of its own; or of the
    first ``count`` of them, with the parameters and ranks of the whole sum, zero where these did not move.

    The sum of low-rank deltas is low-rank: the factors of each module stand side by side, ``[s_1 B_1, s_2 B_2]`` and
    ``[A_1; A_2]``, in a PEFT adapter of scale 1 whose rank is the sum of the ranks. With a full delta among them it is
    full, fp32, added up in the order of the deltas, one parameter at a time; files of about 4 GiB are written.

    Raises:
        DeltaError: the deltas are not of one model.
    """
    opened = [open_delta(delta) for delta in deltas]
    if all(delta.low_rank for delta in opened):
        _save_adapter(opened, folder, count or len(opened))
    else:
        _save_full(opened, folder, count or len(opened))


def _save_adapter(deltas: Sequence[Delta], folder: Path, count: int) -> None:
    configs = [AdapterConfig.read(delta.folder) for delta in deltas]
    if len({config.transposed for config in configs}) > 1:
        raise DeltaError(f"{deltas[-1].folder} holds its factors another way than {deltas[0].folder}; they do not add.")
    tensors, ranks = {}, {}
    for name in sorted(set().union(*deltas)):
        factors = [*_factors(deltas, name, count)]
        b, a = torch.cat([b for b, _ in factors], 1), torch.cat([a for _, a in factors], 0)
        left, right = (a.T, b.T) if configs[0].transposed else (b, a)
        module = module_name(name)
        ranks[module] = a.shape[0]
        for side, factor in (("A", right), ("B", left)):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = factor.contiguous()
    rank = max(ranks.values())
    odd = {module: value for module, value in ranks.items() if value != rank}
    settings = dict(configs[-1].settings) | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": odd,
        "alpha_pattern": odd,
    }
    save_file(tensors, folder / ADAPTER_FILE)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True))


def _factors(deltas: Sequence[Delta], name: str, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """B times its scale, or zero beyond the first ``count``, and A, of every delta that has the parameter."""
    for place, delta in enumerate(deltas):
        if name in delta:
            entry = delta[name]
            assert isinstance(entry, LowRank)
            yield (entry.scale if place < count else 0.0) * entry.b, entry.a


def _save_full(deltas: Sequence[Delta], folder: Path, count: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {}
    for delta in deltas:
        for name in delta:
            shape = shapes.setdefault(name, delta[name].shape)
            if delta[name].shape != shape:
                raise DeltaError(
                    f"{delta.folder} holds {name} as {list(delta[name].shape)} where a stage before it has "
                    f"{list(shape)}; they are not of one model."
                )
    shards: list[list[str]] = [[]]
    held = 0
    for name in sorted(shapes):
        size = 4 * math.prod(shapes[name])
        if held and held + size > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    for index, names in enumerate(shards):
        save_file(
            {name: _added(deltas[:count], name, shapes[name]) for name in names},
            folder / shard_file(index, len(shards)),
        )


def _added(deltas: Sequence[Delta], name: str, shape: tuple[int, ...]) -> Tensor:
    total = torch.zeros(shape)
    for delta in deltas:
        if name in delta:
            total += delta[name].dense()
    return total
