import json

import pytest
import torch
from delta_cases import Q, V, gaussian, save_lora
from safetensors.torch import load_file
from tiny import save_tiny_student, tiny_peft, tiny_qwen

from raygeo.errors import DeltaError, StudentError
from raygeo.models.delta import LowRank, open_delta, save_full_delta
from raygeo.models.loading import load_student
from raygeo.models.merge import merge_run
from raygeo.toy.word_problems import word_tokenizer

EMBED = "model.embed_tokens.weight"


def weights(folder):
    return {name: p.detach().double() for name, p in load_student(folder)[0].named_parameters()}


def save_base(folder, model):
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def full_delta(folder, base):
    shapes = {name: value.shape for name, value in weights(base).items()}
    save_full_delta(folder, {name: 1e-3 * gaussian(*shape, seed=3) for name, shape in shapes.items()})
    return folder


def lora_delta(folder, base):
    entries = {
        module: LowRank(0.1 * gaussian(out, 4, seed=out), gaussian(4, 32, seed=1), 2.0)
        for module, out in ((Q.format(0), 32), (V.format(1), 16))
    }
    return save_lora(folder, entries)


@pytest.mark.parametrize("make", [full_delta, lora_delta])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_is_base_plus_delta_in_fp32(tmp_path, make, dtype):
    base = save_tiny_student(tmp_path / "base")
    save_base(base, load_student(base, dtype=dtype)[0])
    delta = make(tmp_path / "delta", base)
    merge_run(base, delta, tmp_path / "merged")
    before, after, moved = weights(base), weights(tmp_path / "merged"), open_delta(delta)
    assert after.keys() == before.keys()
    for name, value in after.items():
        expected = before[name] + moved[name].dense(torch.float64) if name in moved else before[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
        assert (name in moved) != torch.equal(value, before[name])
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_a_merged_adapter_is_that_of_peft(tmp_path):
    peft = tiny_peft(rank_pattern={"v_proj": 2}, use_rslora=True)
    peft.save_pretrained(tmp_path / "delta")
    model = tiny_qwen()
    model.resize_token_embeddings(len(word_tokenizer()))
    merge_run(save_base(tmp_path / "base", model), tmp_path / "delta", tmp_path / "merged")
    expected, merged = peft.merge_and_unload(), dict(load_student(tmp_path / "merged")[0].named_parameters())
    changed = 0
    for name, value in expected.named_parameters():
        if name != EMBED:
            torch.testing.assert_close(merged[name], value, rtol=1e-6, atol=1e-6)
            changed += not torch.equal(merged[name], tiny_qwen().get_parameter(name))
    assert changed == 4


def test_the_folder_is_a_whole_student(tmp_path):
    base = save_tiny_student(tmp_path / "base")
    merge_run(base, full_delta(tmp_path / "delta", base), tmp_path / "merged")
    model, tokenizer = load_student(tmp_path / "merged")
    assert model.generation_config.to_dict() == load_student(base)[0].generation_config.to_dict()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    text = "Ivy has 10 pens ."
    assert tokenizer(text).input_ids == word_tokenizer()(text).input_ids
    assert (tokenizer.eos_token, tokenizer.pad_token) == (word_tokenizer().eos_token, word_tokenizer().pad_token)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "shape"),
    [(f"{Q.format(7)}.weight", (32, 32)), (f"{Q.format(0)}.weight", (8, 8)), ("lm_head.weight", None)],
)
def test_a_delta_of_another_model_or_of_a_tied_head_alone_is_refused(tmp_path, name, shape):
    base = save_tiny_student(tmp_path / "base")
    save_full_delta(tmp_path / "delta", {name: torch.ones(shape or weights(base)[EMBED].shape)})
    with pytest.raises(DeltaError, match=f"holds {name}"):
        merge_run(base, tmp_path / "delta", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StudentError, match="neither a folder nor a hub id"):
        merge_run(tmp_path / "nothing", tmp_path / "delta", tmp_path / "merged")
