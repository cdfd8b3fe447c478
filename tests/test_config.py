import re
from pathlib import Path

import pytest
import yaml

from raygeo.analyses.registry import analyses
from raygeo.errors import ConfigError
from raygeo.evaluation.answers import AnswerSettings
from raygeo.pipeline.config import apply_override, load_study, parse_study, study_yaml
from raygeo.pipeline.written import read_yaml
from raygeo.settings import Settings

REPOSITORY = Path(__file__).parent.parent
STUDIES = REPOSITORY / "raygeo" / "studies"


def study(**changes):
    return {
        "name": "test",
        "rollouts": {"sample": {"prompts": 8}},
        "training": {"steps": 2},
        "runs": [{"loss": {"type": "sft"}}],
    } | changes


@pytest.mark.parametrize(
    "file", sorted(file for file in STUDIES.glob("*.yaml") if file.stem != "adapters"), ids=lambda f: f.name
)
def test_shipped_studies_are_valid_and_survive_a_round_trip(file):
    overrides = ["rollouts.read.0.path=x.jsonl", "student.text_from.0.path=x.jsonl"] if "gsm8k" in file.name else []
    loaded = load_study(file, overrides)
    assert parse_study(yaml.safe_load(study_yaml(loaded))) == loaded


def test_lists_are_grids_and_names_say_what_runs_are():
    runs = [{"loss": {"type": "dpo"}, "lr": [5e-5, 5e-4], "seed": [0, 1]}, {"loss": {"type": "sft"}, "lr": 1e-3}]
    specs = parse_study(study(runs=runs)).specs()
    assert [s.name for s in specs] == [
        "dpo-lr5e-05-s0", "dpo-lr5e-05-s1", "dpo-lr0.0005-s0", "dpo-lr0.0005-s1", "sft-lr0.001-s0",
    ]  # fmt: skip
    assert specs[2].training.lr == 5e-4
    assert specs[2].training.steps == 2


