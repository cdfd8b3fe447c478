"""Rollout tables and loss inputs shared by the tests of losses."""

import pyarrow as pa
import torch
from hypothesis import strategies as st

from raygeo.losses.base import Loss, LossInputs
from raygeo.losses.pairwise import Pairwise
from raygeo.losses.pointwise import Pointwise
from raygeo.losses.registry import LOSSES, variants
from raygeo.models.likelihood import TokenLogits, TopLogprobs
from raygeo.tables import to_arrow

CASES = [loss for kind in LOSSES.values() for loss in variants(kind).values()]
POINTWISE = list(
    dict.fromkeys(
        loss.model_copy(update={"normalization": normalization})
        for loss in CASES
        if isinstance(loss, Pointwise)
        for normalization in ("token", "sequence")
    )
)
PAIRWISE = [loss for loss in CASES if isinstance(loss, Pairwise)]
EVERY_LOSS = [*POINTWISE, *(loss for loss in CASES if not isinstance(loss, Pointwise))]


def rollouts(**prompts) -> pa.Table:
    """One prompt a keyword. Its rollouts: "c" correct, "w" wrong, "t" truncated, "?" ungraded; or (verdict, reward)."""
    rows = []
    for prompt, members in prompts.items():
        for sample, member in enumerate(members):
            verdict, reward = member if isinstance(member, tuple) else (member, None)
            rows.append(
                {
                    "prompt_id": prompt,
                    "prompt": prompt,
                    "sample": sample,
                    "completion": f"{prompt}{sample}",
                    "reward": reward,
                    "correct": {"c": True, "w": False, "t": False, "?": None}[verdict],
                    "truncated": verdict == "t",
                    "source": "teacher" if sample % 2 else "student",
                    "split": "train",
                }
            )
    return to_arrow("rollouts", rows)


def with_column(table: pa.Table, name: str, values: list) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))


def weights_of(selection) -> dict[int, float]:
    return {example.rows[0]: example.weights[0] for example in selection.examples}


def row_weights(loss, count: int) -> torch.Tensor:
    """What ``loss`` gives to rows that are correct and wrong by turns; 1 to those it would leave out: [count] fp64."""
    found = {
        row: weight
        for example in loss.select(rollouts(a="cw")).examples
        for row, weight in zip(example.rows, example.weights, strict=True)
    }
    return torch.tensor([found.get(row % 2, 1.0) for row in range(count)], dtype=torch.float64)


def make_inputs(loss, seed: int, lengths: list[int], width: int = 7, scale: float = 1.0) -> LossInputs:
    """Random fp64 inputs: row i has ``lengths[i]`` tokens at a random offset; even rows are correct (chosen)."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -scale * torch.rand(len(lengths), width, generator=generator, dtype=torch.float64).add(1e-3)
    reference = -scale * torch.rand(len(lengths), width, generator=generator, dtype=torch.float64).add(1e-3)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, length in enumerate(lengths):
        start = int(torch.randint(width - length + 1, (), generator=generator))
        mask[i, start : start + length] = True
    pairs = torch.arange(len(lengths)).view(-1, 2) if loss.unit == "pair" else None
    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        mask=mask,
        weights=row_weights(loss, len(lengths)),
        reference_logprobs=reference if "reference" in loss.needs else None,
        pairs=pairs,
        behaviour_logprobs=reference if "behaviour" in loss.needs else None,
        kl_baseline=torch.tensor(0.3, dtype=torch.float64) if "mismatched" in loss.needs else None,
        terms=make_terms(loss, mask.shape, generator, scale),
        prompt_logprobs=(reference * 2).masked_fill(mask, 0.0) if loss.reads_prompts else None,
    )


def needs_logits(loss) -> bool:
    return type(loss).token_terms is not Loss.token_terms


def make_terms(loss, shape, generator, scale: float) -> dict[str, torch.Tensor]:
    """What ``loss`` makes of random logits over 11 tokens at every position, without gradient."""
    if not needs_logits(loss):
        return {}
    logits, base = scale * torch.randn(2, shape.numel(), 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (shape.numel(),), generator=generator)
    teacher = top_of(base, 4)
    terms = loss.token_terms(TokenLogits(logits, targets, torch.arange(shape.numel()), base, teacher))
    return {name: values.view(shape) for name, values in terms.items()}


def top_of(logits: torch.Tensor, count: int) -> TopLogprobs:
    """The ``count`` likeliest tokens of laws with these logits [N, V], and what they leave."""
    top, ids = logits.log_softmax(-1).topk(count)
    return TopLogprobs(ids, top, 1 - top.exp().sum(-1))


def gradient(loss, inputs: LossInputs) -> torch.Tensor:
    total = loss(inputs).total
    if not total.requires_grad:  # the label plays no part
        return torch.zeros_like(inputs.logprobs)
    return torch.autograd.grad(total, inputs.logprobs)[0]


any_inputs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "lengths": st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3).map(
            lambda pairs: [length for pair in pairs for length in pair]
        ),
        "scale": st.sampled_from([0.05, 1.0, 8.0]),
    }
)
