"""A model of which only the shapes are known, and what its passes take: the code that will run, run on shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec

import torch
from torch import Tensor

from raygeo.footprint.counter import Counter, counting
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.representation.features import hidden_states
from raygeo.losses.base import Loss
from raygeo.losses.batches import MicroBatch, micro_loss
from raygeo.models.activations import checkpoint_activations
from raygeo.models.batches import Batch
from raygeo.models.cached import next_logits
from raygeo.models.delta import layer_index
from raygeo.models.likelihood import Likelihood, TopLogprobs, causal_lm, decoder, token_logprobs
from raygeo.models.loading import model_shape
from raygeo.models.lora import LoraSettings, attach_lora

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Pass(NamedTuple):
    """Bytes held besides weights, and operations (a multiplication and an addition are two).

    ``kept`` is what a pass holds for what follows: the graph for a backward pass, or a product; the cache for a next
    token. ``peaks`` are the most there is in each of its parts, ``kept`` included.
    """

    kept: int
    peaks: tuple[int, ...]
    flops: int

    @property
    def peak(self) -> int:
        """The most there is at any time."""
        return max(self.peaks)

    def towards(self, other: Pass, times: float) -> Pass:
        """What this pass takes, and so many times what the other one takes more."""

        def along(here: int, there: int) -> int:
            return here + round(times * (there - here))

        peaks = tuple(map(along, self.peaks, other.peaks))
        return Pass(along(self.kept, other.kept), peaks, along(self.flops, other.flops))


TOP = 64
"""A teacher's likeliest tokens at each token, where a loss learns from them: what is asked for by default."""
DEPTHS = (3, 5)
"""Blocks of the models that a deeper one is extrapolated from."""
P = ParamSpec("P")


def extrapolated(count: Callable[Concatenate[DryModel, P], Pass]) -> Callable[Concatenate[DryModel, P], Pass]:
    """Remember what is counted; for a model of many equal blocks, follow the line through two of fewer.

    What passes keep, what they do and the most that each of their parts holds are linear in the number of equal blocks.
    """

    @wraps(count)
    def counted(self: DryModel, /, *args: P.args, **kwargs: P.kwargs) -> Pass:
        key = count.__name__, args, tuple(sorted(kwargs.items()))
        if key not in self.known:
            if self.shallow:
                few, more = (counted(model, *args, **kwargs) for model in self.shallow)
                self.known[key] = few.towards(more, (self.layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]))
            else:
                self.known[key] = count(self, *args, **kwargs)
        return self.known[key]

    return counted