def test_a_run_may_replace_steps_by_epochs():
    [spec] = parse_study(study(runs=[{"loss": {"type": "sft"}, "epochs": 2}])).specs()
    assert (spec.training.steps, spec.training.epochs) == (None, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainning": {}}, "trainning: unknown key; did you mean 'training'?"),
        ({"training": {"momentum": 1}}, "training.momentum: unknown key; allowed here: "),
        ({"training": {"lr": -1}}, r"training.lr: Input should be greater than 0 \(read -1\)"),
        ({"training": {"lr": "fast"}}, r"training.lr: .*number.*\(read 'fast'\)"),
        ({"training": {"steps": 1, "epochs": 1}}, "either steps or epochs"),
        ({"training": {"zero_stage": 4}}, "training.zero_stage: .*0, 1, 2 or 3"),
        ({"runs": [{"loss": {"type": "sftt"}}]}, "runs.0.loss: .*'sft'"),
        ({"runs": [{"loss": {"type": "dpo", "betta": 1}}]}, "betta: unknown key; did you mean 'beta'?"),
        ({"runs": []}, "runs: .*at least 1"),
        ({"runs": [{"loss": {"type": "sft"}}] * 2}, "appear more than once"),
        ({"runs": [{"loss": {"type": "sft"}, "name": "base"}]}, "cannot be named 'base'"),
        ({"reference_run": "sft-lr1e-05-s1"}, "did you mean 'sft-lr1e-05-s0'"),
        ({"rollouts": {}}, "give either read"),
        ({"student": {"model": "builtin:word-problem"}}, "is not built in"),
        ({"student": {"model": "some/model"}}, "give a teacher model"),
        ({"geometry": {"hessian": {}}}, "geometry.hessian: unknown key"),
        ({"name": "a b"}, "name: "),
        (
            {"runs": [{"loss": {"type": "dpo"}}, {"loss": {"type": "dpo"}, "precision": "bf16", "name": "b"}]},
            "must share one training.precision",
        ),
        (
            {"runs": [{"loss": {"type": "dpo"}}, {"loss": {"type": "ipo"}, "attn_implementation": "eager"}]},
            "must share one training.attn_implementation",
        ),
        (
            {
                "runs": [{"loss": {"type": "dpo"}}],
                "training": {"attn_implementation": "flash_attention_2", "precision": "bf16", "gpus": 1},
            },
            "flash attention computes on GPUs; give actors.gpus: 1",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_was_read_and_what_is_allowed(change, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(") if r"\(" not in said and "(" in said else said):
        parse_study(study(**change))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("training.clip", "is now called 'max_grad_norm'"),
        ("training.eps", "is now called 'adam_epsilon'"),
        ("training.micro_batch", "is now called 'micro_batch_size'"),
        ("training.schedule", "is now called 'lr_scheduler_type'"),
        ("training.warmup", "is now called 'warmup_ratio'"),
        ("training.learning_rate", "is called 'lr' here"),
        ("training.num_train_epochs", "is called 'epochs' here"),
        ("training.max_steps", "is called 'steps' here"),
        ("training.per_device_train_batch_size", "is called 'micro_batch_size' here"),
        ("training.gradient_accumulation_steps", "follows from batch_size, micro_batch_size and workers"),
        ("training.max_seq_length", "is a setting of the data: rollouts.max_tokens"),
        ("training.lora.alpha", "is now called 'lora_alpha'"),
        ("training.lora.targets", "is now called 'target_modules'"),
        ("training.lora.rslora", "is now called 'use_rslora'"),
        ("training.lora.lora_dropout", "is not offered"),
        ("runs.0.clip", "is now called 'max_grad_norm'"),
        ("runs.0.learning_rate", "is called 'lr' here"),
        ("runs.0.lora.alpha", "is now called 'lora_alpha'"),
        ("runs.0.lora.lora_r", "is called 'r' here"),
        ("student.word_problems.training.warmup", "is now called 'warmup_steps'"),
        ("geometry.yardsticks", "is now called 'cosine_baselines'"),
        ("rollouts.max_rejected", "is now called 'max_set_aside'"),
    ],
)
@pytest.mark.parametrize("value", [3, [3, 4]])
def test_names_of_earlier_versions_and_of_other_libraries_are_refused_with_the_name_here(place, said, value):
    raw = study()
    apply_override(raw, f"{place}={value}")
    with pytest.raises(ConfigError, match=rf"- {place}: {said}"):
        parse_study(raw)


@pytest.mark.parametrize(
    ("loss", "option", "said"),
    [
        ("robust-dpo", "flip_rate", "is now called 'label_smoothing'"),
        ("simpo", "gamma", "is now called 'simpo_gamma'"),
        ("ipo", "tau", "is now called 'beta'"),
        ("dpo-nll", "rpo_alpha", "is called 'alpha' here"),
        ("grpo", "scale_by_std", "is now called 'scale_rewards'"),
        ("grpo", "clip", "is now called 'epsilon'"),
        ("off-policy-grpo", "clip_low", "is now called 'epsilon'"),
        ("off-policy-grpo", "clip_high", "is now called 'epsilon_high'"),
        ("off-policy-grpo", "scale_by_std", "is now called 'scale_rewards'"),
        ("off-policy-grpo", "delta", "is called 'dual_clip' here"),
    ],
)
def test_options_of_losses_are_refused_with_the_name_here(loss, option, said):
    with pytest.raises(ConfigError, match=rf"- runs\.0\.loss\.{loss}\.{option}: {said}"):
        parse_study(study(runs=[{"loss": {"type": loss, option: 0.1}}]))


def models(kind=Settings):
    yield kind
    for below in kind.__subclasses__():
        yield from models(below)


def test_hints_name_settings_there_are_and_none_that_there_are():
    for model in (each for each in models() if each.model_fields):
        assert set(model.renamed.values()) <= set(model.model_fields), model
        assert not (model.renamed.keys() | model.foreign.keys()) & set(model.model_fields), model
        for instead in model.foreign.values():
            assert instead in model.model_fields or " " in instead, model


def write(tmp_path, content) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_overrides_reach_into_mappings_and_lists(tmp_path):
    path = write(tmp_path, study())
    loaded = load_study(path, ["training.lr=5e-4", "runs.0.seed=[0, 1]", "runs.0.loss.type=rft"], "elsewhere")
    assert [s.name for s in loaded.specs()] == ["rft-lr0.0005-s0", "rft-lr0.0005-s1"]
    assert loaded.store == "elsewhere"


@pytest.mark.parametrize("override", ["training.lr", "runs.7.seed=1", "name.x=1", "runs.x=1", "=3", "a=[1"])
def test_a_bad_override_is_named(tmp_path, override):
    with pytest.raises(ConfigError, match="--set"):
        load_study(write(tmp_path, study()), [override])
    with pytest.raises(
        ConfigError, match=r"--set runs\[0\]\.lr=1: entries of lists are written with dots, runs\.0\.lr"
    ):
        load_study(write(tmp_path, study()), ["runs[0].lr=1"])


def test_files_that_are_no_study_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="not YAML"):
        load_study(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="not a mapping"):
        load_study(write(tmp_path, "- 1"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("name: a\nruns: []\nname: b\n", "'name' stands in line 1 and again in line 3"),
        ("name: a\ntraining:\n  lr: 1\n\n  lr: 2\n", "'lr' stands in line 3 and again in line 5"),
        ("runs:\n- {loss: {type: dpo, beta: 1, beta: 2}}\n", "'beta' stands in line 2 and again in line 2"),
        ("a: {true: 1, True: 2}\n", "True stands in line 1"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_with_both_lines(tmp_path, content, said):
    with pytest.raises(ConfigError, match=said):
        load_study(write(tmp_path, content))


def test_a_key_may_be_given_again_where_it_is_merged_from_elsewhere(tmp_path):
    merged = "deep: {inner: &b {<<: &a {steps: 1, lr: 1e-3}, lr: 1e-4}}\nshallow: {<<: *b, lr: 1e-5}\n"
    path = write(tmp_path, merged)
    with pytest.raises(ConfigError, match="deep: unknown key"):  # not: twice
        load_study(path)


def test_a_key_twice_in_an_override_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'lr' stands in line 1"):
        load_study(write(tmp_path, study()), ["training={steps: 2, lr: 1, lr: 2}"])


def test_the_reader_of_two_files_is_written_as_its_page_has_it(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "data.md").read_text(), re.DOTALL)
    [joined] = [block for block in blocks if "type: joined" in block]
    around = "name: x\nstudent: {model: org/m}\nruns: [{loss: {type: sft}}]\nrollouts:\n  read:\n"
    [reader] = load_study(write(tmp_path, around + joined)).rollouts.read
    assert (reader.type, reader.on) == ("joined", "rollout_hash")
    with pytest.raises(ConfigError, match=r"study.yaml:9: rollouts\.read\.0\.joined\.on: write a text, in quotes: '3'"):
        load_study(write(tmp_path, around + joined.replace("rollout_hash", "3")))


def test_words_that_yaml_takes_for_truth_values_are_keys_all_the_same():
    assert read_yaml("{on: on, Off: off, yes: yes, NO: no, y: y}") == {
        "on": True, "Off": False, "yes": True, "NO": False, "y": "y",
    }  # fmt: skip
    with pytest.raises(yaml.YAMLError, match="the key 'on' stands in line 1 and again in line 2"):
        read_yaml("on: 1\n'on': 2\n")


FILE = """\
name: x
rollouts:
  sample: {prompts: 8}
training:
  steps: 2

  learning_rate: 1
runs:
  - loss: {type: sft}
  - loss: {type: dpo, betta: 0.1}
    lr: much
  - {loss: {type: dppo}}
evaluation:
  engine: {type: vlm}
"""


def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path):
    path = write(tmp_path, FILE)
    with pytest.raises(ConfigError) as refused:
        load_study(path)
    header, *said = str(refused.value).split("\n- ")
    assert header == f"{path}:"
    assert {line.removeprefix(f"{path}:").partition(":")[0]: line.split(": ")[1] for line in said} == {
        "7": "training.learning_rate",
        "10": "runs.1.loss.dpo.betta",
        "11": "runs.1.lr",
        "12": "runs.2.loss",
        "14": "evaluation.engine.type",
    }


def test_what_is_missing_is_named_with_the_line_of_what_lacks_it(tmp_path):
    path = write(tmp_path, "name: x\nruns:\n- {loss: {type: sft}}\n- lr: 1\nrollouts: {sample: {}}\n")
    with pytest.raises(ConfigError, match=rf"{path}:4: runs\.1"):
        load_study(path)


HEAD = "name: x\nrollouts:\n  sample: {prompts: 8}\ntraining:\n  steps: 2\n"
SFT = "- loss: {type: sft}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("runs:\n- loss: {type: sft}\n  lr: -1\n", r"8: runs\.0\.lr: .*greater than 0 \(read -1\)"),
        ("runs:\n- loss: {type: sft}\n  lr: [1e-4, -1]\n", r"8: runs\.0\.lr: .*greater than 0 \(read -1\)"),
        ("runs:\n- loss: {type: sft}\n  lora:\n    r: -1\n", r"9: runs\.0\.lora\.r: .*or equal to 1 \(read -1\)"),
        ("runs:\n- loss: {type: sft}\n  batch_size:\n", r"8: runs\.0\.batch_size: it is empty; write a whole number"),
        ("runs:\n- loss: {type: sft}\n  attn_implementation: flash\n", r"8: runs\.0\.attn_implementation: "),
        ("runs:\n- stages:\n  - loss: {type: sft}\n  - loss: {type: dpo}\n    lr: 0\n", r"10: runs\.0\.stages\.1\.lr:"),
        ("runs:\n- stages:\n  - loss: {type: sft}\n  - loss: {type: dpo}\n    offload: true\n",
         r"10: runs\.0\.stages\.1: offload moves"),
        (f"runs:\n- loss: pointwise\n{SFT}  name: b\n  offload: true\n", r"10: runs\.1: offload moves what"),
        ("  lr: .inf\nruns: [{loss: {type: sft}}]\n", r"6: training\.lr: a number beyond 1e\+12, or none"),
        ("runs:\n- loss: {type: sft}\n  lr: [1e-3,\n    .nan]\n", r"9: runs\.0\.lr\.1: a number beyond"),
        ("runs:\n- loss: {type: sft}\n  3: 4\n", r"8: runs\.0: the key 3 is no text; put it into quotes"),
        ("  epochs: 3\nruns: [{loss: {type: sft}}]\n", r"5: training: give either steps or epochs, not both"),
        (f"runs:\n{SFT}{SFT}", r"8: runs\.1: runs \['sft-lr1e-05-s0'\] appear more than once"),
        (f"runs:\n{SFT}  name: a\n{SFT}  name: a\n", r"10: runs\.1\.name: runs \['a'\] appear more than once"),
        (f"runs:\n{SFT}  lr: [1e-4, 0.0001]\n", r"8: runs\.0\.lr: runs \['sft-lr0.0001-s0'\] appear more than once"),
        (f"  seed: [0, 0]\nruns:\n{SFT}", r"6: training\.seed: runs \['sft-lr1e-05-s0'\] appear more than once"),
        (f"runs:\n{SFT}  name: base\n", r"8: runs\.0\.name: a run cannot be named 'base'"),
        (f"runs:\n{SFT}reference_run: x\n", r"8: reference_run 'x' is not a run of the study"),
        ("runs:\n- {loss: {type: dpo}}\n- {loss: {type: ipo}, precision: bf16}\n",
         r"8: runs\.1\.precision: runs whose loss compares with the base must share one"),
        (f"runs:\n{SFT}- loss: {{type: kd-forward}}\n", r"8: runs\.1: run kd-forward-lr1e-05-s0 learns from a teacher"),
        (f"runs:\n{SFT}student:\n  cpus: 1\n  model: org/m\n", r"3: rollouts\.sample\.teacher 'builtin' goes with"),
        (f"runs:\n{SFT}student:\n  cpus: 1\n  model: builtin:x\n", r"10: student\.model: it is not built in"),
        (f"runs:\n{SFT}student:\n  cpus: 1\n  from_run: x\n", r"10: student\.from_run: .*; give both"),
        (f"runs:\n{SFT}teacher: {{}}\nstudent: {{model: org/m}}\n", r"8: teacher\.model 'builtin' goes with"),
        (f"runs:\n{SFT}evaluation:\n  benchmarks:\n  - {{name: a, problems: 4}}\n  - {{name: a, problems: 4}}\n",
         r"11: evaluation\.benchmarks\.1\.name: two benchmarks are called 'a'"),
        (f"runs:\n{SFT}evaluation:\n  benchmarks:\n  - {{name: a, problems: 4, level: harder}}\n",
         r"10: evaluation\.benchmarks\.0: level "),
        (f"runs:\n{SFT}geometry:\n  norms:\n  similarity: null\n  cosine_baselines: {{}}\n",
         r"11: geometry\.cosine_baselines is made of what geometry\.similarity finds"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together_is_named_with_the_line_to_change(tmp_path, text, said):
    path = write(tmp_path, HEAD + text)
    with pytest.raises(ConfigError, match=rf"^{path}:\n- {path}:{said}"):
        load_study(path)


def test_without_held_out_prompts_the_line_of_their_share_is_named(tmp_path):
    path = write(tmp_path, "name: x\nrollouts:\n  sample: {}\n  heldout: 0\nruns: [{loss: {type: sft}}]\n")
    with pytest.raises(ConfigError, match=rf"{path}:4: rollouts\.heldout: .*geometry\.paths.* held-out prompts"):
        load_study(path)


def test_what_is_wrong_in_an_override_is_named_with_it(tmp_path):
    path = write(tmp_path, study())
    with pytest.raises(ConfigError, match=r"- --set runs\.0\.lr=-1: runs\.0\.lr: "):
        load_study(path, ["runs.0.lr=-1"])
    with pytest.raises(ConfigError, match=r"- --set training\.epochs=3: training: give either steps or epochs"):
        load_study(path, ["training.epochs=3"])
    with pytest.raises(ConfigError, match=r"- --set rollouts\.sample\.engine\.model=3: .*\.model: write a text"):
        load_study(path, ["rollouts.sample.engine={type: endpoint}", "rollouts.sample.engine.model=3"])
    with pytest.raises(ConfigError, match=r"- --set training\.lr=much: training\.lr: "):
        load_study(path, ["training.lr=much"])
    with pytest.raises(ConfigError, match="- --store: store: "):
        load_study(path, store="~nobody-knows/x")


def test_lines_are_those_of_the_file_behind_an_entry_that_stands_for_several(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: a\nrollouts: {sample: {prompts: 8}}\nruns:\n- {loss: all, except: [dpo]}\n- {loss: {type: dpo}}\n"
        "- loss: {type: dpo}\n  lr: {log_uniform: [1e-5, 1e-3]}\n"
    )
    with pytest.raises(ConfigError, match=rf"{path}:7: runs\.2\.lr: a grid takes lists"):
        load_study(path)
    path.write_text(path.read_text().partition("- loss:")[0] + "- {loss: {type: sft}, name: x, rounds: 2}\n")
    with pytest.raises(ConfigError, match=rf"{path}:6: runs\.2: rounds learn from rollouts that the run writes"):
        load_study(path, ["rollouts.negative_share=0.5"])


SERVER = {"type": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "m"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {
                "training": {"lora": {}},
                "evaluation": {"engine": {"type": "vllm"}},
                "geometry": {"compressibility": {"accuracy_problems": 4}},
            },
            r"geometry\.compressibility\.accuracy_problems: .* the engine vllm is given adapters only",
        ),
        (
            {"rollouts": {"sample": {"engine": SERVER, "decoding": {"temperature": 0.7, "top_logprobs": 4}}}},
            r"rollouts\.sample\.decoding\.temperature: a server's log-probabilities are those at temperature 1",
        ),
        (
            {"rollouts": {"sample": {"decoding": {"samples": 1}}}, "runs": [{"loss": {"type": "dpo"}}]},
            r"runs\.0: the loss learns nothing .* set rollouts\.sample\.decoding\.samples to 2 or more",
        ),
        (
            {"runs": [{"loss": "pointwise"}, {"loss": {"type": "ipo"}, "rounds": 2, "sampling": {"samples": 1}}]},
            r"runs\.1: the loss learns nothing .* set runs\.1\.sampling\.samples to 2 or more",
        ),
        ({"runs": [{"loss": {"type": "s3ft"}}]}, r"runs\.0: the loss learns nothing .* source is 'teacher'"),
        (
            {
                "rollouts": {"sample": {"decoding": {"temperature": 0}}},
                "runs": [{"loss": {"type": "off-policy-grpo"}}],
            },
            r"runs\.0: the loss learns from the log-probabilities .* greedy decoding has none",
        ),
        (
            {"rollouts": {"sample": {"engine": SERVER}}, "runs": [{"loss": {"type": "off-policy-grpo"}}]},
            r"runs\.0: the loss learns from the log-probabilities .* engine\.logprobs to true",
        ),
    ],
)
def test_what_will_be_sampled_or_asked_in_vain_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(study(**change))


@pytest.mark.parametrize(
    "change",
    [
        {
            "training": {"lora": {}},
            "evaluation": {"engine": {"type": "vllm"}},
            "geometry": {"compressibility": {}, "soups": {"accuracy_problems": 4}},
        },
        {"rollouts": {"sample": {"engine": SERVER, "decoding": {"temperature": 0, "top_logprobs": 4}}}},
        {"runs": [{"loss": {"type": "s3ft"}, "rounds": 2}, {"loss": "all", "rounds": 2}]},
        {"rollouts": {"sample": {"teacher": "student"}}, "runs": [{"loss": {"type": "s3ft"}}]},
        {"runs": [{"loss": {"type": "off-policy-grpo"}}]},
        {
            "rollouts": {"sample": {"engine": SERVER | {"logprobs": True}}},
            "runs": [{"loss": {"type": "off-policy-grpo"}}],
        },
    ],
)
def test_what_is_not_in_vain_is_let_through(change):
    parse_study(study(**change))


def test_merged_keys_have_the_line_they_are_merged_into(tmp_path):
    path = write(tmp_path, "name: x\nrollouts: {sample: {}}\nruns:\n- {loss: {type: sft}}\ntraining:\n  <<: {lr: no}\n")
    with pytest.raises(ConfigError, match=rf"{path}:5: training\.lr"):
        load_study(path)


def test_a_study_may_be_given_as_plain_data_by_name_or_as_itself(tmp_path, monkeypatch):
    known = load_study(study(), ["training.lr=5e-4"], "elsewhere")
    assert (known.store, known.specs()[0].training.lr) == ("elsewhere", 5e-4)
    assert load_study(known) == known
    assert load_study(known, ["name=other"]).name == "other"
    monkeypatch.chdir(tmp_path)
    assert load_study("quickstart").name == "quickstart"
    (tmp_path / "quickstart").write_text(yaml.safe_dump(study(name="mine")))
    assert load_study("quickstart").name == "mine", "a file comes before a shipped study"
    with pytest.raises(ConfigError, match="'quickstrat' cannot be read: No such file or directory; did you mean the"):
        load_study("quickstrat")


def test_benchmarks_of_one_name_are_refused():
    def evaluation(*names, **more):
        return parse_study(study(evaluation={"benchmarks": [{"name": n, "problems": 4} for n in names], **more}))

    evaluation("a", "b")
    evaluation("heldout", heldout=False)
    with pytest.raises(ConfigError, match="two benchmarks are called 'a'; give"):
        evaluation("a", "b", "a")
    with pytest.raises(ConfigError, match=r"'heldout'; .* the study's own held-out prompts"):
        evaluation("heldout")


def test_analyses_ask_for_answers_as_long_as_the_evaluations_unless_they_say_otherwise():
    """Accuracy along paths would else be cut off where the evaluation's is not."""
    geometry = {"soups": {"max_new_tokens": 7}, "diversity": {}}
    found = parse_study(study(evaluation={"answers": {"max_new_tokens": 40}}, geometry=geometry))
    asked = found.geometry.asked().items()
    lengths = {name: each.max_new_tokens for name, each in asked if hasattr(each, "max_new_tokens")}
    assert lengths == {"paths": 40, "soups": 7, "wise": 40, "diversity": 40}
    assert parse_study(yaml.safe_load(study_yaml(found))) == found
    assert parse_study(study()).geometry.paths.max_new_tokens == AnswerSettings().max_new_tokens


def test_held_out_analyses_need_held_out_prompts():
    needing = {
        name for name, analysis in analyses(own=()).items() if analysis.default and "solutions" in analysis.needs
    }
    with pytest.raises(ConfigError, match=r"held-out prompts; give rollouts\.heldout") as refused:
        parse_study(study(rollouts={"sample": {"prompts": 8}, "heldout": 0}))
    assert needing == set(re.findall(r"geometry\.(\w+)", str(refused.value)))
    parse_study(study(rollouts={"sample": {"prompts": 8}, "heldout": 0}, geometry=dict.fromkeys(needing)))


@pytest.mark.parametrize("sweep", [{"samples": 4}, {"seed": 1}])
def test_draws_are_refused_where_every_listed_value_is_trained(sweep):
    runs = [{"loss": {"type": "sft"}, "lr": [1e-5, 1e-4]}]
    with pytest.raises(ConfigError, match=rf"sweep\.{next(iter(sweep))}: a grid .* set sweep\.search to random"):
        parse_study(study(runs=runs, sweep=sweep))
    assert parse_study(study(runs=runs, sweep=sweep | {"search": "random"}))
    plain = parse_study(study(runs=runs, sweep={"search": "grid"}))
    assert parse_study(plain.model_dump(mode="json")) == plain


def test_the_key_of_a_run_follows_its_settings_not_its_name():
    keys = []
    for run in ({}, {"name": "other"}, {"log_every": 3}, {"lr": 2e-5}, {"cpus": 2}):
        [spec] = parse_study(study(runs=[{"loss": {"type": "sft"}} | run])).specs()
        keys.append(spec.key("student", "rollouts"))
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[0], keys[3], keys[4]}) == 3


TAUGHT = {"name": "x", "runs": [{"loss": {"type": "kd-forward"}}]}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"rollouts": {"sample": {}}}, "learns from a teacher's next-token.*rollouts.sample.decoding.top_logprobs"),
        ({"rollouts": {"read": [{"type": "jsonl", "path": "x"}]}}, "say which fields are top_ids and top_logprobs"),
        (
            {"student": {"model": "org/m"}, "rollouts": {"read": [{"type": "jsonl", "path": "x"}]}, "teacher": {}},
            "teacher.model 'builtin' goes with builtin:word-problems",
        ),
    ],
)
def test_losses_on_a_teacher_are_refused_where_there_is_none(raw, said):
    with pytest.raises(ConfigError, match=said):
        parse_study(TAUGHT | raw)


@pytest.mark.parametrize(
    "raw",
    [
        {"rollouts": {"sample": {"decoding": {"top_logprobs": 4}}}},
        {"rollouts": {"read": [{"type": "jsonl", "path": "x", "fields": {"top_ids": "a", "top_logprobs": "b"}}]}},
        {"rollouts": {"sample": {}}, "teacher": {}},
    ],
)
def test_a_teacher_matters_to_the_keys_of_the_losses_that_learn_from_one(raw):
    study = parse_study(TAUGHT | raw | {"runs": [{"loss": {"type": "kd-forward"}}, {"loss": {"type": "sft"}}]})
    taught, alone = ([spec.key("s", "r", teacher) for teacher in (None, "t", "u")] for spec in study.specs())
    assert len(set(taught)) == 3
    assert len(set(alone)) == 1
