"""Log-probabilities of completion tokens under a causal language model."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raygeo.students.encoding import Batch


def token_logprobs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p(token t + 1 | tokens up to t) as [B, T] fp32, zero where ``batch.mask`` is false.

    Logits are computed from the first completion position of the batch on, never for the prompt the whole batch shares.
    The log-softmax is taken in fp32 at least (fp64 stays fp64). Differentiable, twice under eager attention.
    """
    first = int(batch.mask.any(0).nonzero()[0])
    width = batch.mask.shape[1]
    keep = torch.arange(first, width, device=batch.input_ids.device)
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=keep)
    logits = output.logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch.input_ids[:, first + 1 :]
    logprobs = -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    logprobs = torch.where(batch.mask[:, first:], logprobs, torch.zeros_like(logprobs))
    return F.pad(logprobs, (first, 0))
