"""The student of reasoning-gym's problems: a small base that slips, made in minutes, and the teacher it learns from.

The base has seen all its families and both levels, so it can be asked all of them; only the families in ``trained``, at
their usual level, are in rollouts. Everything else is a shift: ``harder`` problems of the same families, problems of
``heldout`` families, in which the base slips as in those it is trained on, and of ``retained`` ones, which it solves
without slips and may forget.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from random import Random
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model, model_validator

from raygeo.models.loading import default_device, load_student
from raygeo.settings import Settings
from raygeo.store import AnyPath
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.gym.families import FAMILIES
from raygeo.toy.gym.family import Family, LevelName
from raygeo.toy.gym.problems import GymProblem, distinct_problems, draw
from raygeo.toy.gym.solver import Slips
from raygeo.toy.gym.tokenizer import gym_tokenizer
from raygeo.toy.pretrain import OnStep, PretrainSettings, pretrain

REVISION = 1
"""Part of the content key of every student made here: another number wherever equal settings give another corpus."""


def _known(name: str) -> str:
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the families are {', '.join(FAMILIES)}"
        raise ValueError(f"{name!r} is not a family of problems; {hint}")
    return name


FamilyName = Annotated[str, AfterValidator(_known)]
Role = Literal["trained", "heldout", "retained"]

Levels: type[Settings] = create_model(
    "Levels",
    __base__=Settings,
    **{name: (family, Field(family(), description=(family.__doc__ or ""))) for name, family in FAMILIES.items()},  # type: ignore[call-overload, call-arg]
)
"""How hard the problems of each family are; one field a family."""


class GymTeacher(Settings):
    """How the base becomes its teacher: more training, on solutions of the trained families with fewer slips."""

    slips: Slips = Slips(carry=0.22, borrow=0.22, table=0.22, remainder=0.22, repeats=0.22, skip=0.02)
    """How the teacher's corpus errs."""
    corpus: int = Field(10_000, ge=1)
    """Number of problems."""
    corpus_seed: int = 1
    """Seed of the problems and of the slips in their solutions."""
    training: PretrainSettings = PretrainSettings(steps=200, lr=2e-3, warmup_steps=10)
    """The training that is added to the base's."""


class GymStudent(Settings):
    """The base, its corpus, its teacher, and what of reasoning-gym they are asked."""

    trained: tuple[FamilyName, ...] = Field(("chain_sum", "products", "gcd", "base_conversion"), min_length=1)
    """Families of the rollouts."""
    heldout: tuple[FamilyName, ...] = ("lcm", "leg_counting")
    """Families in which the base slips like in the others, and that are never in rollouts."""
    retained: tuple[FamilyName, ...] = ("count_bits", "letter_counting")
    """Families that the base has learned without slips, and that are never in rollouts."""
    levels: Levels = Levels()
    """How hard the problems are."""
    architecture: Architecture = Architecture(
        hidden=160, layers=4, heads=4, kv_heads=2, head_dim=40, intermediate=480, context=384
    )
    """The model."""
    model_seed: int = 0
    """Seed of the initial weights."""
    slips: Slips = Slips(carry=0.58, borrow=0.58, table=0.58, remainder=0.58, repeats=0.58, skip=0.02)
    """How the base's corpus errs."""
    harder_share: float = Field(0.15, ge=0, le=1)
    """Share of the base's corpus that is of the harder level."""
    corpus: int = Field(60_000, ge=1)
    """Number of problems in the base's corpus."""
    corpus_seed: int = 0
    """Seed of the problems and of the slips in their solutions."""
    training: PretrainSettings = PretrainSettings(steps=1500)
    """How the base is trained."""
    teacher: GymTeacher = GymTeacher()
    """How the teacher is made from the base."""

    @model_validator(mode="after")
    def _one_role(self) -> "GymStudent":
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice[0]!r} stands twice in trained, heldout and retained; a family has one role")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The families that the base learns."""
        return (*self.trained, *self.heldout, *self.retained)

    def families(self, asked: Role | Sequence[str] | None = None) -> list[Family]:
        """The families of a role, of these names, or all that the base learns."""
        names = self.names if asked is None else getattr(self, asked) if isinstance(asked, str) else asked
        return [getattr(self.levels, name) for name in names]

    @property
    def keyed(self) -> dict[str, Any]:
        """What the base's content key holds: nothing of the teacher, or of families that the base does not learn."""
        dumped = self.model_dump(mode="json", exclude={"teacher"})
        return dumped | {"levels": {name: dumped["levels"][name] for name in self.names}}


def gym_problems(
    settings: GymStudent, asked: Role | Sequence[str], level: LevelName, count: int, seed: int
) -> list[GymProblem]:
    """``count`` different problems of the families asked for, which take turns.

    Raises:
        ConfigError: there are not so many, or reasoning-gym is missing.
    """
    return distinct_problems(settings.families(asked), level, count, seed)


def make_gym_base(settings: GymStudent, folder: AnyPath, progress: OnStep | None = None) -> None:
    """Train the base from scratch and save it as a Hugging Face folder."""
    tokenizer = gym_tokenizer(settings.families())
    model: Any = build_model(settings.architecture, tokenizer, settings.model_seed).to(default_device())  # type: ignore[arg-type]
    pretrain(model, tokenizer, base_corpus(settings), settings.training, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_gym_teacher(
    settings: GymStudent, base_folder: AnyPath, folder: AnyPath, progress: OnStep | None = None
) -> None:
    """Train the base on into its teacher and save that as a Hugging Face folder."""
    model, tokenizer = load_student(base_folder, device=default_device())
    pretrain(model, tokenizer, teacher_corpus(settings), settings.teacher.training, progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def base_corpus(settings: GymStudent) -> list[tuple[str, str]]:
    """(prompt, solution) pairs of all families, which take turns."""
    families = settings.names
    rng = Random(f"corpus {settings.corpus_seed}")
    drawn = _streams(settings, families, settings.corpus_seed)
    corpus = []
    for number in range(settings.corpus):
        name = families[number % len(families)]
        level: LevelName = "harder" if rng.random() < settings.harder_share else "usual"
        slips = Slips() if name in settings.retained else settings.slips
        problem = next(drawn[name, level])
        corpus.append((problem.prompt, problem.solve(slips, rng)))
    return corpus


def teacher_corpus(settings: GymStudent) -> list[tuple[str, str]]:
    """(prompt, solution) pairs of the trained families at their usual level, which take turns."""
    teacher, names = settings.teacher, settings.trained
    rng = Random(f"corpus {teacher.corpus_seed}")
    drawn = _streams(settings, names, teacher.corpus_seed)
    problems = (next(drawn[names[number % len(names)], "usual"]) for number in range(teacher.corpus))
    return [(problem.prompt, problem.solve(teacher.slips, rng)) for problem in problems]


def _streams(
    settings: GymStudent, names: Sequence[str], seed: int
) -> dict[tuple[str, LevelName], Iterator[GymProblem]]:
    levels: tuple[LevelName, ...] = ("usual", "harder")
    families = zip(names, settings.families(names), strict=True)
    return {(name, level): draw(family, level, f"corpus {seed}") for name, family in families for level in levels}
