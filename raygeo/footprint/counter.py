"""Bytes and operations of a computation, counted while it runs; on the meta device, without running anything."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_aten: Any = torch.ops.aten


class Counter(TorchDispatchMode):
    """Counts what is computed in it, on any device.

    ``live`` are the bytes of all storages made so far that are still referenced, not counting those of ``known``, which
    were there before. ``peaks`` are the most there have been in each half, by operations, of each stage between two
    calls of ``mark``. ``flops`` counts a multiplication and an addition as two, over
    matrix products and attention alone, as ``torch.utils.flop_counter`` does. What a kernel allocates within and gives
    back is not seen.

    On the meta device a question about values (``item``, ``equal``, ``nonzero``) is answered as if all were true.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.flops = 0
        self._past: list[list[int]] = [[]]
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def mark(self) -> None:
        """Begin another stage."""
        self._past.append([])

    def restart(self) -> None:
        """Forget the peaks of earlier stages, and operations."""
        self._past, self.flops = [[self.live]], 0

    @property
    def peaks(self) -> tuple[int, ...]:
        """Bytes: two a stage."""
        halves = [(past[: len(past) // 2], past[len(past) // 2 :]) for past in self._past]
        return tuple(max(half, default=0) for both in halves for half in both)

    @property
    def peak(self) -> int:
        """The most bytes at any time."""
        return max(self.peaks)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run one operation and count what it made."""
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype is torch.bool else 1
        if func is _aten.equal.default and args[0].is_meta:
            return True
        if func is _aten._to_copy.default and args[0].is_meta:
            kwargs = {**kwargs, "device": torch.device("meta")}  # what is on its way to the CPU stays a shape
        if func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):  # comes whole without gradients
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and (storage := made.untyped_storage()) not in self._seen:
                self._seen[storage] = None
                size = storage.nbytes()
                self.live += size
                weakref.finalize(storage, self._freed, size)
        self._past[-1].append(self.live)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        elif func is _aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.flops += flop_registry[_aten._scaled_dot_product_flash_attention](*args[:3], out_val=out)
        elif func is _aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
            self.flops += flop_registry[_aten._scaled_dot_product_flash_attention_backward](*args[:4], out_val=out)
        return out

    def _freed(self, size: int) -> None:
        self.live -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device, let attention keep what a fused kernel keeps: its inputs, its output and a number a row.

    The function itself is replaced for a while, since a backward pass that computes layers again leaves torch's modes.
    """
    own = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not query.is_meta:
            return own(query, key, value, *args, **kwargs)
        causal, mask, scale = (kwargs.get(name) for name in ("is_causal", "attn_mask", "scale"))
        kernel = _aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, 0.0, bool(causal), attn_mask=mask, scale=scale)[0]

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = own


@contextmanager
def counting(known: Iterable[Tensor] = (), *, fused_attention: bool = True) -> Iterator[Counter]:
    """Count what runs in it, which may be on the meta device; ``known`` tensors were there before.

    Without ``fused_attention`` scaled dot product attention on the meta device is made of matrix products, all of whose
    results are held: what can be differentiated twice.
    """
    from torch.fx.experimental import _config

    config: Any = _config

    with ExitStack() as stack:
        stack.enter_context(config.patch(meta_nonzero_assume_all_nonzero=True))
        if fused_attention:
            stack.enter_context(_fused_attention())
        yield stack.enter_context(Counter(known))
