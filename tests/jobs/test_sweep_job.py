"""``jobs/sweep.py``: one study for each value of a setting."""

import runpy
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.cluster

JOB = Path(__file__).parents[2] / "jobs" / "sweep.py"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Calls the job on a small study file; returns the studies it ran."""
    studies = []
    monkeypatch.setattr("raygeo.pipeline.study.run_study", lambda study, **options: studies.append(study))
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
     ("rollouts.negative_share=[0.1, 2]", "less than or equal to 1"), ("rollouts.share=[1]", "unknown key")],
)  # fmt: skip
def test_a_wrong_value_is_named_before_anything_runs(run, capsys, over, said):
    assert run("--over", over, code=2) == []
    assert said in capsys.readouterr().err
