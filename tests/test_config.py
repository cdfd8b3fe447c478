from pathlib import Path

import pytest
import yaml

from raygeo.config import load_study, parse_study, study_yaml
from raygeo.errors import ConfigError

STUDIES = Path(__file__).parent.parent / "jobs" / "studies"


def study(**changes):
    return {
        "name": "test",
        "rollouts": {"sample": {"prompts": 8}},
        "training": {"steps": 2},
        "runs": [{"loss": {"type": "sft"}}],
    } | changes


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda f: f.name)
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
        ({"training": {"learning_rate": 1}}, "training.learning_rate: unknown key; allowed here: "),
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
        ({"student": {"model": "some/model"}}, "name a teacher model"),
        ({"geometry": {"hessian": {}}}, "geometry.hessian: unknown key"),
        ({"name": "a b"}, "name: "),
        (
            {"runs": [{"loss": {"type": "dpo"}}, {"loss": {"type": "dpo"}, "precision": "bf16", "name": "b"}]},
            "must share one training.precision",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_was_read_and_what_is_allowed(change, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(") if r"\(" not in said and "(" in said else said):
        parse_study(study(**change))


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


def test_files_that_are_no_study_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="not YAML"):
        load_study(write(tmp_path, "a: [1"))
    with pytest.raises(ConfigError, match="not a mapping"):
        load_study(write(tmp_path, "- 1"))


def test_held_out_analyses_need_held_out_prompts():
    with pytest.raises(ConfigError, match="geometry\\.paths is measured on held-out prompts"):
        parse_study(study(rollouts={"sample": {"prompts": 8}, "heldout": 0}))


def test_the_key_of_a_run_follows_its_settings_not_its_name():
    keys = []
    for run in ({}, {"name": "other"}, {"log_every": 3}, {"lr": 2e-5}, {"cpus": 2}):
        [spec] = parse_study(study(runs=[{"loss": {"type": "sft"}} | run])).specs()
        keys.append(spec.key("student", "rollouts"))
    assert keys[0] == keys[1] == keys[2]
    assert len({keys[0], keys[3], keys[4]}) == 3
