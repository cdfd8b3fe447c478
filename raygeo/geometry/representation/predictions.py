"""Next-token predictions: how far they are from another model's, and how sure and how often right they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raygeo.geometry.bootstrap import Array
from raygeo.geometry.calibration import top_confidence
from raygeo.models.batches import Batch
from raygeo.models.likelihood import Head, Likelihood, Terms, TokenLogits, completion_states, copied_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_LOGITS = 2**24
"""Most logits of one model held at once; about eight tensors of their size live at a time, 512 MiB in fp32."""


class Predicted(NamedTuple):
    """What a model predicts of some batches, without its logits: final hidden states of each [N, d], and its head."""

    states: list[Tensor]
    head: Head

    @classmethod
    @torch.inference_mode()
    def by(cls, model: PreTrainedModel, batches: Sequence[Batch]) -> Predicted:
        """The predictions of ``model`` as it is now, on its device."""
        return cls([completion_states(model, batch) for batch in batches], copied_head(model))


@torch.inference_mode()
def text_sums(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    terms: Terms,
    reduce: Callable[[dict[str, Tensor]], Tensor],
    other: Predicted | None = None,
) -> Array:
    """What ``reduce`` makes of each text's ``terms`` [B, T], teacher-forced: [N, k] fp64, in the order of ``batches``.

    ``other`` is the model whose logits are ``reference_logits`` in the terms. Never more logits than ``CHUNK_LOGITS``
    of either are held.
    """
    likelihood = Likelihood(model, terms, chunk=CHUNK_LOGITS)
    parts = []
    for place, batch in enumerate(batches):
        states, head = (None, None) if other is None else (other.states[place], other.head)
        values = likelihood(batch, reference_states=states, reference_head=head)
        del values["logprobs"]
        parts.append(reduce(values).cpu())
    return torch.cat(parts).numpy()


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities ``p`` and ``q`` [..., V]: [...] fp64.

    The sum over v of ``p (log p/q) - p + q``, which adds nothing where both sum to 1. Every term is non-negative, and
    errors of the normalisation cancel to first order, so that divergences far below fp32's rounding of a
    log-probability come out right. Where |log p/q| < 1 the term is ``p (r + expm1(-r))``, r = log p/q.
    """
    ratio, weight = p - q, p.exp()
    near = weight * (ratio + torch.expm1(-ratio))
    far = weight * ratio - weight + q.exp()
    return torch.where(ratio.abs() < 1, near, far).sum(-1, dtype=torch.float64)


def comparison(tokens: TokenLogits) -> dict[str, Tensor]:
    """Compare a model b with another a, whose logits are ``reference_logits``: [N] fp64 each.

    ``kl_ab`` is KL(a || b) in nats, ``kl_ba`` KL(b || a), ``agreement`` 1 where both have the same top guess. These are
    terms for ``raygeo.models.likelihood.Likelihood``.
    """
    assert tokens.reference_logits is not None
    own, other = tokens.logits.log_softmax(-1), tokens.reference_logits.log_softmax(-1)
    return {
        "kl_ab": kl_divergence(other, own),
        "kl_ba": kl_divergence(own, other),
        "agreement": (own.argmax(-1) == other.argmax(-1)).double(),
    }


def confidence(tokens: TokenLogits) -> dict[str, Tensor]:
    """Entropy in nats, largest probability, and whether that is of the token that comes: [N] fp64 each.

    ``entropy``, ``max_probability`` and ``top1_accuracy``, as terms for ``raygeo.models.likelihood.Likelihood``.
    """
    own = tokens.logits.log_softmax(-1)
    largest, right = top_confidence(tokens.logits, tokens.targets)
    entropy = -(own.exp() * own).sum(-1, dtype=torch.float64)
    return {"entropy": entropy, "max_probability": largest, "top1_accuracy": right}
