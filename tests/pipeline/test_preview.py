"""What ``raygeo data`` shows of rollouts, without Ray."""

import io
import json

import pytest
import yaml
from chat_cases import save_tiny_chat
from rich.console import Console
from study_cases import tiny_study
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import ConfigError, DataError, StudentError
from raygeo.pipeline.preview import preview

LISTS = [
    {"problem": f"{n} + {n}", "answer": str(2 * n), "generations": [f"#### {2 * n}", "<think>\n</think>\n#### 1", "so"],
     "correctness_math_verify": [True, None, None], "finish_reasons": ["stop", "stop", "length"]}
    for n in range(4)
]  # fmt: skip
PAIRS = [{"prompt": [{"role": "user", "content": "1 + 1"}], "chosen": "2", "rejected": "3"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LISTS) + "{\n")
    (folder / "pairs.jsonl").write_text(json.dumps(PAIRS[0]))
    save_tiny_chat(folder / "student", texts=[("1 + 1", "#### 2")])
    return folder


def shown(*paths, **how):
    out = io.StringIO()
    preview([str(path) for path in paths], console=Console(file=out, width=200), **how)
    return out.getvalue()


def counted(text):
    """The counts by name."""
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line[:9].strip().isdigit()]
    return {name: int(value) for value, name in rows}


def test_shape_fields_a_row_counts_and_reasons(folder):
    text = shown(folder / "lists.jsonl")
    assert "jsonl, lists: prompt 'problem', completion 'generations', gold 'answer', correct 'correctness_math" in text
    assert "prompt: 0 + 0\ncompletion: #### 0\n" in text
    found = counted(text)
    expected = {"rows": 12, "prompts": 4, "correct": 4, "wrong": 8, "truncated": 4, "mixed prompts": 4, "set aside": 1}
    assert expected.items() <= found.items()
    assert found["set aside: not JSON"] == 1
    assert found["grading: no answer marker"] == 4
    assert "lists.jsonl:5 not JSON" in text
    assert "completions have 2 to 23 characters" in text
    assert "heldout" not in text


def test_tokens_as_a_model_reads_them_with_those_that_losses_see(folder):
    student = str(folder / "student")
    text = shown(folder / "lists.jsonl", model=student, overrides=["chat.system=Count."])
    shown_tokens = text.split("):\n")[2].partition("\n\nWhat a study")[0].replace("|", "")
    assert shown_tokens == (
        "<bos><im_start>system\nCount.<im_end>\n<im_start>user\n0 + 0<im_end>\n<im_start>assistant\n\n#### 0<im_end>"
    )
    plain = shown(folder / "lists.jsonl", model=student, overrides=["chat.template=plain"])
    assert "(plain)" in plain
    assert "given pairs" not in plain
    assert counted(shown(folder / "pairs.jsonl", model=student))["given pairs"] == 1
    with pytest.raises(StudentError, match="set to plain"):
        shown(folder / "lists.jsonl", model=student, overrides=["chat.template=plain", "chat.system=x"])


def test_rows_and_settings_of_the_reader(folder):
    text = shown(folder / "lists.jsonl", rows=1, overrides=["template='{prompt} ='"])
    assert "prompt: 0 + 0 =" in text
    assert counted(text)["rows"] == 3
    assert "Of the first 1 records" in text
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        shown(folder / "lists.jsonl", overrides=["fields.promt=x"])
    with pytest.raises(DataError, match="no file"):
        shown(folder / "none.jsonl")


def test_files_whose_names_say_nothing_or_something_else(folder, tmp_path, monkeypatch):
    for name in ("lists.text", "lists.zip", "lists.xlsx"):
        (tmp_path / name).write_bytes((folder / "lists.jsonl").read_bytes())
    with pytest.raises(DataError, match=r"kind of the file is not known.*--set type=jsonl"):
        shown(tmp_path / "lists.text")
    assert (
        shown(tmp_path / "lists.text", overrides=["type=jsonl"]).splitlines()[1:]
        == (shown(folder / "lists.jsonl").replace(f"{folder}/lists.jsonl", f"{tmp_path}/lists.text").splitlines()[1:])
    )
    with pytest.raises(DataError, match="unpack it"):
        shown(tmp_path / "lists.zip")
    with pytest.raises(DataError, match="save it as CSV"):
        shown(tmp_path / "lists.xlsx")
    with pytest.raises(DataError, match=r"lists\.jsonl \(jsonl\), .*a\.parquet \(parquet\): files of different kinds"):
        shown(folder / "lists.jsonl", tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(DataError, match="there is no file or folder"):
        shown(f"{tmp_path.name}/nothing")


def test_files_of_several_paths_are_one_reader(folder, tmp_path):
    (tmp_path / "more.jsonl").write_text(json.dumps(LISTS[0] | {"problem": "9 + 9", "answer": "18"}))
    assert counted(shown(folder / "lists.jsonl", tmp_path / "more.jsonl"))["rows"] == 15


def test_a_study_file_shows_all_that_it_reads(folder):
    read = [{"type": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in ("lists", "pairs")]
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(tiny_study(rollouts={"read": read})))
    done = CliRunner().invoke(app, ["data", str(study), "--model", str(folder / "student")])
    assert done.exit_code == 0, done.output
    assert "jsonl, lists" in done.output
    assert "jsonl, preference" in done.output
    study.write_text(yaml.safe_dump(tiny_study()))
    with pytest.raises(DataError, match="samples its rollouts"):
        shown(study)


def test_a_row_that_is_of_use_is_shown_and_what_would_end_a_study_is_said(tmp_path):
    rows = [{"prompt": 5, "completion": "a", "correct": True}] + [
        {"prompt": "p", "completion": "a", "correct": True}
    ] * 9
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = shown(tmp_path / "a.jsonl")
    assert "The first rollout (line 2" in text
    assert "A study ends where more than 5.0 % of its rows are set aside" in text
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    assert "A study ends" not in shown(tmp_path / "a.jsonl")
