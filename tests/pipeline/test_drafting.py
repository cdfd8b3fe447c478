"""A study that is drafted from rollouts and a model is one that can be planned, with losses that can learn."""

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chat_cases import save_tiny_chat
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import ConfigError, DataError, StudentError
from raygeo.losses.registry import LOSSES
from raygeo.losses.selection import Group
from raygeo.pipeline.config import load_study
from raygeo.pipeline.drafting import draft_study
from raygeo.pipeline.written import read_yaml

NUMBERS = range(12)
DATA = {
    "mixed": [
        {"prompt": f"{n} + {n}", "gold": str(2 * n), "completion": f"#### {2 * n + wrong}"}
        for n in NUMBERS for wrong in (0, 1)
    ],
    "right": [{"prompt": f"{n} + {n}", "correct": True, "completion": f"#### {2 * n}"} for n in NUMBERS],
    "unmixed": [{"prompt": f"{n} + {n}", "correct": n % 2 == 0, "completion": f"#### {2 * n}"} for n in NUMBERS],
    "pairs": [{"prompt": f"{n} + {n}", "chosen": f"#### {2 * n}", "rejected": "so it is 1"} for n in NUMBERS],
    "wrong": [{"prompt": f"{n} + {n}", "correct": False, "completion": "#### 1"} for n in NUMBERS],
    "few": [{"prompt": "1 + 1", "correct": True, "completion": "#### 2"}],
    "other": [{"a": 1, "b": 2}],
    "gsm8k": [{"question": "1 + 1?", "answer": "#### 2"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    for name, rows in DATA.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny_chat(folder / "student", texts=[("1 + 1", "#### 2")])
    return folder


@pytest.mark.parametrize(
    ("name", "losses", "graded"),
    [
        ("mixed", ["sft", "rft", "dft", "rift", "grpo", "dpo"], True),
        ("pairs", ["sft", "rft", "dft", "rift", "grpo", "dpo"], False),
        ("unmixed", ["sft", "rft", "dft", "rift"], False),
        ("right", ["sft", "dft"], False),
    ],
)
def test_the_losses_are_those_that_the_rollouts_allow(folder, tmp_path, name, losses, graded):
    out = tmp_path / "study.yaml"
    said = draft_study(str(folder / f"{name}.jsonl"), str(folder / "student"), out)
    study = load_study(out)
    assert [entry.losses[0].type for entry in study.runs] == losses
    assert sum(line.startswith("left out") for line in said) == 6 - len(losses)
    assert study.evaluation.heldout == graded
    assert study.student.model == str(folder / "student")
    assert [reader.path for reader in study.rollouts.read] == [str(folder / f"{name}.jsonl")]


def test_an_editor_finds_the_schema_and_nothing_wrong(folder, tmp_path):
    out = tmp_path / "study.yaml"
    draft_study(str(folder / "mixed.jsonl"), str(folder / "student"), out)
    first, _ = out.read_text().split("\n", 1)
    schema = Path(unquote(urlsplit(first.removeprefix("# yaml-language-server: $schema=")).path))
    assert [*Draft202012Validator(json.loads(schema.read_text())).iter_errors(read_yaml(out.read_text()))] == []


def test_lengths_hold_the_longest_rollout(folder, tmp_path):
    long = [row | {"completion": "1 + 1 " * 40 + row["completion"]} for row in DATA["mixed"]]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    found = []
    for path in (folder / "mixed.jsonl", tmp_path / "long.jsonl"):
        draft_study(str(path), str(folder / "student"), tmp_path / f"{path.stem}.yaml")
        study = load_study(tmp_path / f"{path.stem}.yaml")
        found.append((study.rollouts.max_tokens, study.evaluation.answers.max_new_tokens))
    assert found[1][0] > found[0][0] >= found[0][1]
    assert found[1][1] > found[0][1]


def test_settings_of_the_reader_are_written_down(folder, tmp_path):
    rows = [{"prompt": row["prompt"], "good": row["correct"], "completion": row["completion"]} for row in DATA["right"]]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ["fields.correct=good", "chat.system=Add."]
    draft_study(str(tmp_path / "named.jsonl"), str(folder / "student"), tmp_path / "study.yaml", overrides=how)
    study = load_study(tmp_path / "study.yaml")
    assert study.rollouts.read[0].fields.correct == "good"
    assert study.student.chat.system == "Add."


def test_where_there_are_gpus_they_are_asked_for(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    draft_study(str(folder / "mixed.jsonl"), str(folder / "student"), tmp_path / "study.yaml")
    study = load_study(tmp_path / "study.yaml")
    assert {(spec.training.gpus, spec.training.precision) for spec in study.specs()} == {(1, "bf16")}
    assert study.actors.gpus == 1


def test_more_rows_of_no_use_than_a_study_allows_unasked_are_allowed_and_said(folder, tmp_path):
    bad = [{"prompt": "1 + 1", "gold": "2", "completion": ""}] * 6
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*DATA["mixed"], *bad]))
    said = draft_study(str(tmp_path / "bad.jsonl"), str(folder / "student"), tmp_path / "study.yaml")
    assert "set aside: 6 x empty completion" in said
    study = load_study(tmp_path / "study.yaml")
    assert 6 / 30 < study.rollouts.max_set_aside <= 0.3
    assert "set: of those that were read, 6 x empty completion" in (tmp_path / "study.yaml").read_text()
    draft_study(str(folder / "mixed.jsonl"), str(folder / "student"), tmp_path / "good.yaml")
    assert "max_set_aside" not in (tmp_path / "good.yaml").read_text()


def test_grpo_is_left_out_for_what_it_would_learn(folder, tmp_path):
    """With its default bias the advantages of equal rewards are all 0.1."""
    said = draft_study(str(folder / "unmixed.jsonl"), str(folder / "student"), tmp_path / "study.yaml")
    (grpo,) = [line for line in said if line.startswith("left out: grpo")]
    assert "its bias alone" in grpo
    loss = LOSSES["grpo"]()
    assert loss.row_weights(Group((0, 1), (True, True), (None, None))) == [loss.bias] * 2 != [0.0] * 2


@pytest.mark.parametrize(
    ("data", "model", "error", "said"),
    [
        ("wrong.jsonl", "student", DataError, "none of 12 rollouts is right"),
        ("few.jsonl", "student", DataError, "1 prompts are too few"),
        ("other.jsonl", "student", DataError, r"prompt.*say which holds what"),
        ("gsm8k.jsonl", "student", DataError, "set type: gsm8k"),
        ("none.jsonl", "student", DataError, "none.jsonl"),
        ("mixed.jsonl", "nobody", StudentError, "neither a folder nor a hub id"),
        ("study.yaml", "student", ConfigError, "is a study"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(folder, tmp_path, data, model, error, said):
    with pytest.raises(error, match=said):
        draft_study(str(folder / data), str(folder / model), tmp_path / "study.yaml")
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_that_is_there_is_kept(folder, tmp_path):
    (tmp_path / "study.yaml").write_text("mine")
    done = CliRunner().invoke(
        app, ["init", str(folder / "mixed.jsonl"), str(folder / "student"), "--out", str(tmp_path / "study.yaml")]
    )
    assert isinstance(done.exception, ConfigError)
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(folder, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        draft_study("none.jsonl", "nobody", tmp_path / "none" / "study.yaml")
    with pytest.raises(ConfigError, match="it is a folder"):
        draft_study("none.jsonl", "nobody", tmp_path)


@pytest.mark.slow
def test_the_command_says_what_it_wrote_and_a_plan_can_be_made_of_it(folder, tmp_path):
    out = str(tmp_path / "study.yaml")
    done = CliRunner().invoke(app, ["init", str(folder / "mixed.jsonl"), str(folder / "student"), "--out", out])
    assert done.exception is None
    assert "6 losses" in done.output
    planned = CliRunner().invoke(app, ["plan", out, "--device", "h100", "--store", str(tmp_path / "store")])
    assert planned.exit_code == 0, planned.output
