"""Layers that are computed again: the same numbers, in the memory of one layer."""

import gc

import pytest
import torch
from tiny import TinyLM, tiny_qwen
from torch.profiler import ProfilerActivity, profile

from raygeo.errors import StudentError
from raygeo.models.activations import check_checkpointing, checkpoint_activations, hold_activations
from raygeo.models.batches import Batch
from raygeo.models.likelihood import Likelihood

IDS = torch.arange(3, 131).view(4, 32) % 45 + 3
BATCH = Batch(IDS, torch.ones_like(IDS), torch.ones_like(IDS[:, 1:], dtype=torch.bool))


def peak_bytes(work):
    """Most bytes that torch has allocated at once while ``work`` runs, beyond what was there before."""
    gc.collect()  # what earlier models held must not be freed meanwhile
    gc.disable()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    gc.enable()
    held = most = 0
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def gradients(model):
    model.zero_grad()
    logprobs = Likelihood(model)(BATCH)["logprobs"]
    logprobs.sum().backward()
    return logprobs.detach(), [parameter.grad.clone() for parameter in model.parameters()]


def test_values_and_gradients_keep_every_bit_in_evaluation_mode_too():
    model = tiny_qwen(num_hidden_layers=3, attention_dropout=0.5)
    expected = gradients(model)
    checkpoint_activations(model)
    assert not model.training
    found = gradients(model)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(*pair) for pair in zip(found[1], expected[1], strict=True))


@pytest.mark.slow
def test_memory_no_longer_grows_by_a_layers_activations_but_by_its_input():
    """A layer of width d and MLP m holds well over 10 d + 5 m numbers a token for its backward pass."""
    grown = {}
    for again in (False, True):
        peaks = []
        for layers in (2, 8):
            model = tiny_qwen(num_hidden_layers=layers)
            gradients(model)  # so that gradients are there
            if again:
                checkpoint_activations(model)
            peaks.append(peak_bytes(lambda model=model: Likelihood(model)(BATCH)["logprobs"].sum().backward()))
        grown[again] = (peaks[1] - peaks[0]) / (6 * IDS.numel() * 4)  # numbers a token and layer
    width, mlp = 32, 64
    assert grown[False] > 10 * width + 5 * mlp
    assert 0.75 * width <= grown[True] < 1.5 * width


def test_layers_can_be_held_again():
    model = tiny_qwen()
    before = [dict(module.__dict__) for module in model.modules()]
    checkpoint_activations(model)
    hold_activations(model)
    assert [module.__dict__.keys() for module in model.modules()] == [kept.keys() for kept in before]


def test_families_without_such_layers_are_refused():
    check_checkpointing(tiny_qwen().config)
    with pytest.raises(StudentError, match="TinyLM is not made of layers"):
        checkpoint_activations(TinyLM())
