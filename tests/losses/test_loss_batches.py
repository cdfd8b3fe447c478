"""Gradients do not depend on how a step's examples are split into micro-batches."""

import numpy as np
import pytest
import torch
from loss_cases import EVERY_LOSS, needs_logits, rollouts
from tiny import decided_qwen

from raygeo.losses.base import LossInputs
from raygeo.losses.batches import apart, with_prompts
from raygeo.losses.counting import units
from raygeo.losses.registry import name_of
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import Likelihood, completion_states, copied_head, token_logprobs, top_logprobs

TABLE = rollouts(a="cwcw", b="ccc", c="ww", d="wc")


@pytest.fixture(scope="module")
def model():
    return decided_qwen(seed=0).double()


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 9, size=(TABLE.num_rows, 2))
    return [TokenSequence(rng.integers(0, 24, size=p + c), int(p)) for p, c in sizes]


@pytest.fixture(scope="module")
def base():
    return decided_qwen(seed=9).double()


@pytest.fixture(scope="module")
def reference(base, sequences):
    batch = collate(sequences, pad_id=0)
    with torch.no_grad():
        logprobs = token_logprobs(base, batch)
    return [row[mask] for row, mask in zip(logprobs, batch.mask, strict=True)]


def outputs(loss, model, base, batch, rows):
    """Log-probabilities and the loss's terms; a token is named by its row and its place."""
    given = {"embedding_mix": loss.embedding_mix}
    if needs_logits(loss):
        with torch.no_grad():
            states = completion_states(base, batch)
        keys = torch.cat(
            [100 * row + torch.arange(int(mask.sum())) for row, mask in zip(rows, batch.mask, strict=True)]
        )
        given |= {"keys": keys, "reference_states": states, "reference_head": copied_head(base)}
        given["teacher"] = top_logprobs(base, states, 5)
    read = with_prompts(batch) if loss.reads_prompts else batch
    found = Likelihood(model, loss.token_terms)(read, **given)
    return found.pop("logprobs"), found


def step_gradient(loss, model, base, sequences, reference, micro_batches):
    """Sum over micro-batches of total / global count, and the metrics divided alike."""
    counts = units([e for micro in micro_batches for e in micro], [s.completion_length for s in sequences])
    model.zero_grad()
    metrics = {"objective": 0.0}
    for micro in micro_batches:
        rows = [row for example in micro for row in example.rows]
        batch = collate([sequences[row] for row in rows], pad_id=0)
        padded = torch.full(batch.mask.shape, torch.nan, dtype=torch.float64)
        padded[batch.mask] = torch.cat([reference[row] for row in rows])
        logprobs, terms = outputs(loss, model, base, batch, rows)
        known = apart(logprobs, batch.mask) if loss.reads_prompts else {"logprobs": logprobs}
        output = loss(
            LossInputs(
                **known,
                mask=batch.mask,
                weights=torch.tensor([w for example in micro for w in example.weights]),
                reference_logprobs=padded if "reference" in loss.needs else None,
                pairs=torch.arange(len(rows)).view(-1, 2) if loss.unit == "pair" else None,
                behaviour_logprobs=padded if "behaviour" in loss.needs else None,
                kl_baseline=torch.tensor(0.3, dtype=torch.float64) if "mismatched" in loss.needs else None,
                terms=terms,
            )
        )
        assert output.unit == loss.unit
        (output.total / counts[output.unit]).backward()
        metrics["objective"] += output.total.item() / counts[output.unit]
        for key, (value, unit) in output.metrics.items():
            metrics[key] = metrics.get(key, 0.0) + value.item() / counts[unit]
    return torch.cat([p.grad.flatten() for p in model.parameters()]), metrics


@pytest.mark.slow
@pytest.mark.parametrize("loss", EVERY_LOSS, ids=name_of)
def test_any_split_gives_the_same_step(loss, model, base, sequences, reference):
    examples = loss.select(TABLE).examples
    whole, metrics = step_gradient(loss, model, base, sequences, reference, [examples])
    assert whole.norm() > 0
    for split in ([examples[:1], examples[1:]], [[example] for example in reversed(examples)]):
        gradient, split_metrics = step_gradient(loss, model, base, sequences, reference, split)
        torch.testing.assert_close(gradient, whole, rtol=1e-9, atol=1e-12)
        assert split_metrics == pytest.approx(metrics, rel=1e-9)
