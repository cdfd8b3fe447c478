"""What is refused of students and adapters before anything is made, and what a student's key is of."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import save_tiny_student

from checks.families import configuration, random_model
from raygeo.cluster.execution import in_process
from raygeo.errors import StudentError
from raygeo.models.checkpoint import Checkpoint
from raygeo.pipeline.config import parse_study
from raygeo.pipeline.context import StudyContext
from raygeo.pipeline.student import hash_folder, provide_student
from raygeo.progress import Progress
from raygeo.store import Store
from raygeo.toy.word_problems import word_tokenizer

pytestmark = pytest.mark.cluster


def bench(tmp_path, model, **training):
    study = parse_study({
        "name": "s",
        "student": {"model": str(model)},
        "rollouts": {"sample": {"teacher": "builtin"}} if str(model).startswith("builtin") else {
            "read": [{"type": "jsonl", "path": "rollouts.jsonl"}]
        },
        "training": {"steps": 1, **training},
        "runs": [{"loss": {"type": "sft"}}],
    })  # fmt: skip
    return StudyContext(Store(tmp_path / "store"), in_process, Progress(Console(file=io.StringIO())), study=study)


@pytest.fixture
def folder(tmp_path):
    return save_tiny_student(tmp_path / "model")


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"target_modules": ["foo"]}, r"'foo' names no linear module .* that can have an adapter; it has \["),
        ({"target_modules": ["qproj"]}, r"did you mean 'q_proj'\? It has"),
        ({"target_modules": ["lm_head"]}, r"one weight with model\.embed_tokens \(tied\)"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_the_student_is_made(tmp_path, folder, lora, said):
    for model in (folder, "builtin:word-problems"):
        context = bench(tmp_path, model, lora=lora)
        with pytest.raises(StudentError, match=said):
            provide_student(context)
        assert context.store.folders("students") == []


def test_every_adapter_of_a_search_is_tried(tmp_path, folder):
    context = bench(tmp_path, folder, lora=[{"target_modules": ["q_proj"]}, {"target_modules": ["x_proj"]}])
    with pytest.raises(StudentError, match="'x_proj' names no linear module"):
        provide_student(context)


def test_a_family_that_cannot_be_followed_is_refused_at_the_start(tmp_path):
    random_model(configuration("bert")).save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(StudentError, match="BertLMHeadModel is not supported: its logits are not"):
        provide_student(bench(tmp_path, tmp_path / "bert"))


def test_models_that_differ_in_their_weights_alone_are_two_students_of_one_store(tmp_path, folder):
    first = provide_student(bench(tmp_path, folder))
    tensors = load_file(folder / "model.safetensors")
    other = save_tiny_student(tmp_path / "other")
    save_file({n: t * 2 for n, t in tensors.items()}, other / "model.safetensors", metadata={"format": "pt"})
    second = provide_student(bench(tmp_path, other))
    assert first.key == hash_folder(folder) != second.key
    norms = [sum(Checkpoint(s.folder).tensor(n).double().square().sum() for n in tensors) for s in (first, second)]
    assert norms[1] == pytest.approx(4 * float(norms[0]))
    assert torch.equal(Checkpoint(first.folder).tensor("model.norm.weight"), tensors["model.norm.weight"])
