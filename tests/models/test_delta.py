import json
import pickle

import pytest
import torch
from delta_cases import gaussian, low_rank, save_lora
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_peft, tiny_qwen

from raygeo.errors import DeltaError, StudentError
from raygeo.models.delta import (
    ADAPTER_FILE,
    FULL_FILE,
    Dense,
    LowRank,
    check_delta,
    layer_index,
    module_name,
    open_delta,
    save_full_delta,
    shard_file,
)
from raygeo.models.lora import LoraSettings, attach_lora

Q0 = "model.layers.0.self_attn.q_proj"


def rewrite(folder, change):
    """Apply ``change`` to the adapter's tensors."""
    tensors = load_file(folder / ADAPTER_FILE)
    change(tensors)
    save_file(tensors, folder / ADAPTER_FILE)


@pytest.fixture
def adapter(tmp_path):
    return save_lora(tmp_path / "lora", {Q0: low_rank(32, 32, 4, seed=0)})


A_KEY, B_KEY = f"base_model.model.{Q0}.lora_A.weight", f"base_model.model.{Q0}.lora_B.weight"


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({}, {2.0}),
        ({"use_rslora": True}, {4.0}),
        ({"r": 8, "lora_alpha": 3}, {0.375}),
        ({"rank_pattern": {"v_proj": 2}}, {2.0, 4.0}),
        ({"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 16}, "alpha_pattern": {"v_proj": 1}}, {2.0, 0.5, 0.25}),
        ({"rank_pattern": {"^model.layers.0.self_attn.v_proj": 16}, "use_rslora": True}, {2.0, 4.0}),
        ({"alpha_pattern": {"proj": 1, "v_proj": 100}}, {2.0, 25.0}),
        ({"target_modules": "all-linear"}, {2.0}),
    ],
)
def test_lora_folder_of_peft_is_read_as_peft_applies_it(tmp_path, options, scales):
    model = tiny_peft(**options)
    model.save_pretrained(tmp_path)
    delta = open_delta(tmp_path)
    layers = {name: m for name, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert list(delta) == sorted(name + ".weight" for name in layers)
    assert delta.low_rank
    assert len(delta) == len(layers)
    for name, layer in layers.items():
        entry = delta[name + ".weight"]
        assert isinstance(entry, LowRank)
        assert entry.scale == pytest.approx(layer.scaling["default"], rel=1e-15)
        assert torch.equal(entry.a, layer.lora_A["default"].weight)
        assert torch.equal(entry.b, layer.lora_B["default"].weight)
        assert entry.shape == tuple(layer.weight.shape)
        torch.testing.assert_close(entry.dense(), layer.get_delta_weight("default"), rtol=1e-6, atol=1e-7)
    assert {round(delta[name].scale, 12) for name in delta} == scales


def test_names_are_the_base_models_own(tmp_path):
    tiny_peft(target_modules="all-linear").save_pretrained(tmp_path)
    assert set(open_delta(tmp_path)) <= {name for name, _ in tiny_qwen().named_parameters()}


def test_adapters_stored_in_bf16_are_widened(adapter):
    rewrite(adapter, lambda t: t.update({key: value.bfloat16() for key, value in t.items()}))
    entry = open_delta(adapter)[Q0 + ".weight"]
    assert entry.a.dtype == entry.b.dtype == torch.float32


def test_full_deltas_round_trip_exactly(tmp_path):
    tensors = {
        "model.norm.weight": gaussian(32, seed=0),
        "model.embed_tokens.weight": gaussian(48, 32, seed=1).bfloat16(),
        Q0 + ".weight": gaussian(32, 16, seed=2).T.requires_grad_(),
    }
    save_full_delta(tmp_path / "new" / "folder", tensors)
    delta = open_delta(str(tmp_path / "new" / "folder"))
    assert list(delta) == sorted(tensors)
    assert not delta.low_rank
    for name, entry in delta.items():
        assert isinstance(entry, Dense)
        assert entry.value.dtype == torch.float32
        assert torch.equal(entry.value, tensors[name].float())
        assert entry.shape == tuple(tensors[name].shape)


def test_dense_gives_the_product_in_the_asked_precision():
    entry = low_rank(5, 7, 3, seed=3, scale=0.5)
    product = 0.5 * entry.b.double() @ entry.a.double()
    assert torch.equal(entry.dense(torch.float64), product)
    torch.testing.assert_close(entry.dense(), product.float(), rtol=1e-5, atol=1e-6)


def test_deltas_pickle_as_their_folder(adapter):
    delta = open_delta(adapter)
    again = pickle.loads(pickle.dumps(delta))
    assert list(again) == list(delta)
    assert torch.equal(again[Q0 + ".weight"].b, delta[Q0 + ".weight"].b)


def test_missing_parameters_are_key_errors(adapter):
    delta = open_delta(adapter)
    assert "lm_head.weight" not in delta
    assert delta.get("lm_head.weight") is None
    with pytest.raises(KeyError):
        delta["lm_head.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora=True.*merge it into its base"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["embed_tokens"]}, "not a LoRA factor of a linear layer"),
    ],
)
def test_lora_variants_that_are_no_product_are_refused(tmp_path, options, message):
    if "lora_bias" in options:
        tiny_peft().save_pretrained(tmp_path)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | options))
    else:
        tiny_peft(**options).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(DeltaError, match=message):
        open_delta(tmp_path)


