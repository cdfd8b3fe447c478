"""A student whose parameters are the factors of a LoRA delta, on top of frozen base weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from raygeo.errors import DeltaError
from raygeo.models.delta import Delta, LowRank


class _Product(nn.Module):
    """Adds ``scale * b @ a`` to a weight."""

    def __init__(self, entry: LowRank, weight: Tensor):
        super().__init__()
        self.a = nn.Parameter(entry.a.to(weight))
        self.b = nn.Parameter(entry.b.to(weight))
        self.scale = entry.scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)


@contextmanager
def factored(model: nn.Module, delta: Delta) -> Iterator[list[str]]:
    """Add the products of ``delta`` to the weights of ``model`` and give the names of the factors among its parameters.

    On exit the factors are taken out again and the model has its own weights and names back, bit for bit.

    Raises:
        DeltaError: the delta is not a LoRA delta, does not fit the model, or changes a weight that two modules share.
    """
    if not delta.low_rank:
        raise DeltaError(f"{delta.folder} is a full delta, which has no factors; take the space of merged weights.")
    parametrized: list[nn.Module] = []
    names: list[str] = []
    try:
        for name, entry in delta.items():
            module = _owner(model, name)
            assert isinstance(entry, LowRank)
            weight: Tensor = module.weight  # type: ignore[assignment]
            if tuple(weight.shape) != entry.shape:
                raise DeltaError(f"the delta of {name} has shape {entry.shape}, the base {tuple(weight.shape)}.")
            parametrize.register_parametrization(module, "weight", _Product(entry, weight))
            parametrized.append(module)
            stem = f"{name.removesuffix('.weight')}.parametrizations.weight.0"
            names += [f"{stem}.a", f"{stem}.b"]
        yield names
    finally:
        for module in parametrized:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _owner(model: nn.Module, name: str) -> nn.Module:
    """The one module whose weight ``name`` is."""
    modules = dict(model.named_modules())
    module = modules.get(name.removesuffix(".weight"))
    weight = getattr(module, "weight", None)
    if module is None or not name.endswith(".weight") or not isinstance(weight, torch.Tensor):
        raise DeltaError(f"the delta names {name!r}, which the base model lacks; it was trained from another model.")
    if sum(other.weight is weight for other in modules.values() if "weight" in other._parameters) > 1:
        raise DeltaError(f"{name} is shared by two modules, so a factor of it is not defined; train without it.")
    return module
