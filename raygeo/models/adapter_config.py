"""What is read of an adapter's own configuration, PEFT's ``adapter_config.json``: ranks and scales of its factors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raygeo.errors import DeltaError, StudentError
from raygeo.models.folder import ADAPTER_CONFIG, read_settings

_MOST_MATCHES = 4_000_000


@dataclass(frozen=True)
class AdapterConfig:
    """``settings`` are those of a LoRA adapter as written in ``file``, the types of those that are read here seen to.

    Raises:
        DeltaError: one has another type than PEFT writes.
    """

    file: Path
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, kinds, said in (
            ("fan_in_fan_out", (bool, type(None)), "true or false"),
            ("use_rslora", (bool, type(None)), "true or false"),
            ("base_model_name_or_path", (str, type(None)), "the name of a model"),
            ("rank_pattern", (dict, type(None)), "a mapping of names to numbers"),
            ("alpha_pattern", (dict, type(None)), "a mapping of names to numbers"),
        ):
            if not isinstance(self.settings.get(name), kinds):
                raise DeltaError(
                    f"{self.file}: {name} is {_short(self.settings[name])}, where {said} belongs; save the adapter "
                    "again."
                )

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """The configuration of the adapter in ``folder``.

        Raises:
            DeltaError: it is no JSON object, or has settings of another type than PEFT writes.
        """
        file = folder / ADAPTER_CONFIG
        try:
            return cls(file, read_settings(file, f"an {ADAPTER_CONFIG} that is not JSON of settings"))
        except StudentError as error:
            raise DeltaError(str(error)) from error

    @property
    def transposed(self) -> bool:
        """Whether the adapted modules hold their weights as [in, out], GPT-2's way."""
        return self.settings.get("fan_in_fan_out") is True

    @property
    def base(self) -> str | None:
        """The model that the adapter says it was trained on."""
        return self.settings.get("base_model_name_or_path")

    def ranks(self, modules: Sequence[str]) -> dict[str, int]:
        """The rank of each module's factors.

        Raises:
            DeltaError: one is no positive whole number, or a pattern cannot be matched.
        """
        return self._numbers(modules, "r", "rank_pattern", int)

    def scales(self, modules: Sequence[str]) -> dict[str, float]:
        """What the product of each module's factors is multiplied by.

        Raises:
            DeltaError: rank or numerator is no positive number, or a pattern cannot be matched.
        """
        ranks = self.ranks(modules)
        alphas = self._numbers(modules, "lora_alpha", "alpha_pattern", (int, float))
        root = self.settings.get("use_rslora")
        return {name: alphas[name] / (math.sqrt(rank) if root else rank) for name, rank in ranks.items()}

    def _numbers(self, modules: Sequence[str], name: str, pattern: str, kinds: Any) -> dict[str, Any]:
        found = self._matched(modules, pattern, self.settings.get(name))
        for module, value in found.items():
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1 << 62:
                raise DeltaError(
                    f"{self.file}: {name} of {module} is {_short(value)}, where a positive number belongs; it is not "
                    "the configuration this adapter was trained with."
                )
        return found

    def _matched(self, modules: Sequence[str], pattern: str, default: Any) -> dict[str, Any]:
        """The value for each module of the first entry that matches it, as PEFT matches them, else ``default``.

        Patterns are matched by RE2, in time linear in the names whatever they are.
        """
        entries = self.settings.get(pattern) or {}
        if len(entries) * len(modules) > _MOST_MATCHES:
            raise DeltaError(f"{self.file}: {pattern} has {len(entries)} entries for {len(modules)} modules, too many.")
        found = dict.fromkeys(modules, default)
        left = pa.array(modules, pa.string())
        for key, value in entries.items():
            try:
                matches = pc.match_substring_regex(left, rf"^(?:.*\.)?(?:{key})$")
            except (pa.ArrowException, UnicodeError) as error:
                raise DeltaError(
                    f"{self.file}: {key!r} in {pattern} is no pattern that can be matched ({error}); {pattern} takes "
                    "names of modules."
                ) from error
            found |= dict.fromkeys(left.filter(matches).to_pylist(), value)
            left = left.filter(pc.invert(matches))
        return found


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 80 else f"{said[:80]}..."
