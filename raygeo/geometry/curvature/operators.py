"""Curvature of one named scalar, the token-mean negative log-likelihood of a probe, as products with blocks of vectors.

Sums over tokens are added up over all batches and divided once by the global number of completion tokens, so a product
does not depend on how the probe is split. A mean of batch means would weigh tokens of short completions more.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from raygeo.data.probes import nll
from raygeo.errors import StudentError, WorkloadError
from raygeo.geometry.curvature.chain import Chain, Parts, add_rows, gradients, head_by_chunks, nll_products
from raygeo.models.batches import Batch, input_device
from raygeo.models.likelihood import apply_head, completion_states, token_logprobs

BatchProduct = Callable[[list[Tensor]], tuple[Tensor, ...]]


class Operator(ABC):
    """A symmetric [n, n] operator over chosen parameters, in their dtype and on their device.

    ``parameters`` are names as in ``model.named_parameters()`` (a tied weight has one name and is counted once), all by
    default; their values are laid out one after the other, row-major, in the order given. With ``keep_graphs`` the
    differentiated graph of every batch is built once and kept for all products (memory grows with the probe); without
    it, graphs are built batch by batch and shared by the columns of one product. ``by_layer`` builds them layer by
    layer, and holds one layer's alone (``chain.Chain``): the same numbers but for rounding, at twice the time and more.
    The operator is of the model's weights as they are, and is refused once they have been written to (``mix.applied``
    has ended, an optimizer has stepped).

    Attention runs as SDPA's plain matrix products, whatever kernels the model would choose: fused ones have no second
    derivative.

    Where ``batches`` are a share of a probe, ``tokens`` is the whole probe's number of completion tokens, by default
    that of ``batches``; scalar, gradient and products are then the share's terms, and those of all shares add up to the
    probe's.

    Attributes: ``n``, the number of scalars; ``tokens``, the number of completion tokens; ``nll``, the scalar itself.

    Raises:
        StudentError: attention is neither SDPA nor eager, the model is in training mode, or it lacks a parameter.
        WorkloadError: two evaluations of the scalar differ, or it is not finite; or, from products and ``gradient``,
            the weights have been written to since.
    """

    name: ClassVar[str]
    second_derivatives: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        batches: Seq[Batch],
        parameters: Seq[str] | None = None,
        *,
        keep_graphs: bool = True,
        by_layer: bool = False,
        tokens: int | None = None,
    ):
        _check_differentiable(model, self.second_derivatives)
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
        self._batches = [batch.to(input_device(model)) for batch in batches]
        own_tokens = sum(batch.tokens for batch in batches)
        self.tokens = own_tokens if tokens is None else tokens
        with self._attention():
            first, second = (nll(model, self._batches) for _ in range(2))
        self.nll = first * own_tokens / self.tokens
        if self.dtype.itemsize < torch.float32.itemsize:
            raise StudentError(f"second derivatives in {self.dtype} are noise; load the student in fp32.")
        if not math.isfinite(self.nll):
            raise WorkloadError(f"the probe's negative log-likelihood is {self.nll}; the run diverged, leave it out.")
        if first != second:
            raise WorkloadError(
                "two evaluations of the same loss differ, so its curvature is not defined; turn off dropout and use "
                "deterministic kernels."
            )
        self._kept: list[BatchProduct] | None = [] if keep_graphs else None
        self._by_layer = by_layer
        self._versions = versions(model)

    @property
    def kind(self) -> type["Operator"]:
        """The operator whose products are ``exact``."""
        return type(self)

    @abstractmethod
    def _linearise(self, batch: Batch) -> BatchProduct:
        """Build the graph of one batch and return the product with a direction, both as lists of parameter shapes."""

    @abstractmethod
    def _sweep(self, batch: Batch, columns: Seq[Parts], results: Seq[list[Tensor]]) -> None:
        """Add the products of one batch with ``columns`` to ``results``, a layer at a time."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k]: [n, k]."""
        columns = vectors.T.contiguous()
        result = torch.zeros_like(columns)
        if self._by_layer:
            self._check_weights()
            given: list[Parts] = [list(self._placed(column)) for column in columns]
            for batch in self._batches:
                with self._attention():
                    self._sweep(batch, given, [self._split(total) for total in result])
            return result.T
        for product in self._products():
            for column, total in zip(columns, result, strict=True):
                self._accumulate(total, product(self._placed(column)))
        return result.T

    def exact(self, vectors: Tensor) -> Tensor:
        """Multiply by each column of ``vectors`` [n, k] in fp64 throughout: [n, k] fp64.

        The weights are widened as they are, and so is what the model itself narrows to fp32 (norms, rotary positions,
        eager attention). Batches are halved where they can be, and graphs that were kept are let go, so that it takes
        little more memory than products did, besides twice the weights'.
        """
        self._check_weights()
        self._kept = None if self._kept is None else []
        model: Any = deepcopy(self.model).double()
        if hasattr(model, "config") and hasattr(model.config, "_experts_implementation"):
            model.config._experts_implementation = "eager"  # grouped products of experts know no fp64
        batches = [half for batch in self._batches for half in _halves(batch)]
        with _WideThroughout():
            wide = self.kind(
                model, batches, list(self.parameters), keep_graphs=False, by_layer=self._by_layer, tokens=self.tokens
            )
            return wide.matmat(vectors.double())

    def gradient(self) -> Tensor:
        """Gradient of the scalar, [n]."""
        self._check_weights()
        total = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for batch in self._batches:
            with self._attention():
                if self._by_layer:
                    nll_products(self.model, batch, self._values, self.tokens, [], [], self._split(total))
                    continue
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
                given = tensors[name]
                if given.shape != value.shape:
                    raise StudentError(
                        f"{name} has shape {tuple(value.shape)}, its direction {tuple(given.shape)}; "
                        "the direction comes from another model."
                    )
                part.copy_(given)
        return vector

    def _attention(self) -> AbstractContextManager[None]:
        return _differentiable_attention()

    def _loss(self, batch: Batch) -> Tensor:
        return -token_logprobs(self.model, batch).sum() / self.tokens

    def _products(self) -> Iterator[BatchProduct]:
        self._check_weights()
        if self._kept is None:
            yield from map(self._graph, self._batches)
            return
        if not self._kept:
            self._kept = [self._graph(batch) for batch in self._batches]
        yield from self._kept

    def _graph(self, batch: Batch) -> BatchProduct:
        with self._attention():
            return self._linearise(batch)

    def _check_weights(self) -> None:
        if versions(self.model) != self._versions:
            raise WorkloadError(
                f"the model's weights have been written to since this {self.name} was made, so it is no longer theirs; "
                "make it again, and use it before they change (inside `with applied(...)`, where it is of a run)."
            )

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split(self._sizes)
        return [part.view_as(value) for part, value in zip(parts, self._values, strict=True)]

    def _placed(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector, each where its parameter is."""
        return [part.to(value.device) for part, value in zip(self._split(vector), self._values, strict=True)]

    def _accumulate(self, total: Tensor, tensors: Seq[Tensor]) -> None:
        for part, tensor in zip(self._split(total), tensors, strict=True):
            part += tensor.to(part.device)


Term = Callable[[], AbstractContextManager[Operator]]
Gather = Callable[[Operator, Seq[Term]], AbstractContextManager[Any]]
"""Makes one operator, as a context, of a term in this process and of recipes of terms for other processes."""


class Hessian(Operator):
    """The Hessian: reverse-over-reverse products (Pearlmutter 1994, "Fast exact multiplication by the Hessian").

    ``Hessian(model, batches, parameters)`` is that of the token-mean NLL of ``batches`` (``Probe.batches``) over the
    parameters named, in nats; ``matmat``, ``exact`` and ``gradient`` ask it, as every ``Operator``.
    """

    name = "hessian"

    def _linearise(self, batch: Batch) -> BatchProduct:
        gradient = _grad(self._loss(batch), self._values, create_graph=True)
        return lambda direction: _grad(gradient, self._values, direction, retain_graph=True)

    def _sweep(self, batch: Batch, columns: Seq[Parts], results: Seq[list[Tensor]]) -> None:
        nll_products(self.model, batch, self._values, self.tokens, columns, results)


class GGN(Operator):
    """The generalised Gauss-Newton matrix J^T H_out J with H_out = diag(p) - p p^T for each token, over the logits.

    For the NLL it equals the Fisher information with labels drawn from the model (Martens 2020, "New insights and
    perspectives on the natural gradient method", section 9.2). Positive semi-definite. It is made and asked as
    ``Hessian`` is.
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

    def _sweep(self, batch: Batch, columns: Seq[Parts], results: Seq[list[Tensor]]) -> None:
        def add(column: int, place: int, value: Tensor) -> None:
            results[column][place] += value.to(self.device)

        chain = Chain(self.model, lambda: completion_states(self.model, batch), self._values)
        _, tangents = chain.push(columns)
        cotangents = [torch.zeros_like(chain.states) for _ in columns]
        for rows, inputs, logits, _ in head_by_chunks(self.model, chain, batch):
            p = logits.detach().softmax(-1)
            u = torch.zeros_like(logits, requires_grad=True)
            pullback = gradients([logits], inputs, [u], create_graph=True)
            for number, (tangent, column) in enumerate(zip(tangents, columns, strict=True)):
                along = [None if tangent is None else tangent[rows], *(column[p] for p in chain.loose)]
                pushed = gradients(pullback, [u], along, retain_graph=True)[0]
                if pushed is None:
                    continue
                curved = p * (pushed - (p * pushed).sum(-1, keepdim=True)) / self.tokens
                back = gradients([logits], inputs, [curved], retain_graph=True)
                add_rows(cotangents[number], rows, back[0])
                for place, value in zip(chain.loose, back[1:], strict=True):
                    if value is not None:
                        add(number, place, value)
        chain.pull(cotangents, add)


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


def versions(model: nn.Module) -> list[int]:
    """How often each parameter has been written to."""
    return [value._version for value in model.parameters()]


class _WideThroughout(TorchFunctionMode):
    """What would be cast to fp32 within stays or becomes fp64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        wide = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*(torch.float64 if value is torch.float32 else value for value in args), **wide)


def _halves(batch: Batch) -> list[Batch]:
    size = math.ceil(len(batch.input_ids) / 2)
    parts = (tensor.split(size) for tensor in (batch.input_ids, batch.attention_mask, batch.mask))
    return [Batch(*part) for part in zip(*parts, strict=True)]


def _differentiable_attention() -> AbstractContextManager[None]:
    """Only the kernel of scaled dot product attention that is made of matrix products and a softmax."""
    return sdpa_kernel(SDPBackend.MATH)


def _check_differentiable(model: nn.Module, twice: bool) -> None:
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "sdpa")
    if twice and attention not in ("sdpa", "eager"):
        raise StudentError(
            f"the model's attention is {attention!r}, which cannot be differentiated twice; load it with 'sdpa'."
        )
    if model.training:
        raise StudentError("the model is in training mode, where dropout may change the loss; call model.eval() first.")
