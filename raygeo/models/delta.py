"""Weight deltas on disk and in memory: tuned minus base, fp32, one entry per parameter, opened lazily.

Three formats are read. A PEFT LoRA folder gives ``LowRank`` entries, scale times B A, never multiplied out here. A
folder with ``delta.safetensors``, or shards of it (fp32 differences under the base model's parameter names), and a
complete Hugging Face model beside its base give ``Dense`` entries, whose values are read a block of rows at a time.
Names are the base model's own parameter names, ``model.layers.0.self_attn.q_proj.weight``.
"""

import math
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.models.adapter_config import AdapterConfig
from raygeo.models.checkpoint import Checkpoint, is_model
from raygeo.models.folder import ADAPTER_CONFIG, WEIGHTS
from raygeo.models.hub import find_model
from raygeo.models.parameters import FLOATS
from raygeo.models.tensors import Index, Stored, TensorFiles
from raygeo.store import AnyPath

FULL_FILE = "delta.safetensors"
_SHARDS = "delta*.safetensors"
_SHARD = re.compile(r"delta-\d+-of-(\d+)\.safetensors")
ADAPTER_FILE = "adapter_model.safetensors"
_NOT_BA = (
    "use_dora", "use_qalora", "use_bdlora", "modules_to_save", "lora_bias", "layer_replication",
    "target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
_LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
_CARRIED = re.compile(r"^base_model\.model\.(?P<module>.+)\.base_layer\.weight$")
_MERGE = (
    "merge it into its base (PEFT's merge_and_unload, in fp32, then save_pretrained) and give the merged model, which "
    "is compared weight by weight"
)


class Source(Protocol):
    """What a tensor is read from: it has a shape, and indexing by slices gives the values there."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    def __getitem__(self, index: Index, /) -> Tensor: ...


@dataclass(frozen=True)
class LowRank:
    """``scale * b @ a`` with ``b`` [out, r] and ``a`` [r, in], both fp32."""

    b: Tensor
    a: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product, [out, in]."""
        return (self.b.shape[0], self.a.shape[1])

    def dense(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
        """Multiply the factors out, on ``device`` if it is given: [out, in]."""
        return self.scale * (self.b.to(device, dtype) @ self.a.to(device, dtype))


@dataclass(frozen=True)
class Dense:
    """A full difference, fp32, in the parameter's own shape; its values are read from ``source`` when asked for."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.source.shape)

    @property
    def value(self) -> Tensor:
        """The whole difference, in memory."""
        return self.source if isinstance(self.source, Tensor) else self.source[()]

    def dense(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
        """Return the difference itself, on ``device`` if it is given."""
        return self.value.to(device, dtype)

    def blocks(self, elements: int, dim: int = 0) -> Iterator[Tensor]:
        """Read the difference in order along ``dim`` (0 or 1), at most ``elements`` values at a time.

        A block has at least one row (one column for ``dim`` 1), however many values that has.
        """
        for index in spans(self.shape, elements, dim):
            yield self.source[index]


def spans(shape: tuple[int, ...], elements: int, dim: int = 0) -> list[Index]:
    """Cut a tensor of ``shape`` along ``dim`` into parts of at most ``elements`` values, or of one row or column."""
    if not shape:
        return [()]
    step = max(1, elements * shape[dim] // max(1, math.prod(shape)))
    cuts = [slice(start, min(start + step, shape[dim])) for start in range(0, shape[dim], step)]
    return [(slice(None),) * dim + (cut,) for cut in cuts]


@dataclass(frozen=True)
class Difference:
    """``later - earlier``, both read together and subtracted in ``dtype``."""

    later: Source
    earlier: Source
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of both."""
        return tuple(self.later.shape)

    def __getitem__(self, index: Index) -> Tensor:
        return self.later[index].to(self.dtype) - self.earlier[index].to(self.dtype)


Entry = LowRank | Dense


def module_name(parameter: str) -> str:
    """Name of the module a parameter belongs to: the parameter's name without ``.weight``."""
    return parameter.removesuffix(".weight")


def layer_index(parameter: str) -> int | None:
    """Index of the transformer block in a parameter's name (the first number between dots), or None outside blocks."""
    match = re.search(r"\.(\d+)\.", parameter)
    return int(match.group(1)) if match else None


class Delta(Mapping[str, Entry]):
    """A lazily opened delta: ``delta[name]`` opens one parameter's entry; iteration is sorted by name.

    ``folder`` is where it was opened, ``base`` the model it was subtracted from where it is a complete model. ``sizes``
    says by parameter how many numbers are stored for it: those of both factors, or of the whole difference. ``carried``
    are weights of the base that are stored beside an adapter, as PEFT does for heads and embeddings, by parameter.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Callable[[], Entry]],
        sizes: Mapping[str, int],
        *,
        low_rank: bool,
        base: AnyPath | None = None,
        carried: Mapping[str, Stored] | None = None,
    ):
        self.carried = dict(carried or {})
        self.folder, self.sizes, self.low_rank, self.base = folder, dict(sizes), low_rank, base
        self._entries = dict(sorted(entries.items()))

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self):
        return (open_delta, (self.folder, self.base))


class Multiplied(Mapping[str, Tensor]):
    """The entries of a delta among ``names``, by default all, as fp32 matrices on ``device``, each when asked for.

    Nothing is kept, so that no more than one is held at a time.
    """

    def __init__(self, delta: Delta, device: torch.device, names: Container[str] | None = None):
        self._delta, self._device = delta, device
        self._names = [name for name in delta if names is None or name in names]

    def __getitem__(self, name: str) -> Tensor:
        return self._delta[name].dense(device=self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def open_delta(tuned: AnyPath, base: AnyPath | Checkpoint | None = None) -> Delta:
    """Open what training changed: ``tuned`` minus ``base``, fp32, by parameter; nothing is read before it is asked for.

    ``tuned`` is a complete model, a PEFT LoRA adapter or a folder of differences that raygeo wrote: a folder, or a hub
    id, which is fetched (``hub.find_model``). ``base`` is what a complete model is subtracted from, likewise a folder
    or a hub id or, so that several deltas read it together, an opened checkpoint; the other formats need none.

    Raises:
        DeltaError: ``tuned`` has none of these formats, is a LoRA variant that is not ``scale * B A``, has broken
            factors, or is a model whose parameters are not those of ``base``.
        StudentError: there is no such folder, or it cannot be fetched; a complete model, or its base, cannot be read or
            is quantised.
    """
    folder = find_model(tuned)
    check_format(folder)
    try:
        if shards := sorted(folder.glob(_SHARDS)):
            return _open_full(folder, shards)
        if _is_adapter(folder):
            return _open_lora(folder)
    except SafetensorError as error:
        raise DeltaError(
            f"{folder} holds a damaged safetensors file ({error}); delete the folder and train the run again."
        ) from error
    if base is None:
        raise DeltaError(f"{folder} is a complete model; it is a delta only beside the base it was trained from.")
    return _open_model(folder, base if isinstance(base, Checkpoint) else Checkpoint(find_model(base)))


def check_format(folder: Path) -> None:
    """Refuse a folder that has none of the formats of ``open_delta``; no weights are read.

    Raises:
        DeltaError: it has none.
    """
    if not (any(folder.glob(_SHARDS)) or _is_adapter(folder) or is_model(folder)):
        raise DeltaError(
            f"{folder} is not a delta: expected {FULL_FILE} (full), {ADAPTER_FILE} and {ADAPTER_CONFIG} (LoRA), or "
            f"{WEIGHTS} or its index (a complete model)."
        )


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_CONFIG).is_file()


def _open_full(folder: Path, shards: list[Path]) -> Delta:
    counts = {int(match[1]) if (match := _SHARD.fullmatch(shard.name)) else 1 for shard in shards}
    if counts != {len(shards)}:
        raise DeltaError(
            f"{folder} holds {', '.join(shard.name for shard in shards)}, which are not all parts of one delta; delete "
            "the folder and train the run again."
        )
    files = TensorFiles({name: file for shard in shards for name, file in TensorFiles.of(shard).files.items()})
    if not files.files:
        raise DeltaError(f"{shards[0]} holds no tensor; the run exported nothing. Train it again.")
    for name, file in files.files.items():
        if files.dtype(name) not in FLOATS:
            raise DeltaError(
                f"{file}: {name!r} is stored as {files.dtype(name)}, no floating-point type; differences are kept in "
                "fp32."
            )
    sizes = {name: math.prod(files.shape(name)) for name in files.files}
    return Delta(folder, {name: partial(_stored, files, name) for name in sizes}, sizes, low_rank=False)


def _stored(files: TensorFiles, name: str) -> Dense:
    return Dense(Stored(files.shape(name), lambda index: files.read(name, index).float()))


def _open_model(folder: Path, base: Checkpoint) -> Delta:
    """Every parameter of the model in ``folder`` minus that of ``base``."""
    tuned = Checkpoint(folder)
    _refuse_untied(tuned, base)
    names, known = tuned.names(), base.names()
    for kind, odd in (
        ("lacks", [name for name in known if name not in tuned]),
        ("also has", [name for name in names if name not in base]),
    ):
        if odd:
            raise DeltaError(
                f"{folder} {kind} {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}, unlike "
                f"{base.folder}; they are not a model and its base. Give the base it was trained from, saved the same "
                "way."
            )
    sizes = {}
    for name in known:
        if tuned.shape(name) != base.shape(name):
            raise DeltaError(_other_shape(tuned, base, name))
        sizes[name] = math.prod(base.shape(name))
    entries = {name: partial(_subtracted, tuned, base, name) for name in known}
    return Delta(folder, entries, sizes, low_rank=False, base=base.folder)


def _refuse_untied(tuned: Checkpoint, base: Checkpoint) -> None:
    """Raise where one model has an output head of its own and the other uses its embeddings as such."""
    if tuned.index.ties_head != base.index.ties_head:
        untied, tied = (base, tuned) if tuned.index.ties_head else (tuned, base)
        raise DeltaError(
            f"{untied.folder} has an output head of its own ({untied.index.head}), and {tied.folder} uses its "
            "embeddings as output head (tie_word_embeddings): they are different models. Save the base with an untied "
            "head, or, if the head of the tuned model was not trained, tie it."
        )


def _other_shape(tuned: Checkpoint, base: Checkpoint, name: str) -> str:
    shape, expected = tuned.shape(name), base.shape(name)
    said = f"{tuned.folder} holds {name} as {list(shape)} where {base.folder} has {list(expected)}; "
    if name in (base.index.head, base.index.embedding) and shape[1:] == expected[1:]:
        return said + (
            "its vocabulary was resized. Resize both to one size (model.resize_token_embeddings), save them, and "
            "compare those."
        )
    return said + "it was trained from another model. Give the base it was trained from."


def _subtracted(tuned: Checkpoint, base: Checkpoint, name: str) -> Dense:
    return Dense(Difference(tuned.stored(name), base.shared(name), torch.float32))


def _open_lora(folder: Path) -> Delta:
    adapter = AdapterConfig.read(folder)
    config = adapter.settings
    if config.get("peft_type") != "LORA":
        raise DeltaError(f"{folder} holds a {config.get('peft_type')} adapter; only LoRA deltas can be compared.")
    if config.get("r") is None or config.get("lora_alpha") is None:
        raise DeltaError(f"{folder / ADAPTER_CONFIG} lacks r or lora_alpha; its delta has no scale.")
    initialisation = config.get("init_lora_weights", True)
    if initialisation is not True and initialisation not in ("gaussian", "orthogonal"):
        raise DeltaError(
            f"{folder} was initialised with init_lora_weights={initialisation!r}, which moves the base or does not "
            f"start from zero, so scale * B A is not tuned minus base; {_MERGE}."
        )
    for option in _NOT_BA:
        if config.get(option):
            raise DeltaError(
                f"{folder} was trained with {option}={config[option]!r}, so its delta is not scale * B A; {_MERGE}."
            )
    files = TensorFiles.of(folder / ADAPTER_FILE)
    found: dict[str, dict[str, str]] = {}
    carried: dict[str, Stored] = {}
    for key in files.files:
        if base_layer := _CARRIED.match(key):
            carried[f"{base_layer['module']}.weight"] = files.stored(key)
            continue
        match = _LORA_KEY.match(key)
        if match is None:
            advice = _MERGE
            if "lora_embedding" in key:
                advice += "; untie the base first if its head is its embeddings, since merging would change both"
            raise DeltaError(f"{folder / ADAPTER_FILE}: {key!r} is not a LoRA factor of a linear layer; {advice}.")
        if 0 in files.shape(key):
            raise DeltaError(
                f"{folder / ADAPTER_FILE}: {key!r} is empty; sharded weights were saved without being gathered."
            )
        if files.dtype(key) not in FLOATS:
            raise DeltaError(
                f"{folder / ADAPTER_FILE}: {key!r} is stored as {files.dtype(key)}, no floating-point type; save the "
                "adapter again as one."
            )
        found.setdefault(match["module"], {})[match["side"]] = key
    for module, sides in found.items():
        if set(sides) != {"A", "B"}:
            raise DeltaError(f"{folder / ADAPTER_FILE}: {module} has only factor {next(iter(sides))}.")
    if not found:
        raise DeltaError(f"{folder / ADAPTER_FILE} holds no LoRA factor; the run exported nothing. Train it again.")
    ranks, scales = adapter.ranks(list(found)), adapter.scales(list(found))
    entries, sizes = {}, {}
    for module, sides in found.items():
        _check_rank(folder, module, ranks[module], files.shape(sides["B"]), files.shape(sides["A"]))
        name = f"{module}.weight"
        entries[name] = partial(_factors, files, sides["B"], sides["A"], scales[module], adapter.transposed)
        sizes[name] = sum(math.prod(files.shape(key)) for key in sides.values())
    return Delta(folder, entries, sizes, low_rank=True, carried=carried)


def _check_rank(folder: Path, module: str, rank: int, b: tuple[int, ...], a: tuple[int, ...]) -> None:
    """Refuse factors of shapes ``b`` and ``a`` that do not have the rank that the configuration says."""
    if (len(b), len(a)) != (2, 2) or b[1] != rank or a[0] != rank:
        raise DeltaError(
            f"{folder}: {ADAPTER_CONFIG} says that {module} has rank {rank}, but its factors B {list(b)} and A "
            f"{list(a)} have another, so its scale is not known; put the adapter's own configuration beside it."
        )


def _factors(files: TensorFiles, b: str, a: str, scale: float, transposed: bool) -> LowRank:
    left, right = files.tensor(b).float(), files.tensor(a).float()
    # Modules with fan_in_fan_out (GPT-2's Conv1D) hold their weight as [in, out].
    return LowRank(right.T.contiguous(), left.T.contiguous(), scale) if transposed else LowRank(left, right, scale)


def save_full_delta(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write fp32 differences as ``delta.safetensors`` under ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}, folder / FULL_FILE
    )


def shard_file(index: int, count: int) -> str:
    """What ``delta.safetensors`` is called as the part ``index`` of a delta of ``count`` parts."""
    return FULL_FILE if count == 1 else f"delta-{index + 1:05d}-of-{count:05d}.safetensors"


def check_delta(folder: str | Path) -> None:
    """Read a delta back and refuse one that is empty, not finite, or exactly zero everywhere.

    Raises:
        DeltaError: naming the parameter, or the folder when all entries are zero.
    """
    refuse_unmoved(read_back(folder), str(folder))


def refuse_unmoved(moved: bool, what: str) -> None:
    """Raise ``DeltaError`` for a delta, ``what``, unless it ``moved``."""
    if not moved:
        raise DeltaError(
            f"{what}: the delta is zero everywhere, the run changed nothing. Check its learning rate and steps."
        )


def read_back(folder: str | Path) -> bool:
    """Read a delta back: whether any of it is not zero.

    Raises:
        DeltaError: it is empty, or not finite, naming the parameter.
    """
    delta = open_delta(folder)
    moved = False
    for name, entry in delta.items():
        if 0 in entry.shape:
            raise DeltaError(
                f"{folder}: the delta of {name} is empty; sharded weights were saved without being gathered."
            )
        finite, own = _finite_and_moved(entry)
        if not finite:
            raise DeltaError(
                f"{folder}: the delta of {name} holds NaN or infinity; the run diverged. Lower its learning rate."
            )
        moved = moved or own
    return moved


def check_finite(delta: Delta) -> None:
    """Read a delta through and refuse one that is not finite.

    Raises:
        DeltaError: naming the first parameter that is not.
    """
    for name, entry in delta.items():
        if not _finite_and_moved(entry)[0]:
            models = f"{delta.folder} or {delta.base}" if delta.base is not None else str(delta.folder)
            raise DeltaError(f"{name} holds NaN or infinity in {models}, which diverged or is damaged; leave it out.")


def _finite_and_moved(entry: Entry) -> tuple[bool, bool]:
    """Whether all numbers of an entry are finite, and whether it is anything but zero."""
    finite, nonzero = True, []
    for part in [entry.b, entry.a] if isinstance(entry, LowRank) else entry.blocks(_CHECKED):
        finite = finite and bool(torch.isfinite(part).all())
        nonzero.append(bool(part.any()))
    return finite, all(nonzero) if isinstance(entry, LowRank) else any(nonzero)


_CHECKED = 1 << 22
