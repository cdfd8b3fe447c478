"""What a student cannot be trained with is said before anything is made, and only what is asked for is looked at."""

import pytest
from pydantic import ValidationError
from tiny import BLOOM, tiny_qwen
from transformers import Gemma2Config

from raygeo.errors import StudentError
from raygeo.losses import ASFT, DPO, SFT
from raygeo.models.lora import LoraSettings
from raygeo.training.fitness import check_trainable
from raygeo.training.settings import LATER, Execution, RunSpec, TrainingSettings

BF16 = {"precision": "bf16", "gpus": 1}
QWEN = tiny_qwen().config


def test_a_configuration_is_not_read_for_runs_that_ask_for_nothing():
    check_trainable(lambda: pytest.fail("was read"), [TrainingSettings()])


def test_what_fits_passes():
    run = TrainingSettings(
        lora=LoraSettings(r=2), padding_free=True, gradient_checkpointing=True, attn_implementation="eager"
    )
    check_trainable(lambda: QWEN, [run, TrainingSettings(attn_implementation="sdpa")])


@pytest.mark.parametrize(
    ("config", "training", "said"),
    [
        (BLOOM, {"padding_free": True}, "padding_free: BloomForCausalLM"),
        (BLOOM, {"attn_implementation": "sdpa"}, "does not have it .* computed by eager"),
        (Gemma2Config(), {"attn_implementation": "sdpa"}, "Gemma2ForCausalLM does not have it"),
        (
            QWEN,
            {"attn_implementation": "flash_attention_2", **BF16},
            "'flash_attn', which is not installed .pip install",
        ),
        (QWEN, {"attn_implementation": "kernels-community/flash-attn2", **BF16}, "'kernels', which is not installed"),
        (QWEN, {"lora": LoraSettings(target_modules=("none",))}, "names no linear module"),
        (QWEN, {"sequence_parallel_size": 3, "workers": 6, "padding_free": True}, "4 attention heads .* 3 workers"),
    ],
)
def test_what_does_not_is_refused(monkeypatch, config, training, said):
    monkeypatch.setattr("raygeo.models.attention.find_spec", lambda module: None)
    with pytest.raises(StudentError, match=said):
        check_trainable(lambda: config, [TrainingSettings(), TrainingSettings(**training)])


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"attn_implementation": "someone/kernel"}, "Kernels of other owners are not taken"),
        ({"attn_implementation": "flash"}, "it is one of sdpa, eager, flash_attention_2"),
        ({"attn_implementation": "flash_attention_2"}, "bf16 on GPUs"),
        ({"attn_implementation": "flash_attention_2", "gpus": 1}, "bf16 on GPUs"),
        ({"micro_batch_tokens": 100}, "give padding_free: true"),
        ({"sequence_parallel_size": 2, "workers": 3, "padding_free": True}, "does not divide workers .3."),
        ({"sequence_parallel_size": 2, "workers": 2}, "give padding_free: true"),
        (
            {"sequence_parallel_size": 2, "workers": 2, "padding_free": True, "attn_implementation": "eager"},
            "attention is SDPA, a row at a time",
        ),
        ({"torch_compile": True, "zero_stage": 3}, "gathers weights within a layer"),
        (
            {"torch_compile": True, "sequence_parallel_size": 2, "workers": 2, "padding_free": True},
            "exchange heads within a layer",
        ),
        ({"max_snapshot_gib": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(training, said):
    with pytest.raises(ValidationError, match=said):
        TrainingSettings(**training)


def test_settings_that_came_later_are_in_a_key_only_where_they_are_given():
    def key(**training):
        return RunSpec(name="run", loss=SFT(), training=TrainingSettings(steps=1, **training)).key(
            "student", "rollouts"
        )

    defaults = Execution()
    assert {name: getattr(defaults, name) for name in LATER} == dict(LATER)
    assert key() == key(**LATER)
    assert (key()[:16], key(precision="bf16")[:16]) == ("3583dd255ab750b2", "606f5ecd1c1e4d18"), "as of stored runs"
    given = [{"gradient_checkpointing": True}, {"padding_free": True}, {"attn_implementation": "eager"}]
    given += [{"torch_compile": True}, {"max_snapshot_gib": 1}]
    shared = {"workers": 2, "padding_free": True}
    assert len({key(), *(key(**one) for one in given), key(**shared), key(**shared, sequence_parallel_size=2)}) == 8


def test_runs_with_adapters_ask_the_base_in_each_step_under_keys_of_their_own():
    def spec(loss, **training):
        return RunSpec(name="run", loss=loss, training=TrainingSettings(steps=1, **training))

    lora = {"lora": LoraSettings(r=2)}
    assert (spec(ASFT()).needs, spec(ASFT(), **lora).needs) == ({"reference_logits"}, frozenset())
    assert spec(DPO(), **lora).needs == {"reference"}
    assert [spec(loss, **lora).asks_base for loss in (ASFT(), DPO(), SFT())] == [True, False, False]
    keys = [spec(loss, **training).key("student", "rollouts") for loss in (ASFT(), DPO()) for training in ({}, lora)]
    kept = {0: "1ba4b113619e4b19", 2: "33ca4592bfb4c08a", 3: "cacca3a00642ccea"}
    assert {index: keys[index][:16] for index in kept} == kept, "as of stored runs"
    assert keys[1][:16] != "d5e6fd897ed1d026", "that of runs with stored states"


def test_snapshots_are_as_many_as_there_is_room_for():
    def kept(gib, snapshots=8):
        return TrainingSettings(snapshots=snapshots, max_snapshot_gib=gib).kept_snapshots(4 * 2**30)

    assert [kept(gib) for gib in (None, 100, 32, 31, 4, 3)] == [8, 8, 8, 7, 1, 0]
    assert kept(12, snapshots=2) == 2
