"""The built-in student: a careless solver of word problems, made in a minute, and the teacher it learns from.

Base accuracy comes from what the corpus holds, not from stopping early: the simulated solver drops a carry or misreads
``gets`` more often than not, so a model that fits its corpus errs there as well.
"""

from random import Random

from pydantic import Field

from raygeo.models.loading import default_device, load_student
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.pretrain import OnStep, PretrainSettings, pretrain
from raygeo.toy.word_problems import (
    Carelessness,
    Problem,
    ProblemSettings,
    draw_corpus,
    draw_problem,
    word_tokenizer,
)


class TeacherSettings(Settings):
    """How the base becomes its teacher: more training, on a more careful solver's solutions in the teacher style."""

    carelessness: Carelessness = Carelessness(carry=0.22, gets=0.22, gives=0.10, skip=0.03)
    """How the teacher's corpus errs."""
    corpus: int = Field(10_000, ge=1)
    """Number of problems."""
    corpus_seed: int = 1
    """Seed of the problems and of the errors in their solutions."""
    training: PretrainSettings = PretrainSettings(steps=180, lr=2e-3, warmup_steps=10)
    """The training that is added to the base's."""


class WordProblems(Settings):
    """The built-in student, its corpus and its teacher."""

    problems: ProblemSettings = ProblemSettings()
    """How hard the problems are."""
    architecture: Architecture = Architecture()
    """The model."""
    model_seed: int = 0
    """Seed of the initial weights."""
    carelessness: Carelessness = Carelessness(carry=0.58, gets=0.58, gives=0.25, skip=0.03)
    """How the base's corpus errs."""
    teacher_share: float = Field(0.15, ge=0, le=1)
    """Share of the base's corpus that is written in the teacher style."""
    corpus: int = Field(40_000, ge=1)
    """Number of problems in the base's corpus."""
    corpus_seed: int = 0
    """Seed of the problems and of the errors in their solutions."""
    training: PretrainSettings = PretrainSettings()
    """How the base is trained."""
    teacher: TeacherSettings = TeacherSettings()
    """How the teacher is made from the base."""


def problems(settings: WordProblems, count: int, seed: int) -> list[Problem]:
    """Draw ``count`` distinct problems with their answers, of the kind the student was trained on."""
    rng = Random(f"problems {seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw_problem(settings.problems, rng)
        found.setdefault(problem.prompt, problem)
    return list(found.values())


def make_base(settings: WordProblems, folder: AnyPath, progress: OnStep | None = None) -> None:
    """Train the base from scratch and save it as a Hugging Face folder."""
    tokenizer = word_tokenizer()
    model = build_model(settings.architecture, tokenizer, settings.model_seed).to(default_device())  # type: ignore[arg-type]
    corpus = draw_corpus(
        settings.problems, settings.carelessness, settings.teacher_share, settings.corpus, settings.corpus_seed
    )
    pretrain(model, tokenizer, corpus, settings.training, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_teacher(settings: WordProblems, base_folder: AnyPath, folder: AnyPath, progress: OnStep | None = None) -> None:
    """Train the base on into its teacher and save that as a Hugging Face folder."""
    model, tokenizer = load_student(base_folder, device=default_device())
    teacher = settings.teacher
    corpus = draw_corpus(settings.problems, teacher.carelessness, 1.0, teacher.corpus, teacher.corpus_seed)
    pretrain(model, tokenizer, corpus, teacher.training, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
