"""What is found out about a model before anything starts; ``tests/test_families.py`` has every family."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny_student, tiny_qwen

from checks.families import configuration, random_model
from raygeo.errors import StudentError
from raygeo.models.batches import Batch
from raygeo.models.likelihood import Likelihood, token_logprobs
from raygeo.models.loading import context_length, model_shape
from raygeo.models.soundness import check_student, unsupported


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value):
    folder = save_tiny_student(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudentError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"):
        check_student(folder)


def test_what_the_rest_relies_on_is_found_missing():
    model = tiny_qwen(40)
    assert unsupported(model, 0) is None
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    model.forward = scaled
    assert unsupported(model, 0) == "its logits are not its output embedding applied to its final states"


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("bert", "its logits are not its output embedding applied to its final states"),
        ("bart", "with a cache, beside longer prompts, it does not answer as it does alone"),
        ("xlnet", "a token depends on later ones"),
    ],
)
def test_families_that_cannot_be_followed_are_refused_with_the_reason(family, said):
    assert unsupported(random_model(configuration(family)), 0) == said


@pytest.mark.parametrize("family", ["opt", "starcoder2", "falcon", "bloom", "xglm", "biogpt", "mixtral", "gpt2"])
def test_training_sees_the_function_that_is_evaluated(family):
    """Where transformers drops out or jitters in training, a student does not, and it still learns."""
    model = random_model(configuration(family))
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids), torch.ones(2, 11, dtype=torch.bool))
    with torch.no_grad():
        expected = token_logprobs(model.eval(), batch)
        model.train()
        noisy = [model(input_ids=ids, use_cache=False).logits for _ in range(2)]
    assert not torch.equal(*noisy), "this family does something in training alone"
    likelihood = Likelihood(model).train()
    assert likelihood.training
    first, second = (likelihood(batch)["logprobs"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, expected)
    first.sum().backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad and value.numel() > 200)


@pytest.mark.parametrize(
    ("family", "length"), [("qwen3", 128), ("gpt2", 128), ("bloom", None), ("mamba", None), ("mpt", 128)]
)
def test_a_context_is_known_or_without_limit(family, length):
    assert context_length(configuration(family)) == length


def test_composite_configurations_have_the_context_of_their_text():
    from transformers import Gemma3Config

    config = Gemma3Config(text_config={"max_position_embeddings": 77})
    assert getattr(config, "max_position_embeddings", None) is None
    assert context_length(config) == 77


def test_a_shape_has_no_weights():
    shape = model_shape(configuration("qwen3"))
    assert {value.device.type for value in shape.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("family", "attention"), [("qwen3", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager"), ("bloom", "eager")]
)
def test_families_without_sdpa_are_loaded_with_the_attention_they_have(family, attention, tmp_path):
    from raygeo.models.loading import load_model

    random_model(configuration(family)).save_pretrained(tmp_path)
    assert load_model(tmp_path).config._attn_implementation == attention
