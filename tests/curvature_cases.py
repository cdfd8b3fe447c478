"""A probe with unequal lengths, and dense oracles of second derivatives."""

import numpy as np
import torch
from tiny import TinyLM
from torch import Tensor, nn
from torch.func import functional_call

from raygeo.data.probes import Probe
from raygeo.models.batches import TokenSequence

VOCAB = TinyLM.VOCABULARY


def make_probe(lengths: list[tuple[int, int]], vocab: int = VOCAB, seed: int = 0) -> Probe:
    """Random tokens; ``lengths`` are (prompt, completion) pairs."""
    rng = np.random.default_rng(seed)
    return Probe("tiny", [TokenSequence(rng.integers(0, vocab, p + c), p) for p, c in lengths])


UNEQUAL = make_probe([(2, 1), (3, 9), (1, 2), (2, 12), (4, 1), (1, 6)])


def completion_logits(model: nn.Module, probe: Probe) -> tuple[Tensor, Tensor]:
    """Logits [tokens, V] and targets [tokens] of all completions, one sequence at a time and without padding."""
    logits, targets = [], []
    for s in probe.sequences:
        ids = torch.from_numpy(s.ids)
        every = torch.arange(len(s) - 1)
        output = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], logits_to_keep=every).logits[0]
        logits.append(output[s.prompt_length - 1 :])
        targets.append(ids[s.prompt_length :])
    return torch.cat(logits), torch.cat(targets)


def functional_logits(model: nn.Module, probe: Probe, names: list[str]):
    """A function from the flat vector of parameters ``names`` to completion logits, and that vector's value."""
    own = dict(model.named_parameters())
    values = [own[name].detach() for name in names]

    def logits(flat: Tensor) -> Tensor:
        parts = flat.split([v.numel() for v in values])
        weights = {name: part.view_as(v) for name, part, v in zip(names, parts, values, strict=True)}
        return completion_logits(lambda **kwargs: functional_call(model, weights, kwargs=kwargs), probe)[0]

    return logits, torch.cat([v.flatten() for v in values])


def dense_hessian(model: nn.Module, probe: Probe, names: list[str]) -> Tensor:
    """Hessian [n, n] of the token-mean NLL by automatic differentiation of one flat function."""
    logits, flat = functional_logits(model, probe, names)
    targets = completion_logits(model, probe)[1]

    def loss(vector: Tensor) -> Tensor:
        return -logits(vector).log_softmax(-1)[torch.arange(len(targets)), targets].mean()

    return torch.autograd.functional.hessian(loss, flat)


def dense_ggn(model: nn.Module, probe: Probe, names: list[str]) -> Tensor:
    """J^T H_out J [n, n], with the Jacobian [tokens, V, n] and H_out written out."""
    logits, flat = functional_logits(model, probe, names)
    jacobian = torch.autograd.functional.jacobian(logits, flat)
    p = logits(flat).softmax(-1)
    output = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("tvn,tvw,twm->nm", jacobian, output, jacobian) / len(p)