def test_other_adapters_are_refused(tmp_path):
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(tiny_qwen(), config).save_pretrained(tmp_path)
    with pytest.raises(DeltaError, match="IA3"):
        open_delta(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({A_KEY: torch.empty(4, 0)}), "is empty"),
        (lambda t: t.update({B_KEY: torch.empty(0)}), "is empty"),
        (lambda t: t.pop(A_KEY), "has only factor B"),
        (lambda t: t.pop(B_KEY), "has only factor A"),
        (lambda t: t.clear(), "holds no LoRA factor"),
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}), "lm_head"),
    ],
)
def test_broken_adapters_are_refused(adapter, change, message):
    rewrite(adapter, change)
    with pytest.raises(DeltaError, match=message):
        open_delta(adapter)


def test_folders_that_are_no_delta_are_refused(tmp_path, adapter):
    with pytest.raises(StudentError, match="nowhere' is neither a folder nor a hub id"):
        open_delta(tmp_path / "nowhere")
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(DeltaError, match="is not a delta"):
        open_delta(adapter)


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_truncated_files_are_refused(tmp_path, adapter, keep):
    save_full_delta(tmp_path / "full", {Q0 + ".weight": gaussian(32, 32, seed=0)})
    for file in (tmp_path / "full" / FULL_FILE, adapter / ADAPTER_FILE):
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DeltaError, match="damaged"):
            open_delta(file.parent)


def test_full_folder_without_tensors_is_refused(tmp_path):
    save_full_delta(tmp_path, {})
    with pytest.raises(DeltaError, match="holds no tensor"):
        open_delta(tmp_path)


