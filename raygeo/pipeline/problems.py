"""The problems that raygeo makes itself, and those of benchmarks, as prompts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raygeo.data.readers import Prompt, read_prompts
from raygeo.errors import ConfigError
from raygeo.pipeline.config import GYM, WORD_PROBLEMS, Benchmark, StudentSettings, Study
from raygeo.pipeline.standing import STUDY
from raygeo.pipeline.written import read_yaml
from raygeo.store import Store
from raygeo.toy.architecture import build_model
from raygeo.toy.builtin import problems
from raygeo.toy.gym.family import LevelName
from raygeo.toy.gym.problems import check_levels
from raygeo.toy.gym.student import Role, gym_problems
from raygeo.toy.gym.tokenizer import gym_tokenizer
from raygeo.toy.word_problems import word_tokenizer

_MOST_STORES = 100
"""Studies that may have continued one another."""

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
    """See that built-in problems are those of the student, and draw what the study asks of reasoning-gym.

    Raises:
        ConfigError: reasoning-gym is not installed, refuses a level, or has not so many different problems; or word
            problems are asked for of a run whose student was made for others.
    """
    sample = study.rollouts.sample
    prompts = sample.prompts if sample is not None and isinstance(sample.prompts, int) else None
    benchmarks = [benchmark for benchmark in study.evaluation.benchmarks if isinstance(benchmark.problems, int)]
    if study.student.from_run is not None and (prompts is not None or benchmarks):
        origin = _origin(study.student.from_store)
        if origin != WORD_PROBLEMS:
            place = "rollouts.sample.prompts" if prompts is not None else "evaluation.benchmarks"
            raise ConfigError(
                f"a number of problems, in {place}, is of word problems here, and the run {study.student.from_run} "
                f"began with {origin or 'another student'}; say "
                "where problems are read."
            )
    if study.student.model != GYM:
        return
    check_levels(study.student.gym.families())
    if sample is not None and prompts is not None:
        builtin_prompts(study, prompts, sample.prompts_seed)
    for benchmark in benchmarks:
        benchmark_problems(study, benchmark)


def check_sources(study: Study) -> None:
    """See that rollouts and problems that are to be read are there, by their first records, and have what they need.

    Raises:
        DataError: they cannot be read, or have neither a verdict nor what one could be made of.
    """
    for reader in study.rollouts.read:
        reader.check()
    sample = study.rollouts.sample
    if sample is not None and not isinstance(sample.prompts, int):
        read_prompts(sample.prompts)
    for benchmark in study.evaluation.benchmarks:
        if not isinstance(benchmark.problems, int):
            benchmark_problems(study, benchmark)


def _origin(location: str | None) -> str | None:
    """The model that the study in a store began with, its run continued or not; None where the store does not say."""
    for _ in range(_MOST_STORES):
        if location is None:
            break
        written = Store(location, create=False).read_bytes(STUDY)
        raw = read_yaml((written or b"").decode(errors="replace"))
        student = raw.get("student") if isinstance(raw, dict) else None
        if not isinstance(student, dict):
            break
        if student.get("from_run") is None:
            return str(student.get("model"))
        location = student.get("from_store")
    return None


def made_tokenizer(settings: StudentSettings) -> "PreTrainedTokenizerFast":
    """The tokenizer of a student that is made here; that of word problems stands for one that is not known yet."""
    return gym_tokenizer(settings.gym.families()) if settings.model == GYM else word_tokenizer()


def made_config(settings: StudentSettings) -> "PreTrainedConfig":
    """The configuration of a student that is made here, but for the vocabulary of one made from text."""
    made = settings.made
    return build_model(made.architecture, made_tokenizer(settings), made.model_seed).config
