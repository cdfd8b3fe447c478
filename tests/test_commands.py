"""Commands that open a store or ask Ray; those that only tell are in ``test_cli``."""

import pytest
import yaml
from study_cases import tiny_study
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.errors import ConfigError, StoreError

pytestmark = pytest.mark.cluster


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


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