def test_check_passes_a_delta_that_moved_anywhere(tmp_path, adapter):
    check_delta(adapter)
    save_full_delta(tmp_path, {"a.weight": torch.zeros(2, 2), "b.weight": torch.tensor([0.0, 1e-38])})
    check_delta(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_check_names_the_parameter_that_is_not_finite(tmp_path, adapter, bad):
    save_full_delta(tmp_path, {"a.weight": torch.ones(3), "b.weight": torch.tensor([1.0, bad])})
    with pytest.raises(DeltaError, match=r"b\.weight holds NaN or infinity"):
        check_delta(tmp_path)
    rewrite(adapter, lambda t: t[A_KEY].view(-1)[5:6].fill_(bad))
    with pytest.raises(DeltaError, match=r"q_proj\.weight holds NaN or infinity"):
        check_delta(adapter)


def test_check_refuses_a_delta_that_changed_nothing(tmp_path, adapter):
    save_full_delta(tmp_path, {"a.weight": torch.zeros(3), "b.weight": torch.zeros(2, 2)})
    with pytest.raises(DeltaError, match="zero everywhere"):
        check_delta(tmp_path)
    rewrite(adapter, lambda t: t[B_KEY].zero_())
    with pytest.raises(DeltaError, match="zero everywhere"):
        check_delta(adapter)


def test_check_refuses_empty_parameters(tmp_path):
    save_full_delta(tmp_path, {"a.weight": torch.ones(3), "b.weight": torch.empty(0)})
    with pytest.raises(DeltaError, match=r"b\.weight is empty"):
        check_delta(tmp_path)


@pytest.mark.parametrize(
    ("parameter", "module", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", "model.layers.12.mlp.up_proj", 12),
        ("model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_proj.bias", 0),
        ("model.embed_tokens.weight", "model.embed_tokens", None),
        ("lm_head.weight", "lm_head", None),
        ("transformer.h.3.mlp.experts.7.weight", "transformer.h.3.mlp.experts.7", 3),
    ],
)
def test_module_and_layer_come_from_the_name(parameter, module, layer):
    assert module_name(parameter) == module
    assert layer_index(parameter) == layer


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 8}, r"has rank 8, but its factors B \[32, 4\] and A \[4, 32\] have another"),
        ({"rank_pattern": {"q_proj": 2}}, r"has rank 2, but its factors"),
        ({"r": True}, "r of .*q_proj is True, where a positive number belongs"),
        ({"r": -4}, "r of .*q_proj is -4"),
        ({"r": 0}, "r of .*q_proj is 0"),
        ({"r": 4.0}, r"r of .*q_proj is 4\.0"),
        ({"lora_alpha": True}, "lora_alpha of .*q_proj is True"),
        ({"lora_alpha": -8}, "lora_alpha of .*q_proj is -8"),
        ({"lora_alpha": "8"}, "lora_alpha of .*q_proj is '8'"),
        ({"alpha_pattern": {"q_proj": 0}}, "lora_alpha of .*q_proj is 0"),
    ],
)
def test_a_configuration_that_is_not_that_of_the_factors_is_refused(adapter, changes, said):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(DeltaError, match=said):
        open_delta(adapter)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_factors_that_are_no_floating_point_numbers_are_refused(adapter, dtype):
    rewrite(adapter, lambda tensors: tensors.update({A_KEY: torch.ones(4, 32, dtype=dtype)}))
    with pytest.raises(DeltaError, match="no floating-point type"):
        open_delta(adapter)


def test_factors_of_modules_that_hold_their_weight_transposed_are_turned(tmp_path):
    """GPT-2's: the product is laid out as PEFT merges it."""
    from checks.families import configuration, random_model

    model = attach_lora(random_model(configuration("gpt2")), LoraSettings(r=3, target_modules="all-linear"), 0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_B." in name:
                value.copy_(gaussian(*value.shape, seed=len(name)))
    model.save_pretrained(tmp_path)
    delta = open_delta(tmp_path)
    before = dict(random_model(configuration("gpt2")).named_parameters())
    merged = dict(model.merge_and_unload().named_parameters())
    assert {entry.shape for entry in delta.values()} == {(32, 96), (32, 32), (32, 48), (48, 32)}
    for name, entry in delta.items():
        torch.testing.assert_close(before[name] + entry.dense(), merged[name], rtol=1e-5, atol=1e-5)


def test_a_delta_in_parts_is_one_delta_and_a_lost_part_is_seen(tmp_path):
    tensors = {f"{module}.weight": gaussian(4, 4, seed=seed) for seed, module in enumerate("abc")}
    for index, names in enumerate((("c.weight",), ("a.weight", "b.weight"), ())):
        save_full_delta(tmp_path, {name: tensors[name] for name in names})
        (tmp_path / FULL_FILE).rename(tmp_path / shard_file(index, 3))
    delta = open_delta(tmp_path)
    assert list(delta) == sorted(tensors)
    assert all(torch.equal(delta[name].dense(), value) for name, value in tensors.items())
    check_delta(tmp_path)
    (tmp_path / shard_file(1, 3)).unlink()
    with pytest.raises(DeltaError, match="not all parts of one delta"):
        open_delta(tmp_path)
    assert shard_file(0, 1) == FULL_FILE
