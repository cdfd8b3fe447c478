"""Compiled layers: the numbers and the names of the others, from one program whatever the depth."""

import pytest
import torch
from tiny import TinyLM, tiny_qwen
from torch._dynamo.testing import CompileCounterWithBackend

from raygeo.errors import StudentError
from raygeo.models import compilation
from raygeo.models.activations import checkpoint_activations, hold_activations
from raygeo.models.batches import Batch
from raygeo.models.compilation import check_compilation, check_compiler, compile_layers, interpret_layers
from raygeo.models.likelihood import Likelihood
from raygeo.models.lora import LoraSettings, attach_lora

LORA = LoraSettings(r=2, target_modules=("q_proj",))


@pytest.fixture
def programs(monkeypatch, request):
    """What was compiled, without kernels of its own, which take a compiler and long."""
    counter = CompileCounterWithBackend(getattr(request, "param", "eager"))
    monkeypatch.setattr(compilation, "BACKEND", counter)
    yield counter
    torch.compiler.reset()


def texts(rows, tokens):
    ids = torch.arange(3, 3 + rows * tokens).view(rows, tokens) % 45 + 3
    return Batch(ids, torch.ones_like(ids), torch.ones_like(ids[:, 1:], dtype=torch.bool))


def outcome(model, batch):
    model.zero_grad()
    logprobs = Likelihood(model)(batch)["logprobs"]
    logprobs.sum().backward()
    return [logprobs.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("programs", "lora", "checkpointed"),
    [
        ("eager", None, False),
        ("eager", LORA, True),
        pytest.param("aot_eager", None, True, marks=pytest.mark.slow),
    ],
    indirect=["programs"],
)
def test_values_gradients_and_names_are_those_of_eager_layers(programs, lora, checkpointed):
    model = tiny_qwen(num_hidden_layers=3)
    model = model if lora is None else attach_lora(model, lora, 0)
    names, batches = list(model.state_dict()), [texts(2, 20), texts(3, 31)]
    expected = [outcome(model, batch) for batch in batches]
    compile_layers(model)
    if checkpointed:
        checkpoint_activations(model)
    for batch, wanted in zip(batches, expected, strict=True):
        for found, right in zip(outcome(model, batch), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert programs.frame_count > 0
    assert list(model.state_dict()) == names


@pytest.mark.slow
def test_one_program_serves_all_layers_and_lengths(programs):
    counts = []
    for layers in (2, 4):
        model, before = tiny_qwen(num_hidden_layers=layers), programs.frame_count
        compile_layers(model)
        for batch in (texts(2, 20), texts(3, 31), texts(4, 17)):
            outcome(model, batch)
        counts.append(programs.frame_count - before)
    assert counts[0] == counts[1] == 1


@pytest.mark.slow
def test_layers_can_be_interpreted_again(programs):
    model = tiny_qwen()
    before = [dict(module.__dict__) for module in model.modules()]
    compile_layers(model)
    checkpoint_activations(model)
    hold_activations(model)
    outcome(model, texts(2, 20))
    assert programs.frame_count == 1, "still compiled"
    interpret_layers(model)
    assert [module.__dict__.keys() for module in model.modules()] == [kept.keys() for kept in before]


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    check_compilation(tiny_qwen().config)
    with pytest.raises(StudentError, match="torch_compile: TinyLM is not made of layers"):
        compile_layers(TinyLM())
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(StudentError, match=r"has no C\+\+ compiler"):
        check_compiler(gpu=False)
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    with pytest.raises(StudentError, match="has no Triton"):
        check_compiler(gpu=True)
