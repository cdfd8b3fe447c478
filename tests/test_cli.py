import subprocess
import sys
from io import StringIO

import pytest
import yaml
from rich.console import Console
from study_cases import tiny_study
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.doctor import examine
from raygeo.errors import ClusterError, ConfigError, StoreError
from raygeo.losses import LOSSES, RIFT


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_command():
    text = run("--help").output
    assert all(command in text for command in ("run", "losses", "report", "ui", "doctor"))


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


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (("run", "nothing.yaml"), ConfigError, "cannot be read"),
        (("report", "no-such-store"), StoreError, "no store"),
        (("ui", "no-such-store"), StoreError, "no store"),
    ],
)
def test_what_is_not_there_is_named(arguments, error, said):
    result = run(*arguments)
    assert isinstance(result.exception, error)
    assert said in str(result.exception)


def test_ui_names_the_tracking_server(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in run("ui", store.location).output


def test_a_stage_that_does_not_exist_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study(store=str(tmp_path / "store"))))
    result = run("run", str(tmp_path / "study.yaml"), "--until", "dinner")
    assert isinstance(result.exception, ConfigError)
    assert "the stages are student, rollouts" in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_errors_for_the_user_come_without_a_traceback(tmp_path):
    (tmp_path / "study.yaml").write_text("name: x\nrunns: []\n")
    command = [sys.executable, "-m", "raygeo", "run", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "runns: unknown key; did you mean 'runs'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_says_what_fits(ray_session):
    console = Console(file=StringIO(), width=200)
    assert examine(console=console)
    text = console.file.getvalue()
    assert "nothing is wrong" in text
    assert "deepspeed" in text


def test_doctor_says_what_is_wrong(ray_session, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    console = Console(file=StringIO(), width=200)
    assert not examine(console=console)
    assert "does not answer" in console.file.getvalue()


def test_a_run_that_fits_nowhere_is_refused(ray_session, tmp_path):
    from student_cases import draw_rollouts

    with (tmp_path / "rollouts.jsonl").open("w") as file:
        draw_rollouts(12).to_pandas().to_json(file, orient="records", lines=True)
    read = [{"type": "jsonl", "path": str(tmp_path / "rollouts.jsonl")}]
    study = tiny_study(
        store=str(tmp_path / "store"), rollouts={"read": read}, runs=[{"loss": {"type": "sft"}, "workers": 64}]
    )
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    result = run("run", str(tmp_path / "study.yaml"))
    assert isinstance(result.exception, ClusterError)
    assert "asks for 64 x (1 CPU)" in str(result.exception)
