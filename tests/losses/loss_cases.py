"""Rollout tables, loss inputs and tiny models shared by the tests of losses."""

import pyarrow as pa
import torch
from hypothesis import strategies as st
from student_cases import tiny_qwen
from transformers import Qwen3ForCausalLM

from raygeo.losses import (
    ASFT,
    AWR,
    DFT,
    DPO,
    FSFT,
    IFT,
    IPO,
    IWSFT,
    KTO,
    OTR,
    RFT,
    RIFT,
    SFT,
    ConservativeDPO,
    DPOWithNLL,
    NormalizedDPO,
    OfflineGRPO,
    OffPolicyGRPO,
    PoFT,
    RobustDPO,
    SimPO,
)
from raygeo.losses.base import Loss, LossInputs
from raygeo.students.likelihood import TokenLogits
from raygeo.tables import to_arrow

POINTWISE = [
    SFT(),
    RFT(),
    DFT(),
    ASFT(kl_weight=0.3),
    ASFT(direction="reverse"),
    OTR(samples=16),
    IWSFT(),
    IWSFT(proposal="behaviour", tau=2.0, bounds=(0.5, 3.0)),
    IWSFT(level="token", rows="all"),
    IFT(),
    IFT(gamma=0.0),
    PoFT(normalization="token", beta=2.0, gamma=0.5),
    FSFT(divergence="chi2"),
    FSFT(divergence="hellinger"),
    FSFT(divergence="tv"),
    AWR(),
    AWR(baseline="none", beta=0.4, max_weight=5.0),
    RIFT(negative="token"),
    RIFT(negative="sequence"),
    RIFT(negative="geometric"),
    RIFT(negative="paper"),
    OfflineGRPO(surrogate="logp"),
    OfflineGRPO(surrogate="p"),
    OfflineGRPO(surrogate="shaped"),
    OfflineGRPO(surrogate="ppo"),
    OffPolicyGRPO(ratio="clipped"),
    OffPolicyGRPO(ratio="truncated", cap=1.5),
    OffPolicyGRPO(ratio="sequence"),
]
PAIRWISE = [
    DPO(),
    ConservativeDPO(label_smoothing=0.2),
    RobustDPO(flip_rate=0.2),
    NormalizedDPO(),
    DPOWithNLL(alpha=0.7),
    IPO(),
    SimPO(),
]
VARIANTS = [*POINTWISE, *(loss.model_copy(update={"normalization": "sequence"}) for loss in POINTWISE)]
EVERY_LOSS = [*VARIANTS, *PAIRWISE, KTO(desirable_weight=1.3, undesirable_weight=0.6)]

NAMED = (
    "negative",
    "surrogate",
    "normalization",
    "direction",
    "proposal",
    "level",
    "gamma",
    "divergence",
    "baseline",
    "ratio",
)


def name(loss) -> str:
    options = [str(value) for key, value in loss.model_dump().items() if key in NAMED]
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
        case OfflineGRPO() | OffPolicyGRPO():
            return 0.6 if correct else -0.4
        case AWR():
            return 2.5 if correct else 0.4
        case KTO():
            return loss.desirable_weight if correct else -loss.undesirable_weight
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
    return LossInputs(
        logprobs=logprobs.requires_grad_(),
        mask=mask,
        weights=weights,
        reference_logprobs=reference if "reference" in loss.needs else None,
        pairs=pairs,
        behaviour_logprobs=reference if "behaviour" in loss.needs else None,
        kl_baseline=torch.tensor(0.3, dtype=torch.float64) if "mismatched" in loss.needs else None,
        terms=make_terms(loss, mask.shape, generator, scale),
    )


def needs_logits(loss) -> bool:
    return type(loss).token_terms is not Loss.token_terms


def make_terms(loss, shape, generator, scale: float) -> dict[str, torch.Tensor]:
    """What ``loss`` makes of random logits over 11 tokens at every position, without gradient."""
    if not needs_logits(loss):
        return {}
    logits, base = scale * torch.randn(2, shape.numel(), 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (shape.numel(),), generator=generator)
    terms = loss.token_terms(TokenLogits(logits, targets, torch.arange(shape.numel()), base))
    return {name: values.view(shape) for name, values in terms.items()}


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
