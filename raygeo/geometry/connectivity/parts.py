"""Parts of a network, and runs of which one part is moved towards another run and the rest stays."""

from collections.abc import Mapping, Sequence
from typing import Literal

from raygeo.geometry.connectivity.mixtures import Entries, mixture
from raygeo.models.delta import Entry, layer_index, module_name
from raygeo.models.mix import Mixture

OUTSIDE = "outside blocks"
Kind = Literal["block", "module type"]


def part_of(parameter: str, kind: Kind) -> str:
    """Name of the part a parameter belongs to."""
    if kind == "block":
        layer = layer_index(parameter)
        return OUTSIDE if layer is None else str(layer)
    return module_name(parameter).removesuffix(".bias").rpartition(".")[2]


def parts_of(deltas: Sequence[Mapping[str, Entry] | None], kind: Kind) -> dict[str, list[str]]:
    """Parameters that any delta touches, by part: blocks in order, then all the rest, in alphabetical order."""
    parts: dict[str, list[str]] = {}
    for name in sorted({name for delta in deltas if delta is not None for name in delta}):
        parts.setdefault(part_of(name, kind), []).append(name)
    return dict(sorted(parts.items(), key=lambda item: (not item[0].isdigit(), item[0].zfill(6))))


def moved(a: Mapping[str, Entry] | None, b: Mapping[str, Entry] | None, names: Sequence[str], alpha: float) -> Mixture:
    """Run a with the parameters ``names`` moved by ``alpha`` towards run b; None is the base's delta."""
    if a is None:
        return mixture() if b is None else mixture((alpha, Entries(b, names)))
    rest = Entries(a, set(a) - set(names))
    return mixture((1.0, rest), (1 - alpha, Entries(a, names)), (alpha, None if b is None else Entries(b, names)))
