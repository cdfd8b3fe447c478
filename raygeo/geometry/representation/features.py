"""Hidden states as features: which tokens of a text are looked at, and the vectors that they become."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from raygeo.models.batches import Batch, TokenSequence, collate, length_buckets

Pool = Literal["mean_completion", "last_prompt", "tokens"]
"""What becomes a vector: the mean over a text's completion tokens, its last prompt token, or each of some tokens."""
Treatment = Literal["plain", "rms_normed", "without_outliers", "without_1_pc", "without_3_pcs"]
"""What is taken out of features before they are compared."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
PLAIN: Treatment = "plain"


def text_features(
    model: nn.Module,
    texts: Sequence[TokenSequence],
    *,
    pool: Pool = "mean_completion",
    tokens_per_text: int = 4,
    seed: int = 0,
    batch_size: int = 16,
    pad_id: int = 0,
) -> dict[Treatment, Tensor]:
    """Features of a causal language model on texts, ``plain`` and ``rms_normed``: [L + 1, n, d] fp32 on the CPU each.

    Layer 0 is the embeddings, layer L the last block after the final norm. There is one row a text, in the order given,
    or, where ``pool`` is ``tokens``, one for each of ``chosen_tokens``. ``rms_normed`` divides every token's state by
    its root mean square before any mean. ``batch_size`` texts go through the model at once, padded with ``pad_id``;
    neither has an effect beyond rounding.

    Args:
        model: the model, as ``raygeo.models.loading.load_student`` gives it; on any device.
        texts: prompts with completions, the ``sequences`` of a ``Probe`` say.
        pool: what becomes a vector.
        tokens_per_text: how many completion tokens ``tokens`` draws from each text.
        seed: seed of that draw.
        batch_size: texts per forward pass.
        pad_id: any token id.
    """
    tokens = chosen_tokens(texts, pool, tokens_per_text, seed)
    mean = pool == "mean_completion"
    order = length_buckets([len(text) for text in texts], batch_size)
    parts = [
        hidden_features(model, collate([texts[i] for i in batch], pad_id), [tokens[i] for i in batch], mean=mean)
        for batch in order
    ]
    rows = [i for batch in order for i in batch for _ in range(1 if mean else len(tokens[i]))]
    back = torch.from_numpy(np.argsort(rows, kind="stable"))
    return {name: torch.cat([part[name] for part in parts], dim=1)[:, back] for name in parts[0]}


def chosen_tokens(texts: Sequence[TokenSequence], pool: Pool, tokens_per_text: int, seed: int) -> list[Tensor]:
    """Positions of the tokens of each text whose hidden states are looked at, ascending.

    Where ``pool`` is ``tokens``, ``tokens_per_text`` of the completion's are drawn by ``seed``, or all if it has fewer.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for text in texts:
        if pool == "last_prompt":
            places = np.array([text.prompt_length - 1])
        else:
            places = np.arange(text.prompt_length, len(text))
            if pool == "tokens" and len(places) > tokens_per_text:
                places = np.sort(generator.choice(places, tokens_per_text, replace=False))
        chosen.append(torch.from_numpy(places))
    return chosen


@torch.inference_mode()
def hidden_states(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Hidden states [B, T + 1, d] of the embeddings and of every block, the last one after the final norm."""
    batch = batch.to(next(model.parameters()).device)
    return model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
    ).hidden_states


def hidden_features(model: nn.Module, batch: Batch, tokens: Sequence[Tensor], *, mean: bool) -> dict[Treatment, Tensor]:
    """Features [L + 1, M, d] of the chosen ``tokens`` of a batch (positions, a tensor a text), fp32 on the CPU.

    With ``mean`` there is one row a text, the mean over its tokens, otherwise a row a token. ``rms_normed`` divides
    every token's state by its root mean square before any mean, as a norm without weights would.
    """
    states = hidden_states(model, batch)
    device = states[0].device
    rows = torch.cat([torch.full_like(places, row) for row, places in enumerate(tokens)]).to(device)
    places = torch.cat(list(tokens)).to(device)
    found: dict[Treatment, list[Tensor]] = {PLAIN: [], "rms_normed": []}
    for state in states:
        values = state[rows, places].float()
        rms = values.square().mean(-1, keepdim=True).sqrt()
        for name, layer in ((PLAIN, values), ("rms_normed", values / rms.clamp(min=torch.finfo(rms.dtype).tiny))):
            found[name].append((_means(layer, rows, len(tokens)) if mean else layer).cpu())
    return {name: torch.stack(layers) for name, layers in found.items()}


def _means(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Mean of ``values`` [N, d] over the tokens of each of ``count`` texts: [count, d]."""
    sums = torch.zeros(count, values.shape[-1], dtype=values.dtype, device=values.device).index_add_(0, rows, values)
    return sums / torch.bincount(rows, minlength=count)[:, None]
