"""A study whose student is a run of an earlier one; nothing is trained here."""

import pytest
import torch
from tiny import save_tiny_student

from raygeo.errors import ConfigError, StoreError
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_student, read_config
from raygeo.pipeline import student as stage
from raygeo.pipeline.budget.facts import student_config
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.student import provide_student
from raygeo.store import Store

pytestmark = pytest.mark.cluster

NAME = "model.norm.weight"
MOVE = torch.linspace(-1, 1, 32)


@pytest.fixture(autouse=True)
def merges_here(monkeypatch):
    """Merge in this process, without Ray."""
    monkeypatch.setattr(stage, "call", lambda work, what, progress, **resources: work(lambda *told: None))


@pytest.fixture
def earlier(tmp_path):
    """The store of a study that trained three runs, written by hand."""
    store = Store(tmp_path / "earlier")
    store.save_folder("students", "base-key", save_tiny_student(tmp_path / "base"))
    save_full_delta(tmp_path / "delta", {NAME: MOVE})
    store.save_folder("deltas", "sft-key", tmp_path / "delta")
    sft = {"run": "sft-lr0.001-s0", "key": "sft-key", "status": "finished", "student": "base-key"}
    publish(store, [
        sft,
        {"run": "sft-lr1e+30-s0", "key": "hot", "status": "diverged", "reason": "objective became nan"},
        sft | {"run": "of-an-older-version", "student": None},
        sft | {"run": "delta-deleted", "key": "gone"},
    ])  # fmt: skip
    return store


def publish(store, rows):
    store.write_unit("published", {"runs": rows})
    store.publish("runs", ["published"])


def study(earlier, run, store="later"):
    return parse_study({
        "name": "later",
        "student": {"from_run": run, "from_store": str(earlier)},
        "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]},
        "runs": [{"loss": {"type": "dpo"}}],
    })  # fmt: skip


def provide(tmp_path, earlier, run):
    return provide_student(StudyContext(Store(tmp_path / "later"), pool=None, study=study(earlier, run)))


def test_the_student_is_what_the_run_left(tmp_path, earlier):
    given = provide(tmp_path, earlier.location, "sft-lr0.001-s0")
    before, after = load_student(earlier.folder("students", "base-key"))[0], load_student(given.folder)[0]
    for name, parameter in after.named_parameters():
        expected = before.get_parameter(name) + (MOVE if name == NAME else 0)
        assert torch.equal(parameter, expected), name
    assert Store(tmp_path / "later").has_folder("students", given.key)
    assert given.teacher is None
    assert "sft-lr0.001-s0" in given.description
    assert earlier.location in given.description


def test_it_is_planned_with_the_shapes_of_what_the_run_was_trained_from(earlier):
    shapes = read_config(earlier.folder("students", "base-key"))
    assert student_config(study(earlier.location, "sft-lr0.001-s0")).to_dict() == shapes.to_dict()
    with pytest.raises(ConfigError, match="is not a run of"):
        student_config(study(earlier.location, "kto"))


def test_it_is_made_once_and_known_by_base_and_run(tmp_path, earlier, monkeypatch):
    first = provide(tmp_path, earlier.location, "sft-lr0.001-s0")
    monkeypatch.setattr(stage, "merge_run", None)
    assert provide(tmp_path, earlier.location, "sft-lr0.001-s0").key == first.key
    monkeypatch.undo()
    monkeypatch.setattr(stage, "call", lambda *args, **kwargs: None)
    publish(earlier, [{"run": "sft-lr0.001-s0", "key": "other", "status": "finished", "student": "base-key"}])
    save_full_delta(tmp_path / "other", {NAME: -MOVE})
    earlier.save_folder("deltas", "other", tmp_path / "other")
    assert provide(tmp_path, earlier.location, "sft-lr0.001-s0").key != first.key


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("sft-lr0.01-s0", "is not a run of .*; did you mean 'sft-lr0.001-s0'"),
        ("kto", "it has sft-lr0.001-s0, sft-lr1e"),
        ("sft-lr1e+30-s0", "no weights to start from: diverged, objective became nan"),
        ("of-an-older-version", "does not say which student .* run its study again"),
        ("delta-deleted", "needs .*/deltas/gone; run its study again"),
    ],
)
def test_a_run_that_cannot_be_gone_on_from_is_named(tmp_path, earlier, run, said):
    with pytest.raises(ConfigError, match=said):
        provide(tmp_path, earlier.location, run)
    assert not Store(tmp_path / "later").folders("students")


def test_a_store_that_is_not_there_has_no_runs_or_is_the_studys_own_is_refused(tmp_path, earlier):
    with pytest.raises(StoreError, match="no store at"):
        provide(tmp_path, tmp_path / "nowhere", "sft")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ConfigError, match="none yet; run its study first"):
        provide(tmp_path, Store(tmp_path / "empty").location, "sft")
    with pytest.raises(ConfigError, match="own store"):
        provide(tmp_path, Store(tmp_path / "later").location, "sft-lr0.001-s0")


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"from_run": "sft"}, "go together"),
        ({"from_store": "earlier"}, "go together"),
        ({"from_run": "sft", "from_store": "s", "model": "some/model"}, "either model or from_run"),
    ],
)
def test_settings_that_say_two_things_are_refused(student, said):
    with pytest.raises(ConfigError, match=said):
        parse_study({
            "name": "x", "student": student, "rollouts": {"read": [{"type": "jsonl", "path": "x"}]},
            "runs": [{"loss": {"type": "sft"}}],
        })  # fmt: skip


def test_the_built_in_teacher_does_not_come_with_a_run():
    raw = {
        "name": "x", "student": {"from_run": "sft", "from_store": "s"}, "rollouts": {"sample": {"prompts": 8}},
        "runs": [{"loss": {"type": "dpo"}}],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="give a teacher model"):
        parse_study(raw)
    raw["rollouts"]["sample"]["teacher"] = "student"
    assert not parse_study(raw).student.built_in
