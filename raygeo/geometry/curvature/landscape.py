"""A loss near some weights, by the distance from them: what sharpness and differences of gradients ask of a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd import grad

from raygeo.data.probes import nll
from raygeo.geometry.curvature.chain import nll_products
from raygeo.models.batches import Batch, input_device
from raygeo.models.likelihood import token_logprobs


class Slope(Protocol):
    """The gradient of a scalar of n weights, near some weights."""

    @property
    def weights(self) -> Tensor:
        """The weights, [n]."""

    def gradient(self, offset: Tensor) -> Tensor:
        """The gradient at weights + ``offset`` [n], [n]; the weights stay as they are."""


class Landscape(Slope, Protocol):
    """A scalar of n weights, near some weights."""

    @property
    def sizes(self) -> list[int]:
        """How many of the weights each parameter has, in order."""

    def loss(self, offset: Tensor) -> float:
        """The scalar at weights + ``offset`` [n]; the weights stay as they are."""


class ModelLandscape:
    """The token-mean NLL of ``batches``, in nats, over the parameters ``names`` of ``model``, in their own dtype.

    ``weights`` are laid out one parameter after the other, row-major. Every call puts them back, bit for bit. Passes
    use whatever attention the model chooses, as they need no second derivative. ``by_layer`` takes gradients with one
    layer's graph and a few tokens' logits at a time (``chain``), at a forward pass more. Where ``batches`` are a share
    of a probe, ``tokens`` is the whole probe's number of completion tokens, and gradients are the share's terms.

    Attributes: ``tokens``, the number of completion tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        names: Sequence[str],
        *,
        by_layer: bool = False,
        tokens: int | None = None,
    ):
        own = dict(model.named_parameters())
        self._model = model
        self._parameters = [own[name].requires_grad_() for name in names]
        device = self._parameters[0].device
        self._batches = [batch.to(input_device(model)) for batch in batches]
        self.sizes = [value.numel() for value in self._parameters]
        self.tokens = sum(batch.tokens for batch in batches) if tokens is None else tokens
        self._by_layer = by_layer
        self.weights = torch.cat([value.detach().flatten().to(device) for value in self._parameters])

    def loss(self, offset: Tensor) -> float:
        """The NLL at weights + ``offset`` [n]."""
        self._set(self.weights + offset)
        try:
            return nll(self._model, self._batches)
        finally:
            self._set(self.weights)

    def gradient(self, offset: Tensor) -> Tensor:
        """Its gradient there, [n]."""
        self._set(self.weights + offset)
        try:
            total = torch.zeros_like(self.weights)
            for batch in self._batches:
                if self._by_layer:
                    parts = [p.view_as(v) for p, v in zip(total.split(self.sizes), self._parameters, strict=True)]
                    nll_products(self._model, batch, self._parameters, self.tokens, [], [], parts)
                    continue
                loss = -token_logprobs(self._model, batch).sum() / self.tokens
                found = grad(loss, self._parameters, materialize_grads=True)
                total += torch.cat([part.flatten().to(total.device) for part in found])
            return total
        finally:
            self._set(self.weights)

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        for value, part in zip(self._parameters, weights.split(self.sizes), strict=True):
            value.copy_(part.view_as(value))
