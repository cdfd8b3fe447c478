"""Names on disk are not names in memory: what is read are the parameters of the loaded model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checks.families import configuration, random_model
from raygeo.errors import StudentError
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import open_delta
from raygeo.models.parameters import CONVERTED, INDEX
from raygeo.pipeline.student import hash_folder, link_folder, model_files

pytestmark = pytest.mark.cluster


def saved(folder, family, shift=0.0):
    model = random_model(configuration(family))
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(shift * (i + 1))
    model.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    """Change the tensors of a model's one file, as a mapping of names."""
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def loaded(folder):
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


def with_inv_freq(tensors):
    return tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.rand(4) for i in range(2)}


def with_masks(tensors):
    masks = {f"gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool) for i in range(2)}
    return tensors | masks | {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9)}


def without_prefix(tensors):
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items() if name != "lm_head.weight"}
    return bare | {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in range(2)}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", with_inv_freq),
        ("gpt_neox", with_masks),
        ("gpt2", without_prefix),
        ("qwen3_moe", dict),
        ("mixtral", dict),
        ("olmoe", dict),
        ("youtu", dict),
    ],
)
def test_parameters_and_deltas_are_those_of_the_loaded_model(family, change, tmp_path, store):
    base = rewrite(saved(tmp_path / "base", family), change)
    tuned = saved(tmp_path / "tuned", family, 0.001)
    if family != "youtu":  # which zeroes the embedding of padding as it loads
        assert_alike(Checkpoint(base), loaded(base))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    link_folder(store, "students", "base", base, model)
    kept = store.folder("students", "base")
    assert_alike(Checkpoint(kept), loaded(base))
    before, after = loaded(base), loaded(tuned)
    delta = open_delta(tuned, kept)
    assert set(delta) == set(before)
    for name, entry in delta.items():
        expected = after[name] - before[name]
        if family != "youtu" or name != "model.embed_tokens.weight":
            assert torch.equal(entry.value, expected), name


def assert_alike(checkpoint, parameters):
    assert checkpoint.names() == sorted(parameters)
    for name, value in parameters.items():
        assert torch.equal(checkpoint.tensor(name).float(), value), name
        assert checkpoint.shape(name) == tuple(value.shape)


EXPERTS = {f"model.layers.{i}.mlp.experts.{part}" for i in range(2) for part in ("gate_up_proj", "down_proj")}


@pytest.mark.parametrize(("family", "copied"), [("llama", set()), ("qwen3_moe", EXPERTS)])
def test_only_what_no_file_holds_is_copied(family, copied, tmp_path, store):
    link_folder(store, "students", family, saved(tmp_path / family, family))
    folder = tmp_path / "store" / "students" / family
    assert (folder / "model.safetensors").is_symlink()
    assert (folder / INDEX).is_file()
    assert (folder / CONVERTED).is_file() == bool(copied)
    assert not copied or set(load_file(folder / CONVERTED)) == copied


@pytest.mark.parametrize(("family", "bias"), [("phi", True), ("gpt_neox", False), ("qwen3", False)])
def test_the_head_is_that_of_every_family(family, bias, tmp_path):
    folder = saved(tmp_path, family)
    weight, offset = Checkpoint(folder).head()
    head = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_output_embeddings()
    assert torch.equal(weight, head.weight)
    assert (offset is not None) == bias
    assert offset is None or torch.equal(offset, head.bias)


def test_a_key_is_of_all_weights_wherever_they_stand(tmp_path):
    """Two models that differ in a shard in a subfolder differ in their keys, and both are read from a store."""
    keys = set()
    for shift in (0.0, 0.5):
        folder = saved(tmp_path / f"at{shift}", "qwen3", shift)
        (folder / "shards").mkdir()
        (folder / "model.safetensors").rename(folder / "shards" / "one.safetensors")
        names = load_file(folder / "shards" / "one.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shards/one.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "shards/one.safetensors" in model_files(folder)
        keys.add(hash_folder(folder))
    assert len(keys) == 2
    delta = open_delta(tmp_path / "at0.5", tmp_path / "at0.0")
    assert all(bool(entry.value.any()) for entry in delta.values())


@pytest.mark.parametrize("name", ["weights.data", "w.bin", "../model.safetensors", "/elsewhere/model.safetensors"])
def test_weights_under_other_names_are_refused(tmp_path, name):
    folder = saved(tmp_path / "m", "qwen3")
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))
    for read in (hash_folder, Checkpoint):
        with pytest.raises(StudentError, match="only safetensors files in the model's own folder"):
            read(folder)


def test_a_shard_that_is_not_there_is_named(tmp_path):
    folder = saved(tmp_path, "qwen3")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StudentError, match="lacks model-00001-of-00002"):
        hash_folder(folder)
