import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

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


@pytest.mark.parametrize(("name", "said"), [("dop", "did you mean 'dpo'"), ("zzz", "the types are sft, rft")])
def test_losses_refuses_what_is_none(name, said):
    result = run("losses", name)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)


def test_the_command_line_starts_without_heavy_imports():
    code = (
        "import sys, raygeo.cli; print(sorted({'torch', 'ray', 'transformers', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_errors_for_the_user_come_without_a_traceback(tmp_path):
    (tmp_path / "study.yaml").write_text("name: x\nrunns: []\n")
    command = [sys.executable, "-m", "raygeo", "run", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runns: unknown key; did you mean 'runs'?" in done.stderr
    assert "Traceback" not in done.stderr
