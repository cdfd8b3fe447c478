"""How the base is asked: as the runs that are compared with it compute."""

from types import SimpleNamespace

import pytest
import torch
from tiny import save_tiny_student

from raygeo.data.reference import ReferenceLogprobs
from raygeo.generation.renderer import PlainRenderer
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.rollouts import Rollouts
from raygeo.pipeline.student import Student
from raygeo.pipeline.train import provide_references
from raygeo.settings import unit_key
from raygeo.tables import SCHEMAS
from raygeo.toy.word_problems import word_tokenizer

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_tiny_student(tmp_path_factory.mktemp("reference-stage")))


class Asked(StudyContext):
    """Runs no workload, and remembers each."""

    def run(self, workload):
        self.workloads = [*getattr(self, "workloads", ()), workload]
        raise RuntimeError("not run")


def asked(store, folder, training, student=None, loss="dpo"):
    """The passes through the base that a study of one run makes."""
    study = parse_study({
        "name": "s",
        "student": student or {},
        "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]},
        "runs": [{"loss": {"type": loss}}, {"loss": {"type": "sft"}, "attn_implementation": "sdpa"}],
        "training": training,
    })  # fmt: skip
    context = Asked(store, SimpleNamespace(), study=study)
    renderer, counts = PlainRenderer(word_tokenizer()), SCHEMAS["counts"].empty_table()
    rollouts = Rollouts("rollouts", store, "tokens", "unused", renderer, "exact", counts)
    provide_references(context, Student("k", folder, None, ""), rollouts)
    return getattr(context, "workloads", ())


@pytest.mark.parametrize("loss", ["dpo", "asft"])
def test_the_base_is_asked_with_the_attention_of_the_runs(store, folder, monkeypatch, loss):
    monkeypatch.setattr("raygeo.data.reference.RolloutTokens.open", lambda tokens: None)
    for training, expected in (({}, "sdpa"), ({"attn_implementation": "eager", "precision": "bf16"}, "eager")):
        for student in ({}, {"attn_implementation": "eager"}):
            [work] = asked(store, folder, training, student, loss)
            model = work.setup()[0]
            assert model.config._attn_implementation == expected
            assert model.dtype == (torch.bfloat16 if "precision" in training else torch.float32)


def test_another_attention_gives_results_of_its_own_and_the_default_one_keeps_its_keys(store, folder):
    sources = [
        asked(store, folder, training, student)[0].source
        for training, student in (
            ({}, {}),
            ({}, {"attn_implementation": "eager"}),
            ({"attn_implementation": "eager"}, {}),
        )
    ]
    assert sources[0] == sources[1] != sources[2]


def test_with_adapters_no_states_are_stored(store, folder):
    assert asked(store, folder, {"lora": {"r": 2}}, loss="asft") == ()
    assert len(asked(store, folder, {"lora": {"r": 2}}, loss="dpo")) == 1


class OnceAsked(Asked):
    """Fails the first workload; of those after it the store has what they would make."""

    def run(self, workload):
        if not hasattr(self, "workloads"):
            return super().run(workload)
        self.store.complete_folder("reference", unit_key(ReferenceLogprobs.revision, workload.source))
        return SimpleNamespace(keys=[])


@pytest.mark.parametrize("first", ["study", "stage"])
def test_a_pass_that_failed_fails_what_needs_it_alone(store, folder, first):
    study = parse_study({
        "name": "s",
        "rollouts": {"read": [{"type": "jsonl", "path": "rollouts.jsonl"}]},
        "runs": [{"stages": [{"loss": {"type": "dpo"}}] * 3, "name": "x"}],
    })  # fmt: skip
    context = OnceAsked(store, SimpleNamespace(), study=study)
    renderer, counts = PlainRenderer(word_tokenizer()), SCHEMAS["counts"].empty_table()
    rollouts = Rollouts("rollouts", store, "tokens", "unused", renderer, "exact", counts)
    [run] = study.plan.trials()
    _, second, third = run.trainings
    asked_first = {"study": None, "stage": second}[first]
    failed = provide_references(context, Student("a", folder, None, ""), rollouts, asked_first)
    what = {"study": "the base's log-probabilities", "stage": "the start's log-probabilities"}[first]
    assert failed.lacking(second.needs).startswith(f"it needs {what}, which could not be made")
    assert list(context.missing) == [what + {"study": "", "stage": " for x-leg2"}[first]]
    for start, reference in (("b", "start"), ("c", "start"), ("b", "base")):
        spec = third.model_copy(update={"reference": reference})
        found = provide_references(context, Student(start, folder, None, ""), rollouts, spec)
        assert found.lacking(third.needs) is None
        assert found.logprobs is not None
    assert len(context.missing) == 1
