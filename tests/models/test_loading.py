import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, save_tiny_student, tiny_qwen
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from raygeo.errors import StudentError
from raygeo.models.loading import load_student, load_tokenizer, read_config
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer


@pytest.fixture
def folder(tmp_path):
    return save_tiny_student(tmp_path)


def test_a_saved_model_comes_back_exactly_and_ready(folder):
    model, tokenizer = load_student(folder)
    expected = build_model(TINY, word_tokenizer(), seed=0)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert tokenizer("Ivy has 10 pens .").input_ids == word_tokenizer()("Ivy has 10 pens .").input_ids


def test_dtype_and_attention_are_as_asked(folder):
    model, _ = load_student(str(folder), dtype=torch.float64, attention="eager")
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_named_without_asking_the_network(path):
    with pytest.raises(StudentError, match="neither a folder nor a hub id"):
        load_student(path)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    build_model(TINY, word_tokenizer(), seed=0).save_pretrained(tmp_path)
    with pytest.raises(StudentError, match="tokenizer"):
        load_student(tmp_path)


@pytest.mark.parametrize("tokenizer", [False, True])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_model_name_or_path": "some/base"}, r"is a PEFT adapter of some/base, .* give its base \(some/base\)"),
        ({"peft_type": "LORA"}, "is a PEFT adapter, .* give its base, which it does not name"),
    ],
)
def test_an_adapter_is_told_from_a_model_and_its_base_is_named(tmp_path, tokenizer, settings, said):
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    if tokenizer:
        word_tokenizer().save_pretrained(tmp_path)
        assert load_tokenizer(tmp_path)("Ivy").input_ids
    for load in (read_config, load_student):
        with pytest.raises(StudentError, match=said):
            load(tmp_path)


def test_what_a_folder_lacks_or_holds_instead_of_a_model_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(StudentError, match=r"holds no config\.json, so it is no complete model"):
        load_student(folder)
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(StudentError, match="holds GGUF files, which are not read"):
        load_student(folder)


@pytest.mark.parametrize(
    ("name", "said"), [("config.json", "is a file; give a folder"), ("q4.gguf", "GGUF is not read; give a folder")]
)
def test_a_file_is_no_model(folder, name, said, monkeypatch):
    (folder / name).touch()
    monkeypatch.chdir(folder.parent)
    with pytest.raises(StudentError, match=said):
        load_student(f"{folder.name}/{name}")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(StudentError, match=r"holds no model\.safetensors"):
        load_student(folder)


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(StudentError, match="safetensors"):
        load_student(folder)


def test_damaged_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StudentError, match="damaged weights"):
        load_student(folder)


@pytest.mark.parametrize("change", ["missing", "mismatched"])
def test_parameters_that_would_be_random_are_named(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors.pop(name)
    if change == "mismatched":
        tensors[name] = torch.zeros(3, 3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StudentError, match=name):
        load_student(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    tiny_qwen(10).save_pretrained(folder)
    with pytest.raises(StudentError, match="only 10 embeddings"):
        load_student(folder)


def test_padding_falls_back_to_end_of_text_and_end_of_text_is_required(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "eos")
    assert load_tokenizer(tmp_path / "eos").pad_token == "<eos>"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "none")
    with pytest.raises(StudentError, match="end-of-text"):
        load_tokenizer(tmp_path / "none")
