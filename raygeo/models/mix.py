"""A model whose weights can be set to base plus any linear combination of deltas, and back, exactly."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raygeo.errors import DeltaError
from raygeo.models.delta import Dense, Entry, LowRank, spans

Mixture = Sequence[tuple[float, Mapping[str, Entry]]]
"""Deltas with their coefficients: base + sum of coefficient * delta; the base itself is empty."""
_BLOCK = 1 << 22
_ADDED: WeakKeyDictionary[nn.Module, Mixture] = WeakKeyDictionary()


class MixedWeights:
    """Keeps the base weights of ``parameters`` (those that any delta touches) and writes mixtures into ``model``.

    Sums are taken on the parameter's device in its dtype, fp32 at least, and rounded to its own once, which moves an
    entry w of a bf16 parameter by up to |w| / 256. A LoRA delta is multiplied out one module at a time, a full one is
    read from disk a block of rows at a time, each time anew.

    LoRA deltas of linear layers narrower than fp32 are not rounded into the weights, where most of a small one would be
    lost: x (scale B A)^T is added to what the layer gives, in fp32, as PEFT does while training. Sums of several are
    one product of their factors side by side.

    The copy of the base takes the narrowest of its own dtype and bf16 that holds it exactly, parameter by parameter;
    those whose deltas are all applied beside their layer have none.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[str]):
        self.model = model
        own = dict(model.named_parameters())
        for name in (names := sorted(set(parameters))):
            if name not in own:
                raise DeltaError(
                    f"the delta names {name!r}, which the base model lacks; it was trained from another model."
                )
        self._own = {name: own[name] for name in names}
        self._layers = _narrow_layers(model, self._own)
        self._base = {name: _exact_copy(own[name]) for name in names if name not in self._layers}
        self._beside: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    @torch.no_grad()
    def set(self, mixture: Mixture) -> None:
        """Set every kept parameter to base + sum of coefficient * delta."""
        _ADDED[self.model] = list(mixture)
        unknown = {name for _, delta in mixture for name in delta} - self._own.keys()
        if unknown:
            raise DeltaError(f"parameters {sorted(unknown)[:3]} were not announced to MixedWeights.")
        self._detach()
        for name, own in self._own.items():
            terms = [(coefficient, delta[name]) for coefficient, delta in mixture if name in delta]
            for _, entry in terms:
                if entry.shape != tuple(own.shape):
                    raise DeltaError(f"the delta of {name} has shape {entry.shape}, the base {tuple(own.shape)}.")
            if name in self._layers:
                self._attach(name, [(c, entry) for c, entry in terms if isinstance(entry, LowRank)])
                terms = [(c, entry) for c, entry in terms if isinstance(entry, Dense)]
                if not terms and name not in self._base:
                    continue
                self._base.setdefault(name, own.detach().clone())
            wide = torch.promote_types(own.dtype, torch.float32)
            value = self._base[name].to(wide, copy=True)
            for coefficient, entry in terms:
                if isinstance(entry, LowRank):
                    value.add_(entry.dense(wide, value.device), alpha=coefficient)
                    continue
                for rows, block in zip(spans(entry.shape, _BLOCK), entry.blocks(_BLOCK), strict=True):
                    value[rows].add_(block.to(value.device, wide), alpha=coefficient)
            own.copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base weights back, bit for bit."""
        _ADDED.pop(self.model, None)
        self._detach()
        for name, base in self._base.items():
            self._own[name].copy_(base)

    def _attach(self, name: str, terms: list[tuple[float, LowRank]]) -> None:
        if not terms:
            return
        device = self._own[name].device
        a = torch.cat([entry.a.to(device, torch.float32) for _, entry in terms])
        b = torch.cat(
            [coefficient * entry.scale * entry.b.to(device, torch.float32) for coefficient, entry in terms], 1
        )
        self._beside[name] = (a, b)
        self._hooks.append(self._layers[name].register_forward_hook(partial(self._add, name)))

    def _add(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if name not in self._beside:
            return output
        a, b = self._beside[name]
        return (output + inputs[0].to(a) @ a.T @ b.T).to(output.dtype)

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._beside = [], {}

    @contextmanager
    def mixed(self, mixture: Mixture) -> Iterator[nn.Module]:
        """Give the model with the mixture applied; the base comes back on exit."""
        try:
            self.set(mixture)
            yield self.model
        finally:
            self.restore()

    @contextmanager
    def unmixed(self) -> Iterator[nn.Module]:
        """Give the model with its base weights for a while, inside ``mixed``; no copy is made but of narrower ones."""
        mixed = {name: self._own[name].data for name in self._base}
        beside, self._beside = self._beside, {}
        for name, base in self._base.items():
            self._own[name].data = base.to(self._own[name].dtype)
        try:
            yield self.model
        finally:
            self._beside = beside
            for name, value in mixed.items():
                self._own[name].data = value


def _narrow_layers(model: nn.Module, own: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """The linear layers narrower than fp32 whose weights are in ``own``, by these; not what makes logits, whose weight
    is used by itself too, nor one that shares its weight.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    users = Counter(id(module._parameters.get("weight")) for module in model.modules())
    return {
        weight: module
        for name, module in model.named_modules()
        if (weight := f"{name}.weight") in own
        and type(module) is nn.Linear
        and module is not head
        and users[id(module.weight)] == 1
        and module.weight.dtype.itemsize < torch.float32.itemsize
    }


def _exact_copy(parameter: nn.Parameter) -> Tensor:
    value = parameter.detach()
    narrow = value.bfloat16()
    return narrow if narrow.dtype != value.dtype and torch.equal(narrow.to(value.dtype), value) else value.clone()


def mixture_of(model: nn.Module) -> Mixture:
    """What ``MixedWeights`` has added to the weights of a model at this moment; empty for the base."""
    return _ADDED.get(model, [])


@contextmanager
def applied(model: nn.Module, delta: Mapping[str, Entry], scale: float = 1.0) -> Iterator[nn.Module]:
    """Give ``model`` with ``scale`` times ``delta`` added to its weights; they come back on exit, bit for bit.

    The sum is taken in the parameters' dtype, fp32 at least; twice the weights that ``delta`` touches are in memory.

    Raises:
        DeltaError: the model lacks a parameter of ``delta``, or has it in another shape.
    """
    with MixedWeights(model, delta).mixed([(scale, delta)]):
        yield model
