"""What whoever writes a name of another library, of another place, or a misspelt one is told."""

import re

import pytest
from study_cases import tiny_study

from raygeo.errors import ConfigError
from raygeo.pipeline.config import parse_study

SFT = {"loss": {"type": "sft"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_dir": "x"}, "output_dir: is called 'store' here."),
        ({"model_name_or_path": "x"}, "model_name_or_path: is given as student.model."),
        ({"learning_rate": 1e-4}, "learning_rate: is no setting here; it is training.lr or runs.0.lr"),
        ({"num_train_epochs": 1}, "num_train_epochs: is no setting here; it is training.epochs"),
        ({"per_device_train_batch_size": 4}, "it is training.micro_batch_size"),
        ({"max_new_tokens": 64}, " or evaluation.answers.max_new_tokens or "),
        ({"lora": {"r": 4}}, "lora: is no setting here; it is training.lora"),
        ({"training": {"learning_rate": 1e-4}}, "training.learning_rate: is called 'lr' here."),
        ({"training": {"num_train_epochs": 3}}, "training.num_train_epochs: is called 'epochs' here."),
        ({"training": {"lora_r": 8}}, "training.lora_r: is given as lora.r."),
        ({"training": {"output_dir": "x"}}, "training.output_dir: is the study's: store."),
        ({"training": {"heldout": 0.1}}, "training.heldout: is no setting here; it is rollouts.heldout"),
        ({"training": {"lora": {"rank": 8}}}, "training.lora.rank: is called 'r' here."),
        ({"training": {"warmup_ration": 0.1}}, "training.warmup_ration: unknown key; did you mean 'warmup_ratio'?"),
        ({"runs": [SFT | {"per_device_train_batch_size": 4}]}, "is called 'micro_batch_size' here."),
        ({"runs": [{"loss": {"type": "sftt"}}]}, "'sftt' is not a loss (did you mean 'sft'?)"),
        ({"rollouts": {"read": [{"type": "json", "path": "x"}]}}, "rollouts.read.0.type: there is no 'json'; did you"),
        ({"evaluation": {"engine": {"type": "vlm"}}}, "evaluation.engine.type: there is no 'vlm'; did you mean 'vllm'"),
        ({"name": "my study"}, "name: write it as a text that matches ^[A-Za-z0-9][A-Za-z0-9._-]*$ (read 'my study')"),
        ({"evaluation": {"engine": {"type": "sglang"}}}, "there is no 'sglang'; it is one of 'local', "),
        ({"evaluation": {"engine": {}}}, "evaluation.engine: it has no type; give one of local, "),
        ({"runs": [{"loss": {"beta": 0.1}}]}, "runs.0.loss: it has no type; give one of sft, rft, "),
        ({"runs": [{"loss": {"type": "sft", "beta": 0.1}}]}, "runs.0.loss.sft.beta: unknown key; allowed here: "),
        ({"rollouts": {"sample": {"n": 4}}}, "sample.n: is no setting here; it is rollouts.sample.decoding.samples."),
        ({"rollouts": {"limit": 3}}, "rollouts.limit: is no setting here; it is rollouts.read.0.limit."),
        ({"student.model": "x"}, "student.model: dotted keys are for --set; write it nested: student: {model: x}"),
        ({"training": {"lora.r": [4, 8]}}, "lora.r: dotted keys are for --set; write it nested: lora: {r: [4, 8]}"),
        ({"training": {"lora": {"a.b.c": 8}}}, "write it nested: a: {b: {c: 8}}"),
        ({"runs": [SFT | {"training": {"lr": 1e-4}}]}, "runs.0.training: is not written here: an entry takes its"),
        ({"rollouts": {"read": [{"type": "jsonl", "name": "x"}]}}, "read.0.jsonl.name: is called 'path' here."),
        ({"rollouts": {"read": [{"type": "datasets", "path": "x"}]}}, "0.datasets.path: is called 'name' here."),
        ({"sweep": {"objectives": [{"name": "eval/accuracy"}]}}, "sweep.objectives.0.name: is called 'metric' here."),
        ({"quite_unknown": 1}, "quite_unknown: unknown key; allowed here: actors, "),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_is_none_of_ours_is_answered_with_ours(changes, said):
    with pytest.raises(ConfigError) as refused:
        parse_study(tiny_study(**changes))
    assert said in str(refused.value)


def test_what_is_missing_is_not_taken_for_a_key_whose_value_it_cannot_have():
    raw = tiny_study(learning_rate=1e-4)
    del raw["runs"]
    with pytest.raises(ConfigError, match="- runs: it is missing; give it") as refused:
        parse_study(raw)
    assert "learning_rate: is no setting here; it is training.lr" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"lora": {"target_modules": "q_proj"}}},
         "training.lora.target_modules: write a list, as in [q_proj], or 'all-linear' (read 'q_proj')"),
        ({"runs": [SFT | {"lora": {"target_modules": None}}]},
         "runs.0.lora.target_modules: it is empty; write a list or 'all-linear', or leave it out."),
        ({"training": {"lora": {"target_modules": [1]}}},
         "training.lora.target_modules.0: write a text, in quotes: '1' (read 1)"),
        ({"training": {"betas": 0.9}}, "training.betas: write a list, as in [0.9] (read 0.9)"),
        ({"training": {"betas": [0.9, 0.9, 0.9]}},
         "training.betas: write at most 2 items, not 3 (read [0.9, 0.9, 0.9])"),
        ({"runs": None}, "runs: it is empty; write a list."),
        ({"runs": "sft"}, "runs: write a list, as in [{loss: {type: sft}}] (read 'sft')"),
        ({"runs": SFT}, "runs: write a list, as in [{loss: {type: sft}}] (read {loss: {type: sft}})"),
        ({"runs": ["sft"]}, "runs.0: write a mapping, as in {loss: {type: sft}} (read 'sft')"),
        ({"runs": SFT | {"name": "x" * 100}}, "runs: write a list, with a dash before each entry (read {loss: "),
        ({"training": None},
         "training: it is empty; write a mapping of settings (lr, seed, init_seed, steps, epochs, ...), or leave it"),
        ({"training": "fast"}, "training: write a mapping of settings (lr, seed, init_seed, steps, epochs, ...)"),
        ({"rollouts": {"read": {"type": "jsonl", "path": "x"}}},
         "rollouts.read: write a list, as in [{type: jsonl, path: x}] (read {type: jsonl, path: x})"),
        ({"rollouts": {"read": "x.jsonl"}},
         "rollouts.read: write a list, as in [{type: jsonl, path: x.jsonl}] (read 'x.jsonl')"),
        ({"rollouts": {"read": ["x.csv"]}}, "rollouts.read.0: write a mapping, as in {type: csv, path: x.csv}"),
        ({"rollouts": {"read": ["x"]}}, "rollouts.read.0: write a mapping with a type: csv, datasets, "),
        ({"rollouts": {"sample": {"prompts": "x.jsonl"}}},
         "rollouts.sample.prompts: write a whole number, or a mapping, as in {type: jsonl, path: x.jsonl} (read"),
        ({"rollouts": {"sample": {"prompts": {"path": "x"}}}}, "sample.prompts: it has no type; give one of csv"),
        ({"rollouts": {"sample": {"prompts": {"type": "jsonl"}}}}, "rollouts.sample.prompts.jsonl.path: it is missing"),
        ({"rollouts": {"sample": {"prompts": 0}}}, "sample.prompts: Input should be greater than or equal to 1"),
        ({"training": {"lora": True}},
         "training.lora: write {} or a mapping of settings (r, lora_alpha, target_modules, use_rslora) (read true)"),
        ({"geometry": {"norms": False}}, "geometry.norms: write null, or a mapping (read false)"),
        ({"sweep": {"scheduler": "asha"}}, "sweep.scheduler: write a mapping, as in {type: asha} (read 'asha')"),
        ({"sweep": {"objectives": ["eval/accuracy"]}},
         "sweep.objectives.0: write a mapping, as in {metric: eval/accuracy} (read 'eval/accuracy')"),
        ({"evaluation": {"engine": "vllm"}}, "evaluation.engine: write a mapping, as in {type: vllm} (read 'vllm')"),
        ({"training": {"batch_size": 3.5}}, "training.batch_size: write a whole number (read 3.5)"),
        ({"training": {"batch_size": None}}, "batch_size: it is empty; write a whole number, or leave it out."),
        ({"training": {"lr": "much"}}, "training.lr: write a number (read 'much')"),
        ({"training": {"lr": True}}, "training.lr: write a number (read true)"),
        ({"training": {"batch_size": False}}, "training.batch_size: write a whole number (read false)"),
        ({"runs": [{"loss": {"type": "sft"}, "lr": [1e-4, True]}]}, "runs.0.lr: write a number (read true)"),
        ({"training": {"lr": {"a": 1}}}, "log_uniform: [low, high]} (read {a: 1})"),
        ({"training": {"offload": 3}}, "training.offload: write true or false (read 3)"),
        ({"name": 3}, "name: write a text, in quotes: '3' (read 3)"),
        ({"rollouts": {"read": [{"type": "jsonl", "path": "x", "fields": {"gold": False}}]}},
         "fields.gold: write a text, in quotes: YAML reads yes, no, on and off as true and false (read false)"),
        ({"caveats": list(range(100))}, "caveats.7: write a text, in quotes: '7' (read 7)"),
        ({"name": {"a": ["many words"] * 9}}, "name: write a text (read {a: ['many words', 'many words', "),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_of_another_kind_is_answered_with_how_it_is_written(changes, said):
    with pytest.raises(ConfigError) as refused:
        parse_study(tiny_study(**changes))
    assert said in str(refused.value)
    assert not re.search(r"instance of|valid (tuple|dictionary)|tagged-union|constrained|\bNone\b", str(refused.value))


def test_of_a_value_that_is_none_of_several_kinds_there_is_one_sentence():
    with pytest.raises(ConfigError) as refused:
        parse_study(tiny_study(sweep={"objectives": ["a", "b"]}, training={"lora": {"target_modules": "q"}}))
    assert [line.partition(":")[0] for line in str(refused.value).split("\n- ")[1:]] == [
        "training.lora.target_modules",
        "sweep.objectives.0",
        "sweep.objectives.1",
    ]


def test_what_is_wrong_with_several_settings_shows_none_of_their_values():
    with pytest.raises(ConfigError) as refused:
        parse_study(tiny_study(training={"offload": True}))
    assert str(refused.value).endswith(
        "\n- training: offload moves what ZeRO shards; give zero_stage 1, 2 or 3 with it"
    )
