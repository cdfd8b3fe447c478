import pytest
import torch
from tiny import TINY as ARCHITECTURE

from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.models.batches import collate
from raygeo.models.likelihood import token_logprobs
from raygeo.models.loading import load_student
from raygeo.toy.builtin import TeacherSettings, WordProblems, make_base, make_teacher, problems
from raygeo.toy.pretrain import PretrainSettings
from raygeo.toy.word_problems import Carelessness, ProblemSettings

TINY = WordProblems(
    problems=ProblemSettings(steps=(1, 2)),
    architecture=ARCHITECTURE,
    corpus=100,
    training=PretrainSettings(steps=4, batch_size=8, warmup_steps=2),
    teacher=TeacherSettings(corpus=100, training=PretrainSettings(steps=3, batch_size=8, warmup_steps=1)),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    make_base(TINY, folder / "base")
    make_teacher(TINY, folder / "base", folder / "teacher")
    return folder


def logits(folder):
    model, tokenizer = load_student(folder)
    batch = collate(
        [PlainRenderer(tokenizer).encode(p.prompt, p.solution) for p in problems(TINY, 4, 0)], tokenizer.pad_token_id
    )
    with torch.no_grad():
        return token_logprobs(model, batch)


def test_the_default_is_the_measured_student():
    settings = WordProblems()
    assert (settings.training.steps, settings.training.batch_size, settings.training.lr) == (600, 32, 6e-3)
    assert settings.carelessness == Carelessness(carry=0.58, gets=0.58, gives=0.25, skip=0.03)
    assert settings.teacher.carelessness == Carelessness(carry=0.22, gets=0.22, gives=0.10, skip=0.03)


def test_folders_hold_everything_a_student_needs(made):
    for name in ("base", "teacher"):
        files = {path.name for path in (made / name).iterdir()}
        assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= files
        model, tokenizer = load_student(made / name)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        engine = LocalEngine(model, PlainRenderer(tokenizer))
        ((completion,),) = engine.generate(Request([problems(TINY, 1, 0)[0].prompt], max_new_tokens=4))
        assert completion.tokens > 0


def test_the_same_settings_make_the_same_student_and_a_teacher_that_differs(made, tmp_path):
    make_base(TINY, tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again"), logits(made / "base"))
    assert not torch.equal(logits(made / "teacher"), logits(made / "base"))


def test_the_teacher_moves_towards_the_teacher_style(tmp_path):
    changes = {"training": PretrainSettings(steps=30, batch_size=8, warmup_steps=2)}
    settings = TINY.model_copy(update={**changes, "teacher": TeacherSettings(corpus=100, **changes)})
    make_base(settings, tmp_path / "base")
    make_teacher(settings, tmp_path / "base", tmp_path / "teacher")
    prompt = problems(settings, 1, 0)[0].prompt
    first = {}
    for name in ("base", "teacher"):
        model, tokenizer = load_student(tmp_path / name)
        with torch.no_grad():
            probabilities = model(torch.tensor([tokenizer(prompt).input_ids])).logits[0, -1].softmax(-1)
        first[name] = float(probabilities[tokenizer.convert_tokens_to_ids("first")])
    assert first["base"] < 0.5
    assert first["teacher"] > 0.8


def test_progress_counts_to_the_number_of_steps(tmp_path):
    steps = []
    make_base(TINY, tmp_path, lambda step, total, loss: steps.append((step, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_problems_are_seeded(made):
    assert problems(TINY, 20, 3) == problems(TINY, 20, 3)
    assert problems(TINY, 20, 3)[:10] == problems(TINY, 10, 3)
    assert problems(TINY, 20, 3) != problems(TINY, 20, 4)
