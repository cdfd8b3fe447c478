"""The Hessian by differences of gradients as an operator like the others: with any attention, at any length."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from raygeo.geometry.curvature.draws import named_generator, rademacher
from raygeo.geometry.curvature.gradient_difference import GradientDifference, Scan
from raygeo.geometry.curvature.landscape import ModelLandscape
from raygeo.geometry.curvature.operators import Hessian, Operator, versions
from raygeo.models.batches import Batch


class DifferenceHessian(Hessian):
    """The Hessian of ``Hessian``, its products made of two gradients each (``GradientDifference``).

    A gradient holds one layer's graph at a time and takes the attention that the model chooses, so nothing quadratic in
    the length of a text is kept. Weights are moved in their own dtype, fp32 at least, and come back bit for bit.
    Products are off by about what their ``scan`` says; ``exact`` is that of ``Hessian``, by layer and in fp64.

    ``scale`` is the length of a step as a share of that of the weights: of ``gradient_difference.SCALES`` the one on
    which the product with a random vector depends least. It is found with the operator, by ten gradients.
    """

    second_derivatives: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], parameters: Sequence[str] | None = None, **options: Any
    ):
        super().__init__(model, batches, parameters, **{**options, "keep_graphs": False, "by_layer": True})
        near = ModelLandscape(model, self._batches, list(self.parameters), by_layer=True, tokens=self.tokens)
        self._difference = GradientDifference(near)
        signs = rademacher(self.n, 1, named_generator("step"), dtype=self.dtype, device=self.device)
        self.scale = self._difference.scale = self.scan(signs[:, 0]).scale

    @property
    def kind(self) -> type[Operator]:
        """The operator whose products are ``exact``."""
        return Hessian

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k]: [n, k], two gradients each."""
        self._check_weights()
        found = self._difference.matmat(vectors)
        self._versions = versions(self.model)
        return found

    def scan(self, vector: Tensor) -> Scan:
        """The product with ``vector`` [n] where it depends least on the length of step, by ten gradients."""
        self._check_weights()
        found = self._difference.scan(vector)
        self._versions = versions(self.model)
        return found

    def _attention(self) -> AbstractContextManager[None]:
        return nullcontext()
