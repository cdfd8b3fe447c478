"""What ``raygeo show`` prints of a store, for people and as JSON."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raygeo.cli import app
from raygeo.cluster.execution import in_process
from raygeo.errors import ConfigError, StoreError
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.report import about_study
from raygeo.pipeline.show import show
from raygeo.pipeline.standing import Standing
from raygeo.pipeline.study import STAGES
from raygeo.progress import Progress
from raygeo.records import FINISHED, RunRecord
from raygeo.tables import to_arrow

pytestmark = pytest.mark.cluster

STUDY = parse_study(
    {
        "name": "shown",
        "rollouts": {"sample": {}},
        "runs": [{"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}, "lr": 1e-4}],
    }
)


@pytest.fixture
def stored(store):
    context = StudyContext(store, in_process, Progress(Console(file=io.StringIO())), study=STUDY)
    standing = Standing(store, about_study(STUDY, ("start", *STAGES[:-1])), [], context.progress)
    for stage in ("start", "student", "rollouts", "reference", "train"):
        with standing.stage(stage, context):
            pass
    failed = {"reason": "loss is not finite at step 3", "status": "failed"}
    records = [
        RunRecord(
            run=spec.name,
            key=spec.name,
            loss=spec.loss.model_dump(mode="json"),
            training=spec.training.model_dump(mode="json"),
            **(failed if "dpo" in spec.name else {"status": FINISHED, "steps": 4}),
        )
        for spec in STUDY.specs()
    ]
    rows = {
        "runs": [record.row() for record in records],
        "accuracy": [
            {"run": run, "benchmark": "heldout", "n": 8, "correct": right, "accuracy": right / 8}
            for run, right in (("base", 2), (records[0].run, 6))
        ],
        "training_curves": [
            {"run": records[0].run, "step": step, "metric": "nll", "value": 1.0} for step in range(30)
        ],
    }  # fmt: skip
    for table, found in rows.items():
        store.publish_rows(table, to_arrow(table, found))
    return store


def text_of(store, *arguments):
    done = CliRunner().invoke(app, ["show", store.location, *arguments], env={"COLUMNS": "200"})
    if done.exception is not None:
        raise done.exception
    return done.output


def plain_of(store, *arguments):
    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text_of(store, *arguments, "--json"), parse_constant=refused)


def test_a_study_with_its_stages_runs_and_tables(stored):
    text = text_of(stored)
    for said in ("shown\n", "not done: evaluate, geometry", "1 finished, 1 failed", "75.0 %", "loss is not finite"):
        assert said in text
    plain = plain_of(stored)
    assert [stage["stage"] for stage in plain["stages"]] == ["start", "student", "rollouts", "reference", "train"]
    assert plain["lacking"] == ["evaluate", "geometry"]
    found = {run["run"]: (run["status"], run["accuracy"]) for run in plain["runs"]}
    assert found == {
        "base": ("base", {"heldout": 0.25}),
        "sft-lr1e-05-s0": ("finished", {"heldout": 0.75}),
        "dpo-lr0.0001-s0": ("failed", {}),
    }
    assert {"runs", "accuracy", "training_curves"} <= set(plain["tables"])


def test_a_run_with_its_settings_and_metrics(stored):
    plain = plain_of(stored, "sft-lr1e-05-s0")
    assert plain["loss"]["type"] == "sft"
    assert plain["training"]["lr"] == 1e-5
    assert plain["accuracy"][0]["accuracy"] == 0.75
    assert plain["metrics"]["eval/heldout/accuracy"] == 0.75
    text = text_of(stored, "sft-lr1e-05-s0")
    assert "type: sft" in text
    assert "eval/heldout/accuracy" in text
    assert plain_of(stored, "base")["metrics"]["eval/heldout/accuracy"] == 0.25


def test_a_table_is_cut_and_counted(stored):
    text = text_of(stored, "training_curves", "--rows", "3")
    assert "training_curves: 3 of 30 rows" in text
    plain = plain_of(stored, "training_curves", "--rows", "3")
    assert plain["count"] == 30
    assert [row["step"] for row in plain["rows"]] == [0, 1, 2]


def test_what_json_does_not_have_is_null(stored):
    rows = [{"run": "base", "benchmark": "heldout", "n": 0, "correct": 0, "accuracy": float("nan")}]
    stored.publish_rows("accuracy", to_arrow("accuracy", rows))
    assert plain_of(stored, "accuracy")["rows"][0]["accuracy"] is None


def test_what_is_not_there_is_refused(stored, tmp_path):
    with pytest.raises(ConfigError, match="no run and no table 'sft-lr1e-5'; did you mean 'sft-lr1e-05-s0'"):
        show(stored, "sft-lr1e-5", out=Console(file=io.StringIO()))
    with pytest.raises(StoreError, match="no store"):
        text_of(type("Nothing", (), {"location": str(tmp_path / "nothing")}))
