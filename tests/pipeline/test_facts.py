"""What a plan is told of a student, of data and of devices, and what of that is refused."""

import json

import pytest
from study_cases import tiny_study
from tiny import TINY, save_tiny_student

from raygeo.errors import ConfigError, StudentError
from raygeo.footprint.devices import find_device
from raygeo.pipeline.budget.cluster import cluster_at_hand
from raygeo.pipeline.budget.facts import find_facts, student_config
from raygeo.pipeline.config import parse_study


def study(**changes):
    return parse_study(tiny_study(**changes))


def test_shapes_stand_for_those_of_the_student(tmp_path):
    folder = save_tiny_student(tmp_path / "model", context=77)
    for shapes in (folder, folder / "config.json"):
        config = student_config(study(), str(shapes))
        assert (config.max_position_embeddings, config.hidden_size) == (77, TINY.hidden)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ("no-such-model", "neither a file or folder here nor a hub id"),
        ("nobody/nothing", "no usable config.json"),  # tests are without the hub
        ("list.json", "names no model_type"),
        ("text.json", "no usable config.json"),
    ],
)
def test_shapes_that_are_none_are_named(tmp_path, monkeypatch, shapes, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps([1]))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(StudentError, match=rf"--shapes '{shapes}': .*{said}"):
        student_config(study(), shapes)


def test_a_student_that_is_not_there_is_named_with_what_plans_without_it():
    with pytest.raises(StudentError, match=r"student 'no-such-model': .* Correct student\.model; `raygeo plan` can do"):
        student_config(study(student={"model": "no-such-model"}, rollouts={"read": [{"type": "jsonl", "path": "x"}]}))


@pytest.mark.parametrize("rows", ["-1", "0", "1.5", "nan", "inf", "1e30"])
def test_rows_that_cannot_be_are_refused(rows):
    with pytest.raises(ConfigError, match="rows are a whole number from 1"):
        find_facts(study(), data=f"{rows}:5:20")


@pytest.mark.parametrize("tokens", ["-1:20", "0:20", "5:0", "5:nan", "inf:5", "5:1e30"])
def test_tokens_that_cannot_be_are_refused(tokens):
    with pytest.raises(ConfigError, match="mean tokens are numbers above 0"):
        find_facts(study(), data=f"100:{tokens}")


def test_rows_that_are_longer_than_they_may_be_are_refused():
    short = tiny_study()["rollouts"] | {"max_tokens": 30}
    assert find_facts(study(rollouts=short), data="100:10:20").rollouts.mean == 30
    with pytest.raises(ConfigError, match="rows of 31 tokens on average are longer than the 30"):
        find_facts(study(rollouts=short), data="100:10:21")


def test_gpus_without_effect_are_refused():
    asking = study(actors={"gpus": 1})
    assert cluster_at_hand(asking, "h100", 3).gpus == 3
    for gpus in (0, -2):
        with pytest.raises(ConfigError, match="give 1 or more"):
            cluster_at_hand(asking, "h100", gpus)
    with pytest.raises(ConfigError, match="--device cpu has none"):
        cluster_at_hand(asking, "cpu", 2)
    for device in (None, "h100"):
        with pytest.raises(ConfigError, match="no stage of the study asks for GPUs"):
            cluster_at_hand(study(), device, 2)


@pytest.mark.parametrize("device", ["e:e", "0:0", "1e14:0", "1e999:1", "1e14:1:1", "nan:1"])
def test_speeds_and_memory_that_no_device_has_are_refused(device):
    with pytest.raises(ConfigError, match="neither a device's name nor FLOPS:GB"):
        find_device(device, 0, 1)
