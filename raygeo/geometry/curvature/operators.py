"""Curvature of one named scalar, the token-mean negative log-likelihood of a probe, as products with blocks of vectors.

Sums over tokens are added up over all batches and divided once by the global number of completion tokens, so a product
does not depend on how the probe is split. A mean of batch means would weigh tokens of short completions more.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from raygeo.errors import StudentError, WorkloadError
from raygeo.geometry.probes import nll
from raygeo.students.encoding import Batch
from raygeo.students.likelihood import apply_head, completion_states, token_logprobs

BatchProduct = Callable[[list[Tensor]], tuple[Tensor, ...]]


class Operator(ABC):
    """A symmetric [n, n] operator over chosen parameters, in their dtype and on their device.

    ``parameters`` are names as in ``model.named_parameters()`` (a tied weight has one name and is counted once), all by
    default; their values are laid out one after the other, row-major, in the order given. With ``keep_graphs`` the
    differentiated graph of every batch is built once and kept for all products (memory grows with the probe); without
    it, graphs are built batch by batch and shared by the columns of one product. The weights must stay as they are.

    Attention runs as SDPA's plain matrix products, whatever kernels the model would choose: fused ones have no second
    derivative.

    Where ``batches`` are a share of a probe, ``tokens`` is the whole probe's number of completion tokens, by default
    that of ``batches``; scalar, gradient and products are then the share's terms, and those of all shares add up to the
    probe's.

    Attributes: ``n``, the number of scalars; ``tokens``, the number of completion tokens; ``nll``, the scalar itself.

    Raises:
        StudentError: attention is neither SDPA nor eager, the model is in training mode, or it lacks a parameter.
        WorkloadError: two evaluations of the scalar differ, or it is not finite.
    """

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        batches: Seq[Batch],
        parameters: Seq[str] | None = None,
        *,
        keep_graphs: bool = True,
        tokens: int | None = None,
    ):
        _check_differentiable(model)
        own = dict(model.named_parameters())
        names = list(own) if parameters is None else list(dict.fromkeys(parameters))
        missing = [name for name in names if name not in own]
        if missing or not names:
            raise StudentError(
                f"the model has no parameters {missing[:3]}; name some of its own, a tied weight by its first name."
            )
        self.model = model
        self.parameters = {name: own[name].requires_grad_() for name in names}
        self._values = list(self.parameters.values())
        self._sizes = [value.numel() for value in self._values]
        self.n = sum(self._sizes)
        self.dtype, self.device = self._values[0].dtype, self._values[0].device
        self._batches = [batch.to(self.device) for batch in batches]
        own_tokens = sum(batch.tokens for batch in batches)
        self.tokens = own_tokens if tokens is None else tokens
        with _differentiable_attention():
            first, second = (nll(model, self._batches) for _ in range(2))
        self.nll = first * own_tokens / self.tokens
        if not math.isfinite(self.nll):
            raise WorkloadError(f"the probe's negative log-likelihood is {self.nll}; the run diverged, leave it out.")
        if first != second:
            raise WorkloadError(
                "two evaluations of the same loss differ, so its curvature is not defined; turn off dropout and use "
                "deterministic kernels."
            )
        self._kept: list[BatchProduct] | None = [] if keep_graphs else None

    @abstractmethod
    def _linearise(self, batch: Batch) -> BatchProduct:
        """Build the graph of one batch and return the product with a direction, both as lists of parameter shapes."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k]: [n, k]."""
        columns = vectors.T.contiguous()
        result = torch.zeros_like(columns)
        for product in self._products():
            for column, total in zip(columns, result, strict=True):
                self._accumulate(total, product(self._split(column)))
        return result.T

    def gradient(self) -> Tensor:
        """Gradient of the scalar, [n]."""
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for batch in self._batches:
            with _differentiable_attention():
                loss = self._loss(batch)
            self._accumulate(total, _grad(loss, self._values))
        return total

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay tensors named as parameters out as one vector [n]; parameters without a tensor are zero.

        Raises:
            StudentError: a tensor belongs to no parameter of this operator, or has another shape.
        """
        vector = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        unknown = tensors.keys() - self.parameters.keys()
        if unknown:
            raise StudentError(f"{sorted(unknown)[:3]} are not among the operator's parameters; add them to it.")
        for part, (name, value) in zip(self._split(vector), self.parameters.items(), strict=True):
            if name in tensors:
                if tensors[name].shape != value.shape:
                    raise StudentError(
                        f"{name} has shape {tuple(value.shape)}, its direction {tuple(tensors[name].shape)}; "
                        "the direction comes from another model."
                    )
                part.copy_(tensors[name])
        return vector

    def _loss(self, batch: Batch) -> Tensor:
        return -token_logprobs(self.model, batch).sum() / self.tokens

    def _products(self) -> Iterator[BatchProduct]:
        if self._kept is None:
            yield from map(self._graph, self._batches)
            return
        if not self._kept:
            self._kept = [self._graph(batch) for batch in self._batches]
        yield from self._kept

    def _graph(self, batch: Batch) -> BatchProduct:
        with _differentiable_attention():
            return self._linearise(batch)

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split(self._sizes)
        return [part.view_as(value) for part, value in zip(parts, self._values, strict=True)]

    def _accumulate(self, total: Tensor, tensors: Seq[Tensor]) -> None:
        for part, tensor in zip(self._split(total), tensors, strict=True):
            part += tensor


class Hessian(Operator):
    """The Hessian: reverse-over-reverse products (Pearlmutter 1994, "Fast exact multiplication by the Hessian")."""

    name = "hessian"

    def _linearise(self, batch: Batch) -> BatchProduct:
        gradient = _grad(self._loss(batch), self._values, create_graph=True)
        return lambda direction: _grad(gradient, self._values, direction, retain_graph=True)


class GGN(Operator):
    """The generalised Gauss-Newton matrix J^T H_out J with H_out = diag(p) - p p^T for each token, over the logits.

    For the NLL it equals the Fisher information with labels drawn from the model (Martens 2020, "New insights and
    perspectives on the natural gradient method", section 9.2). Positive semi-definite.
    """

    name = "ggn"

    def _linearise(self, batch: Batch) -> BatchProduct:
        logits = apply_head(self.model, completion_states(self.model, batch))
        p = logits.detach().softmax(-1)
        # The pullback J^T u is linear in u; differentiating it by u along a direction v gives J v.
        u = torch.zeros_like(logits, requires_grad=True)
        pullback = _grad(logits, self._values, u, create_graph=True)

        def product(direction: list[Tensor]) -> tuple[Tensor, ...]:
            (pushed,) = _grad(pullback, [u], direction, retain_graph=True)
            curved = p * (pushed - (p * pushed).sum(-1, keepdim=True)) / self.tokens
            return _grad(logits, self._values, curved, retain_graph=True)

        return product


def _grad(
    outputs: Tensor | Seq[Tensor],
    inputs: Seq[Tensor],
    direction: Tensor | Seq[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> tuple[Tensor, ...]:
    """``torch.autograd.grad`` where an output or input without influence counts as zero."""
    if not isinstance(outputs, Tensor) and direction is not None:
        pairs = [(o, d) for o, d in zip(outputs, direction, strict=True) if o.requires_grad]
        outputs, direction = [o for o, _ in pairs], [d for _, d in pairs]
    return grad(
        outputs, inputs, direction, create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
    )


def _differentiable_attention() -> AbstractContextManager[None]:
    """Only the kernel of scaled dot product attention that is made of matrix products and a softmax."""
    return sdpa_kernel(SDPBackend.MATH)


def _check_differentiable(model: nn.Module) -> None:
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise StudentError(
            f"the model's attention is {attention!r}, which cannot be differentiated twice; load it with 'sdpa'."
        )
    if model.training:
        raise StudentError("the model is in training mode, where dropout may change the loss; call model.eval() first.")
