import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_qwen

from checks.families import configuration, random_model
from raygeo.errors import DeltaError, StudentError
from raygeo.geometry.weights.base import BaseWeights
from raygeo.models.batches import Batch
from raygeo.models.delta import open_delta
from raygeo.models.likelihood import Likelihood, token_logprobs
from raygeo.models.loading import load_model
from raygeo.models.lora import LoraSettings, adapter_fingerprint, attach_lora, check_lora, find_targets
from raygeo.models.mix import MixedWeights


def tiny(dtype=torch.float32):
    return tiny_qwen(20).to(dtype)


def factors(model, side):
    return {name: p for name, p in model.named_parameters() if f".lora_{side}." in name}


def test_equal_seeds_give_equal_adapters_whatever_the_global_generator_is_at():
    first = attach_lora(tiny(), LoraSettings(), init_seed=3)
    base = tiny()
    torch.manual_seed(99)
    second = attach_lora(base, LoraSettings(), init_seed=3)
    for name, a in factors(first, "A").items():
        assert torch.equal(a, second.get_parameter(name)), name
    assert adapter_fingerprint(first) == adapter_fingerprint(second)
    assert adapter_fingerprint(first) != adapter_fingerprint(attach_lora(tiny(), LoraSettings(), init_seed=4))


def test_adapters_on_a_base_in_bf16_start_with_every_bit_of_those_on_one_in_fp32():
    wide, narrow = (attach_lora(tiny(dtype), LoraSettings(), 3) for dtype in (torch.float32, torch.bfloat16))
    assert adapter_fingerprint(narrow) == adapter_fingerprint(wide)
    assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in narrow.parameters() if not p.requires_grad} == {torch.bfloat16}
    expected = dict(tiny(torch.bfloat16).named_parameters())
    for name, weight in narrow.unload().named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_the_global_generator_is_left_alone():
    base = tiny()
    before = torch.get_rng_state()
    attach_lora(base, LoraSettings(), init_seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_the_fingerprint_ignores_b_and_sees_every_a():
    model = attach_lora(tiny(), LoraSettings(), init_seed=0)
    start = adapter_fingerprint(model)
    with torch.no_grad():
        for b in factors(model, "B").values():
            b.fill_(1.0)
    assert adapter_fingerprint(model) == start
    with torch.no_grad():
        list(factors(model, "A").values())[-1].view(-1)[-1] += 1e-3
    assert adapter_fingerprint(model) != start


def test_adapters_start_as_the_base_in_fp32_and_only_they_train():
    base = tiny(torch.bfloat16)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        expected = base(ids).logits
    model = attach_lora(base, LoraSettings(r=4), init_seed=0).eval()
    assert all(p.dtype == torch.float32 and p.shape[0] == 4 for p in factors(model, "A").values())
    assert not any(b.any() for b in factors(model, "B").values())
    for name, a in factors(model, "A").items():
        bound = a.shape[1] ** -0.5
        assert a.abs().max() <= bound, name
        assert a.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(factors(model, "A")) | set(factors(model, "B"))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)])
def test_the_saved_adapter_is_read_back_with_its_scale(tmp_path, rslora, scale):
    model = attach_lora(tiny(), LoraSettings(r=4, lora_alpha=6, use_rslora=rslora), init_seed=0)
    model.save_pretrained(tmp_path)
    delta = open_delta(tmp_path)
    assert len(delta) == 8
    assert {entry.scale for entry in delta.values()} == {scale}


@pytest.mark.parametrize(("targets", "modules"), [(("up_proj",), 2), ("all-linear", 14)])
def test_targets_choose_the_modules(targets, modules):
    assert len(factors(attach_lora(tiny(), LoraSettings(target_modules=targets), init_seed=0), "A")) == modules


def test_a_target_that_names_nothing_is_refused_even_beside_good_ones():
    with pytest.raises(StudentError, match=r"'qproj' names no linear module.*q_proj"):
        attach_lora(tiny(), LoraSettings(target_modules=("v_proj", "qproj")), init_seed=0)


def test_a_target_with_a_like_name_is_proposed():
    with pytest.raises(StudentError, match=r"'q_porj' names no linear module.*did you mean 'q_proj'\? It has"):
        attach_lora(tiny(), LoraSettings(target_modules=("q_porj",)), init_seed=0)


