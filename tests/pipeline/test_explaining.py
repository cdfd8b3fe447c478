"""What whoever writes a name of another library, of another place, or a misspelt one is told."""

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
        ({"learning_rate": 1e-4}, "learning_rate: is no setting here; it is training.lr or runs.lr"),
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
        ({"evaluation": {"engine": {"type": "sglang"}}}, "there is no 'sglang'; it is one of 'local', "),
        ({"evaluation": {"engine": {}}}, "evaluation.engine: it has no type; give one of local, "),
        ({"runs": [{"loss": {"beta": 0.1}}]}, "runs.0.loss: it has no type; give one of sft, rft, "),
        ({"runs": [{"loss": {"type": "sft", "beta": 0.1}}]}, "runs.0.loss.sft.beta: unknown key; allowed here: "),
        ({"rollouts": {"sample": {"n": 4}}}, "sample.n: is no setting here; it is rollouts.sample.decoding.samples."),
        ({"quite_unknown": 1}, "quite_unknown: unknown key; allowed here: actors, "),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_is_none_of_ours_is_answered_with_ours(changes, said):
    with pytest.raises(ConfigError) as refused:
        parse_study(tiny_study(**changes))
    assert said in str(refused.value)
