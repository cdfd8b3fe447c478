"""A model whose weights can be set to base plus any linear combination of deltas, and back, exactly."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from raygeo.errors import DeltaError
from raygeo.students.delta import Entry, LowRank, spans

_BLOCK = 1 << 22


class MixedWeights:
    """Keeps the base weights of ``parameters`` (those that any delta touches) and writes mixtures into ``model``.

    Sums are taken in the parameter's dtype, fp32 at least. A LoRA delta is multiplied out one module at a time, a full
    one is read from disk a block of rows at a time, each time anew.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[str]):
        self.model = model
        own = dict(model.named_parameters())
        self._base = {}
        for name in sorted(set(parameters)):
            if name not in own:
                raise DeltaError(
                    f"the delta names {name!r}, which the base model lacks; it was trained from another model."
                )
            self._base[name] = own[name].detach().clone()
        self._own = {name: own[name] for name in self._base}

    @torch.no_grad()
    def set(self, mixture: Sequence[tuple[float, Mapping[str, Entry]]]) -> None:
        """Set every kept parameter to base + sum of coefficient * delta."""
        unknown = {name for _, delta in mixture for name in delta} - self._base.keys()
        if unknown:
            raise DeltaError(f"parameters {sorted(unknown)[:3]} were not announced to MixedWeights.")
        for name, base in self._base.items():
            wide = torch.promote_types(base.dtype, torch.float32)
            value = base.to(wide, copy=True)
            for coefficient, delta in mixture:
                if name in delta:
                    entry = delta[name]
                    if entry.shape != tuple(base.shape):
                        raise DeltaError(f"the delta of {name} has shape {entry.shape}, the base {tuple(base.shape)}.")
                    if isinstance(entry, LowRank):
                        value.add_(entry.dense(wide).to(base.device), alpha=coefficient)
                        continue
                    for rows, block in zip(spans(entry.shape, _BLOCK), entry.blocks(_BLOCK), strict=True):
                        value[rows].add_(block.to(base.device, wide), alpha=coefficient)
            self._own[name].copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base weights back, bit for bit."""
        for name, base in self._base.items():
            self._own[name].copy_(base)

    @contextmanager
    def mixed(self, mixture: Sequence[tuple[float, Mapping[str, Entry]]]) -> Iterator[nn.Module]:
        """Give the model with the mixture applied; the base comes back on exit."""
        self.set(mixture)
        try:
            yield self.model
        finally:
            self.restore()

    @contextmanager
    def unmixed(self) -> Iterator[nn.Module]:
        """Give the model with its base weights for a while, inside ``mixed``, without copying any."""
        mixed = {name: own.data for name, own in self._own.items()}
        for name, own in self._own.items():
            own.data = self._base[name]
        try:
            yield self.model
        finally:
            for name, own in self._own.items():
                own.data = mixed[name]
