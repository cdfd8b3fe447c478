"""Weight deltas on disk and in memory: tuned minus base, fp32, one entry per parameter, opened lazily.

Three formats are read. A PEFT LoRA folder gives ``LowRank`` entries, scale times B A, never multiplied out here. A
folder with ``delta.safetensors`` (fp32 differences under the base model's parameter names) and a complete Hugging Face
model beside its base give ``Dense`` entries, whose values are read a block of rows at a time. Names are the base
model's own parameter names, ``model.layers.0.self_attn.q_proj.weight``.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from raygeo.errors import DeltaError
from raygeo.store import AnyPath
from raygeo.students.checkpoint import EMBEDDING, HEAD, WEIGHTS, Checkpoint, is_model
from raygeo.students.tensors import Index, Stored, TensorFiles

FULL_FILE = "delta.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
_NOT_BA = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication",
    "target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
_LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")
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

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Multiply the factors out: [out, in]."""
        return self.scale * (self.b.to(dtype) @ self.a.to(dtype))


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

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the difference itself."""
        return self.value.to(dtype)

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
    says by parameter how many numbers are stored for it: those of both factors, or of the whole difference.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, Callable[[], Entry]],
        sizes: Mapping[str, int],
        *,
        low_rank: bool,
        base: AnyPath | None = None,
    ):
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


def open_delta(folder: AnyPath, base: AnyPath | Checkpoint | None = None) -> Delta:
    """Open a delta folder of any format.

    ``base`` is what a complete model is subtracted from, a folder or, so that several deltas read it together, an
    opened checkpoint; the other formats need none.

    Raises:
        DeltaError: the folder holds no format, a LoRA variant that is not ``scale * B A``, broken factors, or a model
            whose parameters are not those of ``base``.
        StudentError: a complete model, or its base, cannot be read or is quantised.
    """
    folder = Path(folder)
    try:
        if (folder / FULL_FILE).is_file():
            return _open_full(folder)
        if (folder / ADAPTER_FILE).is_file() and (folder / ADAPTER_CONFIG).is_file():
            return _open_lora(folder)
    except SafetensorError as error:
        raise DeltaError(
            f"{folder} holds a damaged safetensors file ({error}); delete the folder and train the run again."
        ) from error
    if is_model(folder):
        if base is None:
            raise DeltaError(f"{folder} is a complete model; it is a delta only beside the base it was trained from.")
        return _open_model(folder, base if isinstance(base, Checkpoint) else Checkpoint(base))
    raise DeltaError(
        f"{folder} is no delta: expected {FULL_FILE} (full), {ADAPTER_FILE} and {ADAPTER_CONFIG} (LoRA), or "
        f"{WEIGHTS} or its index (a complete model)."
    )


def _open_full(folder: Path) -> Delta:
    files = TensorFiles.of(folder / FULL_FILE)
    if not files.files:
        raise DeltaError(f"{folder / FULL_FILE} holds no tensor; the run exported nothing. Train it again.")
    sizes = {name: math.prod(files.shape(name)) for name in files.files}
    return Delta(folder, {name: partial(_stored, files, name) for name in sizes}, sizes, low_rank=False)


def _stored(files: TensorFiles, name: str) -> Dense:
    return Dense(Stored(files.shape(name), lambda index: files.read(name, index).float()))


def _open_model(folder: Path, base: Checkpoint) -> Delta:
    """Every parameter of the model in ``folder`` minus that of ``base``."""
    tuned = Checkpoint(folder)
    names, known = tuned.names(), base.names()
    for kind, odd in (
        ("lacks", [name for name in known if name not in tuned]),
        ("also has", [name for name in names if name not in base]),
    ):
        if odd:
            raise DeltaError(
                f"{folder} {kind} {', '.join(odd[:3])}{f' and {len(odd) - 3} more' if len(odd) > 3 else ''}, unlike "
                f"{base.folder}; the two are no model and its base. Give the base it was trained from, saved the same "
                "way."
            )
    _refuse_untied(tuned, base)
    sizes = {}
    for name in known:
        for checkpoint in (tuned, base):
            checkpoint.dtype(name)
        if tuned.shape(name) != base.shape(name):
            raise DeltaError(_other_shape(tuned, base, name))
        sizes[name] = math.prod(base.shape(name))
    entries = {name: partial(_subtracted, tuned, base, name) for name in known}
    return Delta(folder, entries, sizes, low_rank=False, base=base.folder)


def _refuse_untied(tuned: Checkpoint, base: Checkpoint) -> None:
    """Raise where one model has an output head of its own and the other uses its embeddings as such."""
    own = {checkpoint.folder: {HEAD, EMBEDDING} <= set(checkpoint.names()) for checkpoint in (tuned, base)}
    if own[tuned.folder] != own[base.folder]:
        [untied] = [folder for folder, is_own in own.items() if is_own]
        raise DeltaError(
            f"{untied} has a {HEAD} of its own, and the other of {tuned.folder} and {base.folder} uses its embeddings "
            "as output head (tied): they are different models. Save the base with an untied head, or tie that of the "
            "tuned model, if its head was not trained."
        )


def _other_shape(tuned: Checkpoint, base: Checkpoint, name: str) -> str:
    shape, expected = tuned.shape(name), base.shape(name)
    said = f"{tuned.folder} holds {name} as {list(shape)} where {base.folder} has {list(expected)}; "
    if name in (HEAD, EMBEDDING) and shape[1:] == expected[1:]:
        return said + (
            "its vocabulary was resized. Resize both to one size (model.resize_token_embeddings), save them, and "
            "compare those."
        )
    return said + "it was trained from another model. Give the base it was trained from."


def _subtracted(tuned: Checkpoint, base: Checkpoint, name: str) -> Dense:
    return Dense(Difference(tuned.stored(name), base.shared(name), torch.float32))


def _open_lora(folder: Path) -> Delta:
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except ValueError as error:
        raise DeltaError(f"{folder / ADAPTER_CONFIG} is not JSON ({error}).") from error
    if config.get("peft_type") != "LORA":
        raise DeltaError(f"{folder} holds a {config.get('peft_type')} adapter; only LoRA deltas can be compared.")
    default_rank, default_alpha = config.get("r"), config.get("lora_alpha")
    if not default_rank or default_alpha is None:
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
    for key in files.files:
        match = _LORA_KEY.match(key)
        if match is None:
            raise DeltaError(f"{folder / ADAPTER_FILE}: {key!r} is not a LoRA factor of a linear layer; {_MERGE}.")
        if 0 in files.shape(key):
            raise DeltaError(
                f"{folder / ADAPTER_FILE}: {key!r} is empty; sharded weights were saved without being gathered."
            )
        found.setdefault(match["module"], {})[match["side"]] = key
    entries, sizes = {}, {}
    for module, sides in found.items():
        if set(sides) != {"A", "B"}:
            raise DeltaError(f"{folder / ADAPTER_FILE}: {module} has only factor {next(iter(sides))}.")
        rank = _pattern(config.get("rank_pattern"), module, default_rank)
        alpha = _pattern(config.get("alpha_pattern"), module, default_alpha)
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        entries[f"{module}.weight"] = partial(_factors, files, sides["B"], sides["A"], scale)
        sizes[f"{module}.weight"] = sum(math.prod(files.shape(key)) for key in sides.values())
    if not entries:
        raise DeltaError(f"{folder / ADAPTER_FILE} holds no LoRA factor; the run exported nothing. Train it again.")
    return Delta(folder, entries, sizes, low_rank=True)


def _factors(files: TensorFiles, b: str, a: str, scale: float) -> LowRank:
    return LowRank(files.tensor(b).float(), files.tensor(a).float(), scale)


def _pattern(pattern: dict[str, float] | None, module: str, default: float) -> float:
    for key, value in (pattern or {}).items():
        if re.match(rf"(?:.*\.)?(?:{key})$", module):
            return value
    return default


def save_full_delta(folder: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write fp32 differences as ``delta.safetensors`` under ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: t.detach().to("cpu", torch.float32).contiguous() for name, t in tensors.items()}, folder / FULL_FILE
    )


def check_delta(folder: str | Path) -> None:
    """Read a delta back and refuse one that is empty, not finite, or exactly zero everywhere.

    Raises:
        DeltaError: naming the parameter, or the folder when all entries are zero.
    """
    delta = open_delta(folder)
    moved = False
    for name, entry in delta.items():
        if 0 in entry.shape:
            raise DeltaError(
                f"{folder}: the delta of {name} is empty; sharded weights were saved without being gathered."
            )
        parts = [entry.b, entry.a] if isinstance(entry, LowRank) else entry.blocks(_CHECKED)
        nonzero = []
        for part in parts:
            if not bool(torch.isfinite(part).all()):
                raise DeltaError(
                    f"{folder}: the delta of {name} holds NaN or infinity; the run diverged. Lower its learning rate."
                )
            nonzero.append(bool(part.any()))
        moved = moved or (all(nonzero) if isinstance(entry, LowRank) else any(nonzero))
    if not moved:
        raise DeltaError(
            f"{folder}: the delta is zero everywhere, the run changed nothing. Check its learning rate and steps."
        )


_CHECKED = 1 << 22
