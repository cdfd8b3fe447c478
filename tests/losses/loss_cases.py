"""Rollout tables, loss inputs and tiny models shared by the tests of losses."""

import pyarrow as pa
import torch
from hypothesis import strategies as st
from student_cases import tiny_qwen
from transformers import Qwen3ForCausalLM

from raygeo.losses import DFT, DPO, RFT, RIFT, SFT, OfflineGRPO
from raygeo.losses.base import LossInputs
from raygeo.tables import to_arrow

POINTWISE = [
    SFT(),
    RFT(),
    DFT(),
    RIFT(negative="token"),
    RIFT(negative="sequence"),
    RIFT(negative="geometric"),
    RIFT(negative="paper"),
    OfflineGRPO(surrogate="logp"),
    OfflineGRPO(surrogate="p"),
    OfflineGRPO(surrogate="ppo"),
]
VARIANTS = [*POINTWISE, *(loss.model_copy(update={"normalization": "sequence"}) for loss in POINTWISE)]
EVERY_LOSS = [*VARIANTS, DPO()]


def name(loss) -> str:
    options = [
        str(value) for key, value in loss.model_dump().items() if key in ("negative", "surrogate", "normalization")
    ]
    return "-".join([loss.type, *options])


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
                    "split": "train",
                }
            )
    return to_arrow("rollouts", rows)


def weights_of(selection) -> dict[int, float]:
    return {example.rows[0]: example.weights[0] for example in selection.examples}


def row_weight(loss, correct: bool) -> float:
    """A weight that ``loss`` gives to a correct or a wrong row."""
    match loss:
        case RIFT(negative="paper"):
            return 1 - loss.lam if correct else 1.0
        case RIFT():
            return 1.0 if correct else -loss.negative_weight
        case OfflineGRPO():
            return 0.6 if correct else -0.4
    return 1.0


def make_inputs(loss, seed: int, lengths: list[int], width: int = 7, scale: float = 1.0) -> LossInputs:
    """Random fp64 inputs: row i has ``lengths[i]`` tokens at a random offset; even rows are correct (chosen)."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -scale * torch.rand(len(lengths), width, generator=generator, dtype=torch.float64).add(1e-3)
    reference = -scale * torch.rand(len(lengths), width, generator=generator, dtype=torch.float64).add(1e-3)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, length in enumerate(lengths):
        start = int(torch.randint(width - length + 1, (), generator=generator))
        mask[i, start : start + length] = True
    weights = torch.tensor([row_weight(loss, i % 2 == 0) for i in range(len(lengths))], dtype=torch.float64)
    pairs = torch.arange(len(lengths)).view(-1, 2) if loss.unit == "pair" else None
    return LossInputs(logprobs.requires_grad_(), mask, weights, reference if "reference" in loss.needs else None, pairs)


def gradient(loss, inputs: LossInputs) -> torch.Tensor:
    return torch.autograd.grad(loss(inputs).total, inputs.logprobs)[0]


any_inputs = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "lengths": st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3).map(
            lambda pairs: [length for pair in pairs for length in pair]
        ),
        "scale": st.sampled_from([0.05, 1.0, 8.0]),
    }
)


def tiny_model(seed: int, vocabulary: int = 24) -> Qwen3ForCausalLM:
    return tiny_qwen(vocabulary, seed, initializer_range=0.2)
