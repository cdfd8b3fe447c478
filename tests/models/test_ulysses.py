"""Rows that ranks share give what whole ones do, of every family's heads and windows; and what cannot be is refused."""

import os

import pytest
import torch
import torch.distributed as dist
from process_cases import run_in_group
from tiny import BLOOM, SHAPE, tiny_qwen
from transformers import (
    Gemma2Config,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
)

from raygeo.errors import StudentError
from raygeo.models.batches import Batch
from raygeo.models.likelihood import Likelihood
from raygeo.models.ulysses import SequenceGroup, check_sequence_parallel, register

SIZES = {"vocab_size": 48, **SHAPE, "hidden_size": 24}  # a multiple of 4 heads and of 6
LENGTHS = {"rows": (7, 12, 4), "one": (13,), "short": (2, 3)}


def students():
    """Heads of every relation to two ranks: as many key-value heads, fewer, and three; and windows of four tokens."""
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    yield "qwen3", tiny_qwen(**window)
    for kv_heads in (1, 3):
        torch.manual_seed(kv_heads)
        heads = {"num_attention_heads": 6, "num_key_value_heads": kv_heads}
        yield f"llama-{kv_heads}", LlamaForCausalLM(LlamaConfig(**(SIZES | heads))).eval()
    torch.manual_seed(0)
    yield "mistral", MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)).eval()


def batch_of(lengths):
    generator = torch.Generator().manual_seed(0)
    width = max(lengths)
    ids = torch.randint(48, (len(lengths), width), generator=generator)
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = real[:, 1:].clone()
    mask[:, : min(lengths) // 2] = False  # the prompts, the whole first slice of one row where there is but one
    if len(lengths) == 1:
        mask[:, : width // 2 + 1] = False
    return Batch(ids, real.long(), mask)


def outcome(likelihood, batch):
    """Log-probabilities, and the gradient of a function of all of them at once."""
    likelihood.zero_grad()
    logprobs = likelihood(batch)["logprobs"]
    logprobs.sum(1).exp().add(1).log().square().sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in likelihood.student.named_parameters()}


def kept(likelihood, batch):
    """Bytes that a forward pass keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in likelihood.parameters()}
    found = {}

    def note(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        likelihood(batch)
    return sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in weights)


def work(rank, ranks, folder):
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", world_size=ranks, rank=rank)
    group = SequenceGroup.of(2)
    assert group.group is SequenceGroup.of(2).group, "one group a size"
    for family, model in students():
        check_sequence_parallel(model.config, 2)
        batches = {name: batch_of(lengths) for name, lengths in LENGTHS.items()}
        long = batch_of((48, 48))  # completions on both ranks
        model.double()
        expected = {name: outcome(Likelihood(model), batch) for name, batch in batches.items()}
        alone = kept(Likelihood(model, padding_free=True), long)
        model.set_attn_implementation(register())
        for name, batch in batches.items():
            logprobs, gradients = outcome(Likelihood(model, padding_free=True, group=group), batch)
            whole, wanted = expected[name]
            torch.testing.assert_close(logprobs, whole, rtol=0, atol=1e-10, msg=lambda said: f"{family} {name}: {said}")  # noqa: B023
            for parameter, gradient in gradients.items():
                dist.all_reduce(gradient)
                torch.testing.assert_close(gradient, wanted[parameter], rtol=1e-8, atol=1e-10, msg=f"{family} {name}")
        assert kept(Likelihood(model, padding_free=True, group=group), long) < 0.6 * alone
        with pytest.raises(StudentError, match="its layers attend otherwise"):
            model(batches["one"].input_ids)


@pytest.mark.cluster
def test_shared_rows_have_the_log_probabilities_and_gradients_of_whole_ones(tmp_path):
    run_in_group(work, 2, str(tmp_path))


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (LlamaConfig(**(SIZES | {"num_attention_heads": 6})), 4, "6 attention heads cannot be divided among 4 workers"),
        (BLOOM, 2, "transformers' interface"),
        (Gemma2Config(), 2, "transformers' interface with SDPA"),
        (Llama4TextConfig(), 2, "layers of chunked_attention"),
        (
            LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            ),
            2,
            "rotary angles .dynamic. depend",
        ),
        (
            Phi3Config(
                rope_parameters={"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
                                 "original_max_position_embeddings": 64, "rope_theta": 1e4}
            ),
            2,
            "rotary angles .longrope. depend",
        ),
    ],
)  # fmt: skip
def test_students_whose_sequences_cannot_be_shared_are_refused(config, size, said):
    with pytest.raises(StudentError, match=said):
        check_sequence_parallel(config, size)
