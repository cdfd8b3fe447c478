"""The JSON schema of a study file accepts what the study's own models accept, and refuses what they refuse by shape."""

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from study_cases import tiny_study

from raygeo.errors import ConfigError
from raygeo.losses.registry import LOSSES
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.schema import study_schema
from raygeo.pipeline.written import read_yaml

STUDIES = Path(__file__).parents[2] / "raygeo" / "studies"
SHIPPED = sorted(file for file in STUDIES.glob("*.yaml") if file.stem != "adapters")
RANDOM = {"search": "random"}


@pytest.fixture(scope="module")
def validator():
    schema = study_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def places(validator, raw):
    return [".".join(map(str, error.absolute_path)) for error in validator.iter_errors(raw)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_valid_and_name_the_schema_beside_them(validator, path):
    text = path.read_text()
    assert places(validator, read_yaml(text)) == []
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


def test_the_schema_beside_the_shipped_studies_is_current():
    shipped = json.loads((STUDIES / "schema.json").read_text())
    assert shipped == study_schema(), "raygeo schema --out raygeo/studies/schema.json"


RIGHT = {
    "lists": tiny_study(runs=[{"loss": {"type": "dpo", "beta": [0.1, 0.3]}, "lr": [1e-4, 1e-3], "seed": [0, 1]}]),
    "whole settings": tiny_study(runs=[{"loss": {"type": "sft"}, "lora": [None, {"r": 4}]}]),
    "within some": tiny_study(runs=[{"loss": {"type": "sft"}, "lora": {"r": [2, 4], "target_modules": ["q_proj"]}}]),
    "defaults": tiny_study(training={"steps": 4, "batch_size": [4, 8], "betas": [0.9, 0.95]}),
    "ranges": tiny_study(runs=[{"loss": {"type": "sft"}, "lr": {"log_uniform": [1e-5, 1e-3]}}], sweep=RANDOM),
    "ranges of losses": tiny_study(runs=[{"loss": {"type": "dpo", "beta": {"uniform": [0.1, 1]}}}], sweep=RANDOM),
    "groups": tiny_study(runs=[{"loss": "pairwise", "except": ["ipo"]}]),
    "stages": tiny_study(runs=[{"stages": [{"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}, "lr": 1e-5}]}]),
    "no scheduler": tiny_study(sweep={"scheduler": "none"}),
    "a benchmark by name": tiny_study(evaluation={"benchmarks": [{"name": "g", "problems": "openai/gsm8k"}]}),
    "an analysis off": tiny_study(geometry={"cka": None, "layer_cka": None}),
}  # fmt: skip
WRONG = {
    "an unknown key": (tiny_study(runns=[]), ""),
    "no runs": (tiny_study(runs=[]), "runs"),
    "an unknown loss": (tiny_study(runs=[{"loss": {"type": "sftt"}}]), "runs.0.loss"),
    "an unknown group": (tiny_study(runs=[{"loss": "every"}]), "runs.0.loss"),
    "except without a group": (tiny_study(runs=[{"loss": {"type": "sft"}, "except": ["dpo"]}]), "runs.0.loss"),
    "neither loss nor stages": (tiny_study(runs=[{"lr": 1e-4}]), "runs.0"),
    "an option of another loss": (tiny_study(runs=[{"loss": {"type": "sft", "beta": 0.1}}]), "runs.0.loss"),
    "a bound": (tiny_study(training={"steps": 4, "lr": -1.0}), "training.lr"),
    "a bound of an entry": (tiny_study(runs=[{"loss": {"type": "sft"}, "batch_size": 0}]), "runs.0.batch_size"),
    "a bound in a list": (tiny_study(training={"steps": 4, "lr": [1e-4, 0.0]}), "training.lr"),
    "a range of text": (tiny_study(training={"lr_scheduler_type": {"uniform": [0, 1]}}), "training.lr_scheduler_type"),
    "a range of one end": (tiny_study(training={"lr": {"uniform": [0.1]}}, sweep=RANDOM), "training.lr"),
    "a list of names": (tiny_study(runs=[{"loss": {"type": "sft"}, "name": ["a", "b"]}]), "runs.0.name"),
    "a list where nothing varies": (tiny_study(probes={"sequences": [8, 16]}), "probes.sequences"),
    "a list in a stage": (
        tiny_study(runs=[{"stages": [{"loss": {"type": "sft"}, "lr": [1e-4, 1e-3]}, {"loss": {"type": "dpo"}}]}]),
        "runs.0.stages.0.lr",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_what_a_study_may_say_is_valid(validator, what):
    parse_study(copy.deepcopy(RIGHT[what]))
    assert places(validator, RIGHT[what]) == []


@pytest.mark.parametrize("what", WRONG)
def test_what_a_study_refuses_by_shape_is_refused_at_its_place(validator, what):
    raw, place = WRONG[what]
    with pytest.raises(ConfigError):
        parse_study(copy.deepcopy(raw))
    assert places(validator, raw) == [place]


def test_every_loss_is_offered_with_its_options(validator):
    for name, loss in LOSSES.items():
        plain = loss().model_dump(mode="json")
        assert places(validator, tiny_study(runs=[{"loss": plain}])) == [], name
