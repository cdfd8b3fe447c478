"""``jobs/sweep.py``: one study for each value of a setting."""

import runpy
from pathlib import Path

import pytest
import yaml

from raygeo.errors import StoreError

pytestmark = pytest.mark.cluster

FAILING = 0.25
JOB = Path(__file__).parents[2] / "jobs" / "sweep.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Calls the job on a small study file; returns the studies it ran."""
    studies = []

    def run_study(study, **options):
        studies.append(study)
        if study.rollouts.negative_share == FAILING:
            raise StoreError(f"{study.store} cannot be written")

    monkeypatch.setattr("raygeo.pipeline.study.run_study", run_study)
    file = tmp_path / "study.yaml"
    file.write_text(
        yaml.safe_dump({"name": "s", "rollouts": {"sample": {"prompts": 8}}, "runs": [{"loss": {"type": "sft"}}]})
    )

    def call(*arguments, code=0):
        monkeypatch.setattr("sys.argv", [str(JOB), str(file), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOB), run_name="__main__")
        assert ended.value.code == code
        return studies

    return call


def test_every_value_is_a_study_with_a_store_of_its_own(run):
    studies = run(
        "--over", "rollouts.negative_share=[0.05, 0.5, null]", "--store", "there", "--set", "training.lr=1e-4"
    )
    assert [(s.store, s.rollouts.negative_share) for s in studies] == [
        ("there-0.05", 0.05), ("there-0.5", 0.5), ("there-null", None),
    ]  # fmt: skip
    assert {s.training.lr for s in studies} == {1e-4}


def test_the_store_is_named_after_the_study_and_the_value(run):
    assert [s.store for s in run("--over", "student.model=[builtin:word-problems]")] == [
        "store/s-builtin:word-problems"
    ]


def test_without_values_it_runs_the_study(run):
    [study] = run()
    assert study.store is None


@pytest.mark.parametrize(
    ("over", "said"),
    [("rollouts.negative_share", "is not of the form"), ("rollouts.negative_share=0.5", "is not of the form"),
     ("rollouts.negative_share=[", "is not of the form"), ("rollouts.negative_share=[]", "is not of the form"),
     ("rollouts.negative_share=[0.5, 0.50]", "two values would have the store store/s-0.5;"),
     ("rollouts.negative_share=[0.1, 2]", "less than or equal to 1"), ("rollouts.share=[1]", "unknown key")],
)  # fmt: skip
def test_a_wrong_value_is_named_before_anything_runs(run, capsys, over, said):
    assert run("--over", over, code=2) == []
    assert said in capsys.readouterr().err


def test_a_study_that_fails_does_not_keep_the_others_from_running_and_no_password_is_said(run, capsys):
    given = "--over", "rollouts.negative_share=[0.25, 0.5]", "--store", "s3://key:secret@bucket/there"
    assert [s.rollouts.negative_share for s in run(*given, code=2)] == [0.25, 0.5]
    said = capsys.readouterr().err
    assert "s3://bucket/there-0.25: StoreError: s3://bucket/there-0.25 cannot be written" in said
    assert "1 of 2 studies failed: s3://bucket/there-0.25." in said
    assert "secret" not in said
