"""What comes with raygeo: it is what the quick start asks for, whole, and nothing of it is made again."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from raygeo.cluster.execution import in_process
from raygeo.pipeline import precomputed
from raygeo.pipeline import student as stage
from raygeo.pipeline.config import load_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.precomputed import PLACE
from raygeo.pipeline.published import KIND
from raygeo.pipeline.rollouts import provide_rollouts
from raygeo.pipeline.shipped import shipped_studies
from raygeo.pipeline.student import provide_student
from raygeo.pipeline.written import read_yaml
from raygeo.progress import Progress
from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.store.contents import Contents
from raygeo.store.manifest import manifest_of
from raygeo.store.verification import broken

pytestmark = pytest.mark.cluster

DIGEST = "76cd6adcbcebbfa5"
"""Of the names and bytes of all files: it changes with a file and with nothing else.

A recipe or a revision that changes makes other keys, and ``test_the_quick_start_makes_none_of_it`` fails.
"""


class Made(Exception):
    """Something is made that comes with raygeo."""


def refuse(*given, **named):
    raise Made(
        "something is made that comes with raygeo; if a recipe or a revision changed: python -m checks.precomputed"
    )


def grades_alone(workload, *given):
    """Run a workload here, but for one that samples."""
    if workload.name == "rollouts":
        refuse()
    in_process(workload, *given)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "call", refuse)

    def make(*overrides):
        study = load_study(read_yaml(shipped_studies()["quickstart"].text), overrides)
        console = Console(file=io.StringIO(), width=200)
        return StudyContext(Store(tmp_path / "store"), grades_alone, Progress(console), study=study)

    return make


def test_it_is_whole_and_a_few_megabytes():
    assert list(broken(Contents(Store(PLACE, create=False)))) == []
    found = manifest_of(PLACE)
    assert content_key(found.digests) == DIGEST
    assert sum(found.sizes.values()) < 10e6


def test_the_quick_start_makes_none_of_it(bench):
    context = bench()
    student = provide_student(context)
    rollouts = provide_rollouts(context, student)
    said = context.progress.console.file.getvalue()
    assert said.count("comes with raygeo") == 2
    assert student.description == "builtin:word-problems, comes with raygeo"
    assert "rollouts: come with raygeo" in said
    assert "6,144 rollouts: 3,23" in said
    assert rollouts.train.num_rows + rollouts.heldout.num_rows == 6144
    assert sorted(Store(PLACE, create=False).folders(KIND)) == sorted([student.key, student.teacher])
    assert manifest_of(Path(student.folder)) == manifest_of(PLACE / KIND / student.key)


@pytest.mark.parametrize(
    "change", ["student.word_problems.model_seed=1", "student.word_problems.teacher.corpus_seed=2"]
)
def test_another_recipe_is_made_here(bench, change):
    with pytest.raises(Made):
        provide_student(bench(change))


def test_other_rollouts_are_sampled_here(bench):
    context = bench("rollouts.sample.decoding.seed=1")
    student = provide_student(context)
    with pytest.raises(Made):
        provide_rollouts(context, student)


def test_what_is_not_there_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(precomputed, "PLACE", tmp_path)
    assert not precomputed.take_folder(Store(tmp_path / "store"), KIND, "0" * 16)
