"""A causal language model as a chain of its layers, so that second derivatives hold the graph of one layer at a time.

Differentiating a gradient keeps everything the gradient was made of, and checkpoints do not help: what a checkpoint
computes again while a gradient is taken is a part of that gradient's graph. So the chain rule is gone through by hand.
Of states h_{i+1} = f_i(h_i, w_i), a direction v of all weights is pushed forward to tangents of the states,

    t_{i+1} = J_i (t_i, v_i),

and the scalar's gradients g_i and their derivatives b_i along v come back, from one layer's graph after another:

    (g_i, dw_i) = J_i' g_{i+1},   (b_i, Hv_i) = J_i' b_{i+1} + the gradient of <J_i' g_{i+1}, (t_i, v_i)>.

That is the chain rule applied to Pearlmutter 1994 ("Fast exact multiplication by the Hessian"), in whatever order of
summation; nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from raygeo.errors import StudentError
from raygeo.models.batches import Batch
from raygeo.models.likelihood import CHUNK_LOGITS, apply_head, completion_states

Parts = list[Tensor | None]
"""A tensor for each parameter, or None for zero."""


def gradients(outputs: Sequence[Tensor | None], inputs: Sequence[Tensor], given: Sequence[Tensor | None],
              *, create_graph: bool = False, retain_graph: bool | None = None) -> Parts:  # fmt: skip
    """Sums of vector-Jacobian products of ``outputs`` with ``given``, by ``inputs``; None where there is no influence.

    Outputs that are None or depend on nothing count as constants, and so do those whose vector is None.
    """
    pairs = [(o, g) for o, g in zip(outputs, given, strict=True) if o is not None and g is not None and o.requires_grad]
    if not pairs or not inputs:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        [o for o, _ in pairs],
        list(inputs),
        [g for _, g in pairs],
        create_graph=create_graph,
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return list(found)


@dataclass(frozen=True)
class Step:
    """One link: ``function`` of the state before it (of nothing, for the first link), with its parameters.

    ``places`` number these parameters among those of the chain.
    """

    function: Callable[..., Tensor]
    places: list[int]


@dataclass
class Reach:
    """What the sweep back has reached: gradients of one scalar by states, and their derivatives along directions."""

    gradient: Tensor | None
    bends: Parts


class Chain:
    """From token ids to final states, by way of every layer, for one batch.

    Args:
        model: the model; its layers are the modules that transformers would checkpoint.
        states: gives the final states [N, d] of the batch by running the model.
        parameters: what is differentiated by, parameters of the model.

    Attributes: ``states``, the final states; ``loose_parameters``, those that are in no layer, and ``loose``, their
    numbers.

    Raises:
        StudentError: the model's layers do not follow each other, or take more that depends on weights than the state.
    """

    def __init__(self, model: nn.Module, states: Callable[[], Tensor], parameters: Sequence[Tensor]):
        self._parameters = parameters
        layers = _layers(model)
        calls = _record(layers, states)
        self.states = calls.pop()[-1]
        number = {id(value): place for place, value in enumerate(parameters)}
        inside = [[number[id(value)] for value in layer.parameters() if id(value) in number] for layer in layers]
        self.loose = sorted(set(number.values()) - {place for places in inside for place in places})
        functions = [_alone(*call[:3]) for call in calls]
        outputs = [call[-1] for call in calls]
        self._steps = [
            Step(lambda: _first_state(layers[0], states), self.loose),
            *(Step(function, places) for function, places in zip(functions, inside, strict=True)),
            Step(lambda state: _from_last(layers, outputs, state, states), self.loose),
        ]
        self._states = [None, *(call[3] for call in calls), last := _state(outputs[-1])]
        with torch.no_grad():
            if not torch.equal(self._steps[-1].function(last), self.states):
                raise StudentError(_REFUSED)
        self.loose_parameters = [parameters[place] for place in self.loose]
        self._first = next((i for i, step in enumerate(self._steps) if step.places), len(self._steps))

    def push(self, columns: Sequence[Parts]) -> tuple[list[Parts], Parts]:
        """Tangents of the states before each link, and of the final states, along each of ``columns``."""
        tangents: Parts = [None] * len(columns)
        before = []
        for step, state in zip(self._steps, self._states, strict=True):
            before.append(tangents)
            if step.places or any(t is not None for t in tangents):
                tangents = self._push(step, state, tangents, columns)
        return before, tangents

    def pull(self, cotangents: Sequence[Tensor], add: Callable[[int, int, Tensor], None]) -> None:
        """Gradients of the inner products of the final states with each of ``cotangents``.

        ``add(column, place, value)`` receives every contribution to every parameter.
        """
        given: Parts = list(cotangents)
        for step, state in self._backwards():
            given = self._pull(step, state, given, add)

    def bend(
        self,
        reach: Reach,
        columns: Sequence[Parts],
        before: Sequence[Parts],
        add: Callable[[int, int, Tensor], None],
        add_gradient: Callable[[int, Tensor], None],
    ) -> None:
        """Take a scalar's ``reach``, its gradient by the final states and that one's derivatives, back to the weights.

        ``before`` is what ``push`` gave for the same columns. ``add`` receives contributions to the products, as in
        ``pull``, and ``add_gradient`` those to the gradient.
        """
        for (step, state), tangents in zip(self._backwards(), reversed(before), strict=False):
            reach = self._bend(step, state, reach, tangents, columns, add, add_gradient)

    # -- one link; its graph ends with the call ---------------------------------------------------------------------

    def _push(self, step: Step, state: Tensor | None, tangents: Parts, columns: Sequence[Parts]) -> Parts:
        leaves, inputs = self._open(step, state)
        output = step.function(*leaves)
        # The pullback J'u is linear in u; differentiating it by u along a direction v gives J v.
        u = torch.zeros_like(output, requires_grad=True)
        pulled = gradients([output], inputs, [u], create_graph=True)
        given = [_along(step, leaves, t, column) for t, column in zip(tangents, columns, strict=True)]
        return [gradients(pulled, [u], each, retain_graph=True)[0] for each in given]

    def _pull(self, step: Step, state: Tensor | None, given: Parts, add: Callable[[int, int, Tensor], None]) -> Parts:
        leaves, inputs = self._open(step, state)
        output = step.function(*leaves)
        found = [gradients([output], inputs, [each], retain_graph=True) for each in given]
        for column, parts in enumerate(found):
            _hand_over(parts[len(leaves) :], step.places, partial(add, column))
        return [parts[0] for parts in found] if leaves else []

    def _bend(
        self,
        step: Step,
        state: Tensor | None,
        reach: Reach,
        tangents: Parts,
        columns: Sequence[Parts],
        add: Callable[[int, int, Tensor], None],
        add_gradient: Callable[[int, Tensor], None],
    ) -> Reach:
        leaves, inputs = self._open(step, state)
        output = step.function(*leaves)
        first = gradients([output], inputs, [reach.gradient], create_graph=bool(columns))
        _hand_over([None if x is None else x.detach() for x in first[len(leaves) :]], step.places, add_gradient)
        bends: Parts = []
        for number, column in enumerate(columns):
            along = _along(step, leaves, tangents[number], column)
            second = gradients([output, *first], inputs, [reach.bends[number], *along], retain_graph=True)
            _hand_over(second[len(leaves) :], step.places, partial(add, number))
            bends.append(second[0] if leaves else None)
        return Reach(first[0].detach() if leaves and first[0] is not None else None, bends)

    def _backwards(self) -> Iterator[tuple[Step, Tensor | None]]:
        """The links from the last to the first that has parameters, and the states before them."""
        yield from reversed(list(zip(self._steps, self._states, strict=True))[self._first :])

    def _open(self, step: Step, state: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        leaves = [] if state is None else [state.detach().requires_grad_()]
        return leaves, [*leaves, *(self._parameters[place] for place in step.places)]


def nll_products(
    model: Any,
    batch: Batch,
    values: Sequence[Tensor],
    tokens: int,
    columns: Sequence[Parts],
    results: Sequence[list[Tensor]],
    total: list[Tensor] | None = None,
) -> None:
    """Add products with the Hessian of a batch's NLL, over ``tokens``, and its gradient, to what there is of them.

    ``columns`` and ``results`` hold a tensor for each of ``values``, parameters of ``model``; so does ``total``, which
    the gradient is added to if it is given. Without columns this is a gradient with every layer checkpointed. Logits
    are held for a few tokens at a time.
    """
    chain = Chain(model, lambda: completion_states(model, batch), values)

    def add(column: int, place: int, value: Tensor) -> None:
        results[column][place].add_(value.to(results[column][place].device))

    def add_gradient(place: int, value: Tensor) -> None:
        if total is not None:
            total[place].add_(value.to(total[place].device))

    before, tangents = chain.push(columns)
    gradient, bends = torch.zeros_like(chain.states), [torch.zeros_like(chain.states) for _ in columns]
    for rows, inputs, logits, targets in head_by_chunks(model, chain, batch):
        loss = cross_entropy(logits, targets, reduction="sum") / tokens
        first = gradients([loss], inputs, [torch.ones_like(loss)], create_graph=bool(columns))
        add_rows(gradient, rows, first[0])
        _hand_over([None if x is None else x.detach() for x in first[1:]], chain.loose, add_gradient)
        for number, (tangent, column) in enumerate(zip(tangents, columns, strict=True)):
            along = [None if tangent is None else tangent[rows], *(column[place] for place in chain.loose)]
            second = gradients(first, inputs, along, retain_graph=True)
            add_rows(bends[number], rows, second[0])
            _hand_over(second[1:], chain.loose, partial(add, number))
    chain.bend(Reach(gradient, list(bends)), columns, before, add, add_gradient)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Keep of every layer of ``model`` its state alone, and compute the rest again for gradients.

    Gradients are the same; they can be taken once. Unlike transformers' own it works in evaluation mode.
    """

    def forward(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return checkpoint(own, *args, use_reentrant=False, **kwargs)

    with _replaced(_layers(model), forward):
        yield


def head_by_chunks(model: Any, chain: Chain, batch: Batch) -> Iterator[tuple[slice, list[Tensor], Tensor, Tensor]]:
    """For a few tokens at a time: which, their final states as a leaf with the loose parameters, logits and targets."""
    targets = batch.input_ids[:, 1:][batch.mask]
    size = max(1, CHUNK_LOGITS // len(model.get_output_embeddings().weight))
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        leaf = chain.states[rows].detach().requires_grad_()
        yield rows, [leaf, *chain.loose_parameters], apply_head(model, leaf), targets[rows]


def add_rows(total: Tensor, rows: slice, part: Tensor | None) -> None:
    """Add a part of the rows, where there is one."""
    if part is not None:
        total[rows] += part.detach()


_REFUSED = (
    "the student's layers are not a chain that can be differentiated one at a time; leave curvature.product at exact, "
    "or take gradient_difference."
)


def _along(step: Step, leaves: list[Tensor], tangent: Tensor | None, column: Parts) -> Parts:
    return [*([tangent] if leaves else []), *(column[place] for place in step.places)]


def _hand_over(parts: Parts, places: list[int], add: Callable[[int, Tensor], None]) -> None:
    for place, part in zip(places, parts, strict=True):
        if part is not None:
            add(place, part)


def _layers(model: nn.Module) -> list[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    nested = {id(part) for layer in found for part in layer.modules() if part is not layer}
    chosen: list[nn.Module] = [layer for layer in found if id(layer) not in nested]
    if not chosen:
        raise StudentError(_REFUSED)
    return chosen


@contextmanager
def _replaced(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Call ``forward(number, original, ...)`` instead of each layer's own."""
    kept = [vars(layer).get("forward") for layer in layers]
    try:
        for number, layer in enumerate(layers):
            original = layer.forward
            layer.forward = lambda *args, n=number, own=original, **kwargs: forward(n, own, *args, **kwargs)
        yield
    finally:
        for layer, own in zip(layers, kept, strict=True):
            vars(layer).pop("forward", None)
            if own is not None:
                layer.forward = own


def _record(layers: Sequence[nn.Module], states: Callable[[], Tensor]) -> list[Any]:
    """For every layer its own forward, what it takes besides the state, the state before and the output; last of all
    the final states.

    Raises:
        StudentError: a layer does not take what the one before it gave.
    """
    calls: list[Any] = []

    def forward(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs, state = _split(args, kwargs)
        if number != len(calls) or (calls and state is not _state(calls[-1][-1])):
            raise StudentError(_REFUSED)
        output = own(state, *args, **kwargs)
        calls.append((own, args, kwargs, state, output))
        return output

    with torch.no_grad(), _replaced(layers, forward):
        final = states()
    if len(calls) != len(layers):
        raise StudentError(_REFUSED)
    return [*calls, (final,)]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    if args:
        return args[1:], kwargs, args[0]
    return (), {name: value for name, value in kwargs.items() if name != "hidden_states"}, kwargs["hidden_states"]


def _state(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _alone(own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    return lambda state: _state(own(state, *args, **kwargs))


class _Reached(Exception):
    def __init__(self, state: Tensor):
        self.state = state


def _first_state(layer: nn.Module, states: Callable[[], Tensor]) -> Tensor:
    """The state before the first layer."""

    def forward(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        args, kwargs, state = _split(args, kwargs)
        if any(value.requires_grad for value in _tensors([args, kwargs])):
            raise StudentError(_REFUSED)
        raise _Reached(state)

    with _replaced([layer], forward):
        try:
            states()
        except _Reached as reached:
            return reached.state
    raise StudentError(_REFUSED)


def _from_last(
    layers: Sequence[nn.Module], outputs: Sequence[Any], state: Tensor, states: Callable[[], Tensor]
) -> Tensor:
    """The final states, where the last layer gave ``state``."""

    def forward(number: int, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = outputs[number]
        if number < len(layers) - 1:
            return given
        return state if isinstance(given, Tensor) else (state, *given[1:])

    with _replaced(layers, forward):
        return states()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
