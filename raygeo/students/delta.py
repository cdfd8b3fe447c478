"""Weight deltas on disk and in memory: tuned minus base, fp32, one entry per parameter, opened lazily.

Two formats are read. A PEFT LoRA folder gives ``LowRank`` entries, scale times B A, never multiplied out here. A folder
with ``delta.safetensors`` (fp32 differences under the base model's parameter names) gives ``Dense`` entries. Names are
the base model's own parameter names, ``model.layers.0.self_attn.q_proj.weight``.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from raygeo.errors import DeltaError

FULL_FILE = "delta.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"
_NOT_BA = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "modules_to_save", "lora_bias", "layer_replication",
    "target_parameters", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
_LORA_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


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
    """A full difference ``value``, fp32, in the parameter's own shape."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        return tuple(self.value.shape)

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the difference itself."""
        return self.value.to(dtype)


Entry = LowRank | Dense


def module_name(parameter: str) -> str:
    """Name of the module a parameter belongs to: the parameter's name without ``.weight``."""
    return parameter.removesuffix(".weight")


def layer_index(parameter: str) -> int | None:
    """Index of the transformer block in a parameter's name (the first number between dots), or None outside blocks."""
    match = re.search(r"\.(\d+)\.", parameter)
    return int(match.group(1)) if match else None


class Delta(Mapping[str, Entry]):
    """A lazily opened delta: ``delta[name]`` reads one parameter's entry from disk; iteration is sorted by name."""

    def __init__(self, folder: Path, entries: dict[str, tuple[str, ...]], scales: dict[str, float] | None):
        self.folder = folder
        self._entries = entries
        self._scales = scales
        self._file = safe_open(folder / (FULL_FILE if scales is None else ADAPTER_FILE), framework="pt")

    @property
    def low_rank(self) -> bool:
        """Whether entries are LoRA factors."""
        return self._scales is not None

    def __getitem__(self, name: str) -> Entry:
        keys = self._entries[name]
        tensors = [self._file.get_tensor(key).float() for key in keys]
        if self._scales is None:
            return Dense(tensors[0])
        return LowRank(b=tensors[1], a=tensors[0], scale=self._scales[name])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self):
        return (open_delta, (self.folder,))


def open_delta(folder: str | Path) -> Delta:
    """Open a delta folder of either format.

    Raises:
        DeltaError: the folder holds neither format, a LoRA variant that is not ``scale * B A``, or broken factors.
    """
    folder = Path(folder)
    try:
        if (folder / FULL_FILE).is_file():
            with safe_open(folder / FULL_FILE, framework="pt") as file:
                names = sorted(file.keys())
            if not names:
                raise DeltaError(f"{folder / FULL_FILE} holds no tensor; the run exported nothing. Train it again.")
            return Delta(folder, {name: (name,) for name in names}, None)
        if (folder / ADAPTER_FILE).is_file() and (folder / "adapter_config.json").is_file():
            return _open_lora(folder)
    except SafetensorError as error:
        raise DeltaError(
            f"{folder} holds a damaged safetensors file ({error}); delete the folder and train the run again."
        ) from error
    raise DeltaError(
        f"{folder} is no delta: expected {FULL_FILE} (full), or {ADAPTER_FILE} and adapter_config.json (LoRA)."
    )


def _open_lora(folder: Path) -> Delta:
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except ValueError as error:
        raise DeltaError(f"{folder / 'adapter_config.json'} is not JSON ({error}).") from error
    if config.get("peft_type") != "LORA":
        raise DeltaError(f"{folder} holds a {config.get('peft_type')} adapter; only LoRA deltas can be compared.")
    default_rank, default_alpha = config.get("r"), config.get("lora_alpha")
    if not default_rank or default_alpha is None:
        raise DeltaError(f"{folder / 'adapter_config.json'} lacks r or lora_alpha; its delta has no scale.")
    initialisation = config.get("init_lora_weights", True)
    if initialisation is not True and initialisation not in ("gaussian", "orthogonal"):
        raise DeltaError(
            f"{folder} was initialised with init_lora_weights={initialisation!r}, which moves the base or does not "
            "start from zero, so scale * B A is not tuned minus base; train it with the default initialisation."
        )
    for option in _NOT_BA:
        if config.get(option):
            raise DeltaError(
                f"{folder} was trained with {option}={config[option]!r}, so its delta is not scale * B A; "
                "train it without that."
            )
    found: dict[str, dict[str, str]] = {}
    with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (safe_open is not iterable)
            match = _LORA_KEY.match(key)
            if match is None:
                raise DeltaError(f"{folder / ADAPTER_FILE}: {key!r} is not a LoRA factor of a linear layer.")
            if 0 in file.get_slice(key).get_shape():
                raise DeltaError(
                    f"{folder / ADAPTER_FILE}: {key!r} is empty; sharded weights were saved without being gathered."
                )
            found.setdefault(match["module"], {})[match["side"]] = key
    entries: dict[str, tuple[str, ...]] = {}
    scales: dict[str, float] = {}
    for module, sides in sorted(found.items()):
        if set(sides) != {"A", "B"}:
            raise DeltaError(f"{folder / ADAPTER_FILE}: {module} has only factor {next(iter(sides))}.")
        rank = _pattern(config.get("rank_pattern"), module, default_rank)
        alpha = _pattern(config.get("alpha_pattern"), module, default_alpha)
        entries[module + ".weight"] = (sides["A"], sides["B"])
        scales[module + ".weight"] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if not entries:
        raise DeltaError(f"{folder / ADAPTER_FILE} holds no LoRA factor; the run exported nothing. Train it again.")
    return Delta(folder, entries, scales)


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
        factors = [entry.b, entry.a] if isinstance(entry, LowRank) else [entry.value]
        if any(f.numel() == 0 for f in factors):
            raise DeltaError(
                f"{folder}: the delta of {name} is empty; sharded weights were saved without being gathered."
            )
        if not all(bool(torch.isfinite(f).all()) for f in factors):
            raise DeltaError(
                f"{folder}: the delta of {name} holds NaN or infinity; the run diverged. Lower its learning rate."
            )
        moved = moved or all(bool(f.any()) for f in factors)
    if not moved:
        raise DeltaError(
            f"{folder}: the delta is zero everywhere, the run changed nothing. Check its learning rate and steps."
        )
