"""What the training stage does with rounds that an earlier command has trained; nothing is really trained."""

import json
from types import SimpleNamespace

import pytest
from study_cases import draw_rollouts
from tiny import save_tiny_student

from raygeo.generation.renderer import PlainRenderer
from raygeo.pipeline import chains
from raygeo.pipeline.chains import chain_of
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.pipeline.train import References, train_runs
from raygeo.records import FINISHED
from raygeo.tables import to_arrow
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.worker import run_record

pytestmark = pytest.mark.cluster


class Untold:
    """Takes what MLflow is told."""

    def run_id(self, key):
        return None

    def __getattr__(self, name):
        return lambda *given: None


@pytest.fixture
def trained(store, tmp_path, monkeypatch):
    """The training stage of two rounds that the store has, without their sum, and what happened, in order."""
    happened = []
    study = parse_study({
        "name": "s",
        "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]},
        "training": {"steps": 2},
        "runs": [{"loss": {"type": "sft"}, "rounds": 2, "name": "x"}],
    })  # fmt: skip
    store.write_unit("rollouts", {"rollouts": draw_rollouts(6)})
    counts = to_arrow("counts", [{"stage": "rollouts", "name": "rows", "value": 24}])
    rollouts = Rollouts("rollouts", store, "tokens", "unused", PlainRenderer(word_tokenizer()), "exact", counts)
    student = Student("student", str(save_tiny_student(tmp_path / "model")), None, "tiny")
    context = StudyContext(store, SimpleNamespace(close=lambda: happened.append("pool closed")), study=study)
    [run] = study.plan.trials()
    chain = chain_of(context, student, rollouts, run)
    for prompts, link in zip((4, 5), chain.links, strict=True):
        record = run_record(link.spec, link.key, FINISHED, student=link.start.key, steps=2)
        store.write_unit(link.key, {"runs": [record.row()], "training_curves": []})
        store.complete_folder("deltas", link.key)
        drawn = draw_rollouts(prompts)
        rows = [("rows", drawn.num_rows), ("correct", 1)]
        counted = [{"stage": "rollouts", "name": name, "value": value} for name, value in rows]
        store.write_unit(link.sampled.key, {"rollouts": drawn, "set_aside": [], "counts": counted})

    def call(work, what, progress, **resources):
        happened.append(what)
        store.complete_folder("deltas", chain.key)

    monkeypatch.setattr(chains, "call", call)

    def train():
        train_runs(context, student, rollouts, References(), Untold())
        return SimpleNamespace(store=store, happened=happened, missing=context.missing)

    return train


def test_counts_of_rounds_are_there_however_often_the_command_is_given(trained):
    for _ in range(2):
        found = trained()
        assert not found.missing
        counted = found.store.table("counts").to_pylist()
        seen = {row["stage"]: row["value"] for row in counted if row["name"] == "rows_seen"}
        assert seen == {"x-round1": 4 * 4, "x-round2": 5 * 4}


def test_idle_actors_give_their_cpus_back_before_stages_are_added_up(trained):
    found = trained()
    assert found.happened == ["pool closed", "adding up the stages of x"]
    assert json.loads(found.store.table("runs").to_pylist()[0]["params"])["stages"][0]["rounds"] == 2
    trained()
    assert len(found.happened) == 2
