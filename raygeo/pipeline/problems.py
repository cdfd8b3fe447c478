"""The problems that raygeo makes itself, and those of benchmarks, as prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raygeo.data.readers import Prompt, read_prompts
from raygeo.pipeline.config import GYM, Benchmark, StudentSettings, Study
from raygeo.toy.architecture import build_model
from raygeo.toy.builtin import problems
from raygeo.toy.gym.family import LevelName
from raygeo.toy.gym.problems import check_levels
from raygeo.toy.gym.student import Role, gym_problems
from raygeo.toy.gym.tokenizer import gym_tokenizer
from raygeo.toy.word_problems import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast


def benchmark_problems(study: Study, benchmark: Benchmark, max_set_aside: float = 0.0) -> list[Prompt]:
    """Problems of a named benchmark; ``max_set_aside`` is the share of them that may be unusable."""
    found = (
        builtin_prompts(study, benchmark.problems, benchmark.seed, benchmark.families, benchmark.level)
        if isinstance(benchmark.problems, int)
        else read_prompts(benchmark.problems, max_set_aside=max_set_aside)
    )
    return found[: benchmark.limit]


def builtin_prompts(
    study: Study, count: int, seed: int, families: Role | Sequence[str] = "trained", level: LevelName = "usual"
) -> list[Prompt]:
    """Distinct built-in problems as prompts; families and level are those of reasoning-gym's."""
    if study.student.model == GYM:
        drawn = gym_problems(study.student.gym, families, level, count, seed)
        return [
            Prompt(f"{p.family.name}-{level}-{seed}-{i}", p.prompt, p.gold, p.solution) for i, p in enumerate(drawn)
        ]
    found = problems(study.student.word_problems, count, seed)
    return [Prompt(f"wp{seed}-{i}", p.prompt, p.gold, p.solution) for i, p in enumerate(found)]


def check_builtin(study: Study) -> None:
    """Draw what the study asks of reasoning-gym, where it does.

    Raises:
        ConfigError: reasoning-gym is not installed, refuses a level, or has not so many different problems.
    """
    if study.student.model != GYM:
        return
    gym, sample = study.student.gym, study.rollouts.sample
    check_levels(gym.families())
    if sample is not None and isinstance(sample.prompts, int):
        builtin_prompts(study, sample.prompts, sample.prompts_seed)
    for benchmark in study.evaluation.benchmarks:
        if isinstance(benchmark.problems, int):
            benchmark_problems(study, benchmark)


def made_tokenizer(settings: StudentSettings) -> "PreTrainedTokenizerFast":
    """The tokenizer of a student that is made here; that of word problems stands for one that is not known yet."""
    return gym_tokenizer(settings.gym.families()) if settings.model == GYM else word_tokenizer()


def made_config(settings: StudentSettings) -> "PreTrainedConfig":
    """The configuration of a student that is made here, but for the vocabulary of one made from text."""
    made = settings.made
    return build_model(made.architecture, made_tokenizer(settings), made.model_seed).config
