import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import raygeo
from raygeo.analyses.registry import analyses
from raygeo.cli import app
from raygeo.errors import ConfigError
from raygeo.losses import RIFT
from raygeo.losses.registry import LOSSES


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_command():
    text = run("--help").output
    assert all(command in text for command in ("run", "losses", "report", "ui", "doctor"))


def test_the_version_is_one_line():
    done = run("--version")
    assert done.exit_code == 0
    assert done.output == f"raygeo {version('raygeo')}\n"


def test_the_schema_is_written_where_it_is_asked_for(tmp_path):
    assert run("schema", "--out", str(tmp_path / "schema.json")).exit_code == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(run("schema").output)


WRITING = [("schema", "--out"), ("losses", "--page"), ("analyses", "--page"), ("init", "data", "model", "--out")]


@pytest.mark.parametrize("command", WRITING, ids=lambda command: command[0])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing/x", "there is no folder"),
        ("file/x", "there is no folder"),
        ("folder", "it is a folder"),
        ("~no-such-user/x", "home"),
        ("/proc/self/x/y", "cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_before_there_is_work(command, place, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    refused = run(*command, place).exception
    assert isinstance(refused, ConfigError)
    assert place in str(refused)
    assert said in str(refused)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_that_goes_wrong_as_it_is_written_is_named():
    refused = run("losses", "--page", "/dev/full").exception
    assert isinstance(refused, ConfigError)
    assert str(refused) == "/dev/full cannot be written: No space left on device; name another place."


def test_losses_lists_every_loss_with_its_formula(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    lines = run("losses").output.splitlines()
    for name, loss in LOSSES.items():
        assert any(line.split()[:1] == [name] and loss.formula in line for line in lines)


def test_losses_prints_one_in_full(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    text = run("losses", "rift").output
    assert all(said in text for said in (RIFT.formula, RIFT.paper, "their product pi", "needs: nothing but graded"))
    for name, field in RIFT.model_fields.items():
        assert name == "type" or any(
            line.split()[:1] == [name] and str(field.default) in line for line in text.splitlines()
        )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dop", "did you mean 'dpo'"),
        ("SFT", "did you mean 'sft'"),
        ("kd", "did you mean 'kd-forward'"),
        ("zzz", "the types are sft, rft"),
    ],
)
def test_losses_refuses_what_is_none(name, said):
    result = run("losses", name)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)


@pytest.mark.parametrize("command", ["losses", "analyses"])
@pytest.mark.parametrize("other", ["sft", "nonsense", "--json"])
def test_a_page_of_all_is_asked_for_alone(command, other, tmp_path):
    done = run(command, other, "--page", str(tmp_path / "page.md"))
    assert done.exit_code == 2
    assert "give --page alone" in done.output
    assert not (tmp_path / "page.md").exists()


def test_an_analysis_is_meant_in_whatever_case():
    assert "did you mean 'cka'?" in str(run("analyses", "CKA").exception)


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_ui_refuses_what_is_no_port(port, tmp_path):
    done = run("ui", str(tmp_path), "--port", port)
    assert done.exit_code == 2
    assert "--port" in done.output


def test_losses_and_analyses_as_json_have_every_one_with_its_options():
    losses = json.loads(run("losses", "--json").output)
    assert [loss["type"] for loss in losses] == [*LOSSES]
    one = json.loads(run("losses", "rift", "--json").output)
    assert one in losses
    assert {option["name"] for option in one["options"]} == set(RIFT.model_fields) - {"type"}
    found = json.loads(run("analyses", "--json").output)
    assert [each["name"] for each in found] == [*analyses()]
    curvature = json.loads(run("analyses", "curvature", "--json").output)
    assert "value" in curvature["tables"]["curvature"]["columns"]
    assert "spectra" in curvature["figures"]


def test_data_as_json_has_what_is_printed(tmp_path):
    lines = [{"prompt": f"{i} + 1 =", "completion": f"#### {i + 1}", "gold": "2"} for i in range(4)]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    [found] = json.loads(run("data", str(tmp_path / "rollouts.jsonl"), "--json").output)
    assert found["first"]["prompt"] == "0 + 1 ="
    assert {name: found["counts"][name] for name in ("rows", "correct", "wrong")} == {
        "rows": 4,
        "correct": 1,
        "wrong": 3,
    }
    assert found["lengths"]["prompts"] == [7, 7, 7, 7]


def test_shipped_studies_are_listed_and_printed():
    files = sorted((Path(raygeo.__file__).parent / "studies").glob("*.yaml"))
    listed = json.loads(run("studies", "--json").output)
    assert [study["name"] for study in listed] == [file.stem for file in files]
    assert all(20 < len(study["about"]) < 200 and study["about"][-1] in ".?" for study in listed)
    assert all(study["name"] in run("studies").output for study in listed)
    first, *rest = run("studies", "quickstart").output.splitlines()
    assert rest == (files[0].parent / "quickstart.yaml").read_text().splitlines()[1:]
    schema = files[0].parent / "schema.json"
    assert first == f"# yaml-language-server: $schema={schema.as_uri()}", "as the copy needs it, wherever it lies"
    refused = run("studies", "quickstrat").exception
    assert isinstance(refused, ConfigError)
    assert "did you mean 'quickstart'" in str(refused)


def test_quick_start_is_the_shipped_study(monkeypatch):
    asked = []
    monkeypatch.setattr("raygeo.cli.run", lambda *arguments, **options: asked.append((arguments, options)))
    run("quickstart", "--store", "here", "-q")
    [((study, overrides, store, address), options)] = asked
    assert (study, overrides, store, address) == ("quickstart", [], "here", None)
    assert options == {"quiet": True, "verbose": False}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell):
    def completed(typed):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1), "_TYPER_COMPLETE_ARGS": typed}
        asked = {"_RAYGEO_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        code = "import sys; sys.argv[0] = 'raygeo'; from raygeo.cli import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | asked | words, capture_output=True, text=True
        )
        return done.stdout

    assert "quickstart" in completed("raygeo quick")
    assert "--dry-run" in completed("raygeo run --dry")


def test_the_command_line_starts_without_heavy_imports():
    code = (
        "import sys, raygeo.cli; print(sorted({'torch', 'ray', 'transformers', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.slow
def test_errors_for_the_user_come_without_a_traceback(tmp_path):
    (tmp_path / "study.yaml").write_text("name: x\nrunns: []\n")
    command = [sys.executable, "-m", "raygeo", "run", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runns: unknown key; did you mean 'runs'?" in done.stderr
    assert "Traceback" not in done.stderr