class DryModel:
    """A causal language model without weights, in ``dtype``, perhaps with adapters, or as if they had been ``merged``.

    ``parameters`` are all its scalars, ``trainable`` those that training would change, ``touched`` those of the merged
    weights that a delta would, whose ``shapes`` are by name. Every method runs what a real model would run, on shapes,
    and counts: see ``Pass``. Rows are as long as ``tokens`` says, and every position counts as a completion's.

    Raises:
        StudentError: no causal language model can be built of ``config``, or the adapters do not fit it.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: torch.dtype = torch.float32,
        lora: LoraSettings | None = None,
        *,
        merged: bool = False,
        checkpointing: bool = False,
        attention: str | None = None,
    ):
        self.config, self.dtype = config, dtype
        model: Any = model_shape(config)
        if attention == "eager":
            model.set_attn_implementation(attention)  # all others keep as little as SDPA does
        bare = {name: tuple(value.shape) for name, value in model.named_parameters()}
        self.parameters = sum(map(math.prod, bare.values()))
        self.shapes, self.trainable = bare, self.parameters
        if lora is not None:
            model = attach_lora(model.to(dtype), lora, 0)  # adapters are in fp32
            self.trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
            stems = {name.partition(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
            own = {f"{stem.removeprefix('base_model.model.')}.weight" for stem in stems}
            self.shapes = {name: shape for name, shape in bare.items() if name in own}
            model = model.unload() if merged else model
        self.touched = sum(map(math.prod, self.shapes.values()))
        self.model: Any = model.to(dtype) if lora is None else model
        if checkpointing:
            checkpoint_activations(self.model)
        self.known: dict[Any, Pass] = {}
        form: dict[str, Any] = {"merged": merged, "checkpointing": checkpointing, "attention": attention}
        self.shallow = [DryModel(each, dtype, lora, **form) for each in self._shallower()]

    @property
    def text(self) -> Any:
        """The configuration of the language model itself."""
        return self.config.get_text_config()

    @property
    def adapted(self) -> bool:
        """Whether it has adapters beside its weights."""
        return hasattr(self.model, "peft_config")

    @property
    def layers(self) -> int:
        """Transformer blocks."""
        return int(self.text.num_hidden_layers)

    @property
    def width(self) -> int:
        """Entries of a hidden state."""
        return int(self.text.hidden_size)

    @cached_property
    def weights(self) -> int:
        """Bytes of all weights, adapters included."""
        return sum(value.nbytes for value in {id(v): v for v in self.model.parameters()}.values())

    @extrapolated
    def training(self, loss: Loss, examples: int, tokens: int, *, accumulating: bool) -> Pass:
        """Forward and backward of a micro-batch of ``loss``; the gradients it leaves are part of the peaks.

        Where micro-batches are ``accumulating``, gradients are there before.
        """
        rows = examples * (2 if loss.unit == "pair" else 1)
        trained = [value for value in self.model.parameters() if value.requires_grad]
        terms = loss.token_terms if type(loss).token_terms is not Loss.token_terms else None
        with self._counting() as counter:
            for value in trained:
                value.grad = torch.empty_like(value) if accumulating else None
            before = counter.live
            micro, baseline = self._micro(loss, rows, tokens)
            with self._head_apart(counter):
                asks_base = self.adapted and "reference_logits" in loss.needs
                student = Likelihood(self.model, terms, asks_base=asks_base)
                total = micro_loss(student, loss, micro, baseline).total
                kept = counter.live - before
                counter.mark()
                total.backward()
        for value in trained:
            value.grad = None
        return Pass(kept, counter.peaks, counter.flops)

    @extrapolated
    def scoring(self, rows: int, tokens: int) -> Pass:
        """Log-probabilities of given texts, without gradients."""
        with self._counting() as counter, torch.inference_mode():
            token_logprobs(self.model, self._batch(rows, tokens))
        return Pass(0, counter.peaks, counter.flops)

    @extrapolated
    def states(self, rows: int, tokens: int) -> Pass:
        """Hidden states of every layer, which are kept."""
        with self._counting() as counter:
            states = hidden_states(self.model, self._batch(rows, tokens))
            kept = sum(state.nbytes for state in states)
        return Pass(kept, counter.peaks, counter.flops)

    @extrapolated
    def gradient(self, rows: int, tokens: int) -> Pass:
        """The gradient of the NLL by what a delta touches; it is part of the peaks."""
        values = self._values()
        with self._counting() as counter, self._head_apart(counter):
            loss = -token_logprobs(self.model, self._batch(rows, tokens)).sum()
            kept = counter.live
            counter.mark()
            torch.autograd.grad(loss, values, materialize_grads=True)
        return Pass(kept, counter.peaks, counter.flops)

    @extrapolated
    def product(self, rows: int, tokens: int, **options: Any) -> Pass:
        """A product of the Hessian of the NLL over what a delta touches with one vector, of one batch.

        ``options`` are those of ``Hessian``. ``kept`` is the graph, where there is one; peaks hold vector and product
        too, operations are those of graph and product.
        """
        with self._counting(fused_attention=False) as counter:
            operator = Hessian(self.model, [self._batch(rows, tokens)], list(self.shapes), **options)
            vector = torch.empty(operator.n, 1, dtype=self.dtype, device="meta")
            counter.restart()
            before = counter.live
            operator.matmat(vector)
            kept = counter.live - before
        return Pass(kept, counter.peaks, counter.flops)

    @extrapolated
    def prefill(self, rows: int, prompt: int) -> Pass:
        """Reading prompts and writing one token after each; ``kept`` is their cache."""
        return self._written(rows, prompt, 0)

    @extrapolated
    def decoding(self, rows: int, length: int) -> Pass:
        """Writing one token behind ``length`` others, whose cache is ``kept``."""
        return self._written(rows, length, 1)

    def _written(self, rows: int, length: int, step: int) -> Pass:
        """The step that writes token ``step`` behind ``length`` others."""
        from transformers import DynamicCache

        with self._counting() as counter, torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            ids = torch.empty(rows, length, dtype=torch.long, device="meta")
            mask = torch.ones_like(ids)
            next_logits(self.model, ids, mask, torch.empty_like(ids), cache)
            layers = [vars(layer).values() for layer in cache.layers]
            kept = sum(value.nbytes for values in layers for value in values if isinstance(value, Tensor))
            if step:
                counter.restart()
                mask = torch.cat([mask, mask.new_ones(rows, 1)], -1)
                next_logits(self.model, ids[:, :1], mask, torch.empty_like(ids[:, :1]), cache)
        return Pass(kept, counter.peaks, counter.flops)

    def _counting(self, *, fused_attention: bool = True) -> AbstractContextManager[Counter]:
        return counting([*self.model.parameters(), *self.model.buffers()], fused_attention=fused_attention)

    @contextmanager
    def _head_apart(self, counter: Counter) -> Iterator[None]:
        """Make what follows the blocks, forward and back, stages of its own: it does not grow with their number."""

        def mark(*_: Any) -> None:
            counter.mark()

        def blocks_end(module: Any, inputs: Any, output: Any) -> None:
            counter.mark()
            if output.last_hidden_state.requires_grad:
                output.last_hidden_state.register_hook(mark)

        hook = decoder(causal_lm(self.model)).register_forward_hook(blocks_end)
        try:
            yield
        finally:
            hook.remove()

    def _values(self) -> list[Tensor]:
        own = dict(self.model.named_parameters())
        return [own[name].requires_grad_() for name in self.shapes]

    def _shallower(self) -> list[PreTrainedConfig]:
        """Configurations of two models of fewer blocks, if the blocks are equal and many."""
        if self.layers <= 2 * DEPTHS[1] or not _equal_blocks(self.text, self.model):
            return []
        found = []
        for depth in DEPTHS:
            config = deepcopy(self.config)
            text = config.get_text_config()
            text.num_hidden_layers = depth
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:depth]
            found.append(config)
        return found

    def _batch(self, rows: int, tokens: int) -> Batch:
        ids = torch.empty(rows, tokens, dtype=torch.long, device="meta")
        return Batch(ids, torch.ones_like(ids), torch.ones(rows, tokens - 1, dtype=torch.bool, device="meta"))

    def _micro(self, loss: Loss, rows: int, tokens: int) -> tuple[MicroBatch, Tensor | None]:
        """Everything a loss may need of a micro-batch, as shapes."""
        batch = self._batch(rows, tokens)
        positions = batch.mask.shape
        loss_inputs: dict[str, Any] = {"mask": batch.mask, "weights": _numbers(rows)}
        loss_inputs["reference_logprobs"] = _numbers(*positions) if "reference" in loss.needs else None
        if "behaviour" in loss.needs:
            loss_inputs["behaviour_logprobs"] = _numbers(*positions)
        if loss.unit == "pair":
            loss_inputs["pairs"] = torch.empty(rows // 2, 2, dtype=torch.long, device="meta")
        model_inputs: dict[str, Any] = {}
        if loss.embedding_mix > 0:
            model_inputs["embedding_mix"] = loss.embedding_mix
        if type(loss).token_terms is not Loss.token_terms:
            model_inputs["keys"] = torch.empty(batch.mask.numel(), dtype=torch.long, device="meta")
        if "teacher" in loss.needs:
            ids = torch.empty(batch.mask.numel(), TOP, dtype=torch.long, device="meta")
            model_inputs["teacher"] = TopLogprobs(ids, _numbers(*ids.shape), _numbers(len(ids)))
        if "reference_logits" in loss.needs and not self.adapted:
            model_inputs["reference_states"] = _numbers(batch.mask.numel(), self.width).to(self.dtype)
            head = self.model.get_output_embeddings()
            bias = getattr(head, "bias", None)
            model_inputs["reference_head"] = tuple(x if x is None else torch.empty_like(x) for x in (head.weight, bias))
        return MicroBatch(batch, model_inputs, loss_inputs), _numbers() if "mismatched" in loss.needs else None


def _equal_blocks(text: Any, model: Any) -> bool:
    """Whether all blocks are of one kind and have parameters of the same shapes."""
    if len(set(getattr(text, "layer_types", None) or [None])) > 1:
        return False
    blocks: dict[int, list[Any]] = {}
    for name, value in model.named_parameters():
        if (layer := layer_index(name)) is not None:
            blocks.setdefault(layer, []).append(tuple(value.shape))
    return len(blocks) == text.num_hidden_layers and len(set(map(tuple, blocks.values()))) == 1


def _numbers(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")