def test_a_tied_head_takes_no_adapter_and_an_untied_copy_of_the_base_is_the_same_model_with_it(tmp_path):
    """Merging an adapter into a tied head changes the embeddings too; what is advised computes what PEFT does."""
    with pytest.raises(
        StudentError, match=r"'lm_head' has one weight with model\.embed_tokens \(tied\).*a copy of the"
    ):
        attach_lora(tiny(), LoraSettings(target_modules=("q_proj", "lm_head")), init_seed=0)
    with pytest.raises(StudentError, match="one weight with"):
        check_lora(tiny().config, LoraSettings(target_modules=("lm_head",)))
    tied = get_peft_model(tiny(), LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"]))
    with torch.no_grad():
        for name, value in tied.named_parameters():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    tied.save_pretrained(tmp_path / "adapter")
    batch = Batch(torch.arange(10)[None], torch.ones(1, 10, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))
    with torch.no_grad():
        expected = Likelihood(tied)(batch)["logprobs"].sum()
    tiny().save_pretrained(tmp_path / "base")
    delta = open_delta(tmp_path / "adapter")
    with pytest.raises(DeltaError, match=r"'lm_head\.weight', which is one parameter with model\.embed_tokens\.weight"):
        BaseWeights(tmp_path / "base").check("lm_head.weight", delta["lm_head.weight"])
    untied = tiny()
    untied.config.tie_word_embeddings = False
    untied.lm_head.weight = torch.nn.Parameter(untied.get_input_embeddings().weight.detach().clone())
    untied.save_pretrained(tmp_path / "untied")
    model = load_model(tmp_path / "untied")
    BaseWeights(tmp_path / "untied").check("lm_head.weight", delta["lm_head.weight"])
    with torch.no_grad(), MixedWeights(model, delta).mixed([(1.0, delta)]) as mixed:
        found = token_logprobs(mixed, batch).sum()
        merged = token_logprobs(tied.merge_and_unload().eval(), batch).sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(merged - expected)) > 0.1


@pytest.mark.parametrize("family", ["qwen3_moe", "olmoe", "phimoe", "gpt2"])
def test_all_linear_names_what_can_be_adapted_and_compared(family):
    model = random_model(configuration(family))
    own = {name: tuple(value.shape) for name, value in model.named_parameters()}
    adapted = attach_lora(model, LoraSettings(r=2, target_modules="all-linear"), 0)
    names = {name.split(".lora_A")[0].removeprefix("base_model.model.") + ".weight" for name in factors(adapted, "A")}
    assert names <= set(own)
    assert all(len(own[name]) == 2 for name in names)
    assert any("attn" in name for name in names)


@pytest.mark.parametrize("family", ["falcon_h1", "bamba", "qwen3_5_text", "llama", "lfm2"])
def test_all_linear_leaves_no_layer_out_where_no_experts_are_held_together(family):
    """Not even where convolutions have weights of three dimensions, as experts have."""
    model = random_model(configuration(family))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    assert set(find_targets(model, LoraSettings(target_modules="all-linear"))) == linear
    for name, value in model.named_parameters():  # as ZeRO-3 holds them
        value.ds_shape, value.data = value.shape, torch.empty(0)
        assert name
    assert set(find_targets(model, LoraSettings(target_modules="all-linear"))) == linear


def test_experts_are_known_by_their_whole_shape():
    model = random_model(configuration("qwen2_moe"))
    whole = set(find_targets(model, LoraSettings(target_modules="all-linear")))
    for value in model.parameters():
        value.ds_shape, value.data = value.shape, torch.empty(0)
    assert set(find_targets(model, LoraSettings(target_modules="all-linear"))) == whole
    assert not any("shared_expert.gate_proj" in name for name in whole)


@pytest.mark.parametrize("family", ["qwen3_moe"])
def test_nothing_is_trained_but_factors_of_linear_layers(family):
    adapted = attach_lora(random_model(configuration(family)), LoraSettings(r=2, target_modules="all-linear"), 0)
    assert not adapted.peft_config["default"].target_parameters
