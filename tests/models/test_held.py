"""How students are held outside training, and what that changes of keys."""

import numpy as np
import pytest
import torch
from tiny import save_tiny_student

from raygeo.errors import StudentError
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import token_logprobs
from raygeo.models.loading import Loading, join_ends, load_model
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_student(tmp_path_factory.mktemp("held"))


def test_nothing_is_added_to_keys_by_default():
    assert Loading().keyed == Loading(dtype="fp32", device_map=None).keyed == ()
    assert Loading(dtype="bf16").keyed == ({"dtype": "bf16"},)


def test_runs_say_how_the_student_is_held(base):
    runs = [Run("base", "b", None, loading=Loading(dtype="bf16", attn_implementation="eager"))]
    held = ResidentStudent.load(base, runs).model
    assert held.dtype == torch.bfloat16
    assert held.config._attn_implementation == "eager"
    assert ResidentStudent.load(base, runs, dtype=torch.float32).model.dtype == torch.float32
    assert ResidentStudent.load(base, []).model.dtype == torch.float32


def test_runs_of_a_student_placed_by_hand_may_be_keys():
    run = Run("a", "k", None, loading=Loading(device_map={"": "cpu"}))
    assert {run: 1}[run] == 1


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("nonsense", "fp32", "it is one of sdpa, eager"),
        ("someone/kernel", "bf16", "Kernels of other owners"),
        ("flash_attention_2", "fp32", "give dtype bf16 with it"),
    ],
)
def test_attention_that_cannot_be_is_refused_with_the_study(name, dtype, said):
    with pytest.raises(ValueError, match=said):
        Loading(attn_implementation=name, dtype=dtype)


def test_what_is_taken_in_fp32_has_no_flash_attention(base):
    held = Loading(attn_implementation="flash_attention_2", dtype="bf16").load(base, dtype=torch.float32)[0]
    assert held.config._attn_implementation == "sdpa"


def test_a_divided_student_gives_the_same_numbers(base):
    ids = torch.arange(12)[None]
    parts = {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    divided = load_model(base, device_map=parts | {"lm_head": "cpu"})
    expected = load_model(base)
    assert torch.equal(divided(ids).logits, expected(ids).logits)
    join_ends(divided)
    batch = collate([TokenSequence(np.arange(9), 3), TokenSequence(np.arange(5), 1)], 0)
    assert divided.get_decoder()._hf_hook is not None
    assert torch.equal(token_logprobs(divided, batch), token_logprobs(expected, batch))


def test_a_student_that_devices_do_not_hold_is_refused(base, tmp_path):
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    with pytest.raises(StudentError, match=r"parameters .* would lie on the CPU or the disk"):
        load_model(base, device_map=parts | {"model.rotary_emb": "cpu", "lm_head": "cpu"})
