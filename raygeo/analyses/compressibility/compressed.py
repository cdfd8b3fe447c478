"""What a model's weights change by when they, or what was learned, are compressed."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, linalg, nn

from raygeo.models.delta import Dense, Entry, layer_index

Compress = Callable[[str, Tensor], Tensor]
"""From a parameter's name and a matrix [..., in], fp32, to the compressed matrix."""


def compressible(model: nn.Module) -> list[str]:
    """Parameters of transformer blocks that have two dimensions or more, sorted; embeddings and head are not among
    them.
    """
    return sorted(n for n, p in model.named_parameters() if p.ndim >= 2 and layer_index(n) is not None)


class Whole:
    """The weights W + D of a model, of base weights W, with a delta D added (None: none), as matrices [..., in]."""

    def __init__(self, model: nn.Module, delta: Mapping[str, Entry] | None):
        from transformers.pytorch_utils import Conv1D

        self.own = dict(model.named_parameters())
        self.names = compressible(model)
        self.delta: Mapping[str, Entry] = {} if delta is None else delta
        self._turned = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Conv1D)}  # held as [in, out]

    @property
    def touched(self) -> list[str]:
        """Those of the names that the delta changes."""
        return [name for name in self.names if name in self.delta]

    def change(self, name: str) -> Tensor:
        """D of one parameter, fp32."""
        return self.turned(name, self.delta[name].dense(device=self.own[name].device))

    def weight(self, name: str) -> Tensor:
        """W + D of one parameter, summed in fp32."""
        base = self.turned(name, self.own[name].detach().float())
        return base + self.change(name) if name in self.delta else base

    def turned(self, name: str, value: Tensor) -> Tensor:
        """Between the layout of the parameter and [..., in]: the same way there and back."""
        return value.T if name in self._turned else value


class Compressed(Mapping[str, Entry]):
    """The delta that compresses: C(W + D) - W with all that is compressible, or C(D) where ``alone``.

    Other parameters are changed as the delta says. Each entry is made when it is asked for, of the base weights that
    the model then has, and not kept: hand it to ``MixedWeights`` at its base weights. ``lost`` is the Frobenius norm of
    what compression took from all that was asked for so far over that of what was compressed, ``zeros`` the share of
    zeros that it left.
    """

    def __init__(self, whole: Whole, compress: Compress, *, alone: bool):
        self._whole, self._compress, self._alone = whole, compress, alone
        self._chosen = set(whole.touched if alone else whole.names)
        self._names = sorted(self._chosen | set(whole.delta))
        self._lost = self._size = 0.0
        self._zeros = self._entries = 0

    @property
    def lost(self) -> float | None:
        """|C(X) - X| / |X|; None where X is zero."""
        return math.sqrt(self._lost / self._size) if self._size else None

    @property
    def zeros(self) -> float | None:
        """The share of the entries of C(X) that are zero."""
        return self._zeros / self._entries if self._entries else None

    def __getitem__(self, name: str) -> Entry:
        if name not in self._chosen:
            return self._whole.delta[name]
        whole = self._whole
        before = whole.change(name) if self._alone else whole.weight(name)
        after = self._compress(name, before)
        self._lost += linalg.vector_norm(after - before, dtype=torch.float64).item() ** 2
        self._size += linalg.vector_norm(before, dtype=torch.float64).item() ** 2
        self._zeros += int((after == 0).sum())
        self._entries += after.numel()
        difference = whole.turned(name, after)
        if not self._alone:
            difference = difference - whole.own[name].detach().float()
        return Dense(difference)

    def __contains__(self, name: object) -> bool:
        return name in self._chosen or name in self._whole.delta

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
