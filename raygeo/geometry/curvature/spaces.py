"""The spaces of weights that curvature is taken in: which parameters of a student belong to each."""

from collections.abc import Iterable, Sequence
from typing import Literal

from raygeo.errors import StudentError
from raygeo.models.delta import layer_index

Space = Literal["delta", "all", "attention", "blocks", "lora", "span"]
SPAN = "span"

_ATTENTION = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")


def spaces_of_weights(space: Space, names: Sequence[str], touched: Iterable[str]) -> dict[str, list[str]]:
    """Parameters of each space that ``space`` stands for, by the space's label in tables.

    ``names`` are all parameters of the base, ``touched`` those that any run's delta changes. "blocks" stands for one
    space a transformer block; "lora" and "span" are not sets of parameters of the base and stand for none.

    Raises:
        StudentError: the student has no parameter of that space.
    """
    found: dict[str, list[str]] = {}
    if space == "delta":
        found = {"delta": sorted(touched)}
    elif space == "all":
        found = {"all": list(names)}
    elif space == "attention":
        found = {"attention": [name for name in names if name.endswith(_ATTENTION)]}
    elif space == "blocks":
        layers = sorted({layer for name in names if (layer := layer_index(name)) is not None})
        found = {f"block {layer}": [name for name in names if layer_index(name) == layer] for layer in layers}
        if not layers:
            found = {"blocks": []}
    for label, members in found.items():
        if not members and label != "delta":
            raise StudentError(
                f"the student has no parameters for the space {label!r}; it has {sorted(names)[:3]} and others. "
                "Leave that space out of geometry.curvature.spaces."
            )
    return {label: members for label, members in found.items() if members}
