"""What is known of a study before it has begun: the student's shapes, and how many tokens its data have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raygeo.data.readers import read_prompts
from raygeo.errors import ConfigError, RaygeoError, StudentError
from raygeo.footprint.need import Texts
from raygeo.losses.base import Loss
from raygeo.models.hub import is_hub_id
from raygeo.models.loading import context_length, load_tokenizer, read_config
from raygeo.paths import local_path
from raygeo.pipeline.config import HELDOUT, TAUGHT, TEXT, Benchmark, Study
from raygeo.pipeline.problems import benchmark_problems, builtin_prompts, made_config, made_tokenizer
from raygeo.pipeline.published import continued_from

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SAMPLE = 2000
"""Rows that are tokenised; the rest is counted."""
CHARACTERS_PER_TOKEN = 3.5
"""Where there is no tokenizer."""
MOST_ROWS, MOST_TOKENS = 10**9, 10**7
"""Rows, and tokens of one, that may be assumed: more are not meant."""


def _unknown(loss: Loss) -> None:
    return None


@dataclass(frozen=True)
class Facts:
    """The student's configuration, and the texts of the study.

    ``rollouts`` are rows, ``train`` those that losses see, ``prompts`` the held-out problems, ``completion`` is the
    share of completion tokens; ``benchmarks`` by name. ``said`` tells how each was found. ``settled`` are names of runs
    that need not be trained any more; ``selected`` tells the longest row that a loss selects, None if that is unknown.
    """

    config: PreTrainedConfig
    rollouts: Texts
    train: Texts
    prompts: Texts
    completion: float
    benchmarks: dict[str, Texts]
    said: tuple[str, ...]
    settled: frozenset[str] = frozenset()
    selected: Callable[[Loss], int | None] = _unknown

    def longest(self, loss: Loss) -> int:
        """Tokens of the longest row that a loss learns from; of all rows, where it is not known what it selects."""
        return min(self.train.longest, self.selected(loss) or self.train.longest)

    def within(self, limit: int | None) -> Facts:
        """The facts if rows of more than ``limit`` tokens were set aside; how many are left is not known."""
        if limit is None:
            return self
        capped: dict[str, Any] = {
            name: replace(texts, longest=min(texts.longest, limit), mean=min(texts.mean, float(limit)))
            for name, texts in (("rollouts", self.rollouts), ("train", self.train), ("prompts", self.prompts))
        }
        return replace(self, **capped)


def find_facts(study: Study, shapes: str | None = None, data: str | None = None) -> Facts:
    """Read what there is of the student and the data.

    ``data`` (``ROWS:PROMPT:COMPLETION``, in tokens) stands for rollouts that are not here yet.

    Raises:
        StudentError: the student has no configuration.
        ConfigError: ``data`` is not of that form, or of rows that are not possible; or as ``student_config``.
        DataError: a file of rollouts or problems cannot be read.
    """
    config = student_config(study, shapes)
    said: list[str] = []
    count = _counter(study, said)
    limit = study.rollouts.max_tokens or context_length(config)
    if data is not None:
        rollouts, prompt, completion = _assumed(data, limit)
        distinct = rollouts.count
        said.append(f"data: assumed {rollouts.count:,} rows of {prompt:g} and {completion:g} tokens")
    elif study.rollouts.sample is not None:
        sample = study.rollouts.sample
        asked = (
            [problem.prompt for problem in builtin_prompts(study, sample.prompts, sample.prompts_seed)]
            if isinstance(sample.prompts, int)
            else [problem.prompt for problem in read_prompts(sample.prompts, max_set_aside=1.0)]
        )
        length = _lengths(count, asked)
        new = sample.decoding.max_new_tokens
        distinct, prompt, completion = len(asked), length.mean, float(new)
        longest = length.longest + new
        rollouts = Texts(distinct * sample.decoding.samples, prompt + completion, _within(longest, limit))
        said.append(
            f"data: {distinct:,} prompts x {sample.decoding.samples} samples x at most {new} tokens: upper bounds"
        )
    else:
        rollouts, distinct, prompt, completion = _read(study, count, limit, said)
    heldout = study.rollouts.heldout
    held = min(max(round(distinct * heldout), int(heldout > 0)), max(0, distinct - 1))
    benchmarks = {HELDOUT: Texts(held, prompt, _within(round(4 * prompt), limit))} if study.evaluation.heldout else {}
    for benchmark in study.evaluation.benchmarks:
        benchmarks[benchmark.name] = _benchmark(study, benchmark, count, said)
    return Facts(
        config,
        rollouts,
        Texts(max(1, round(rollouts.count * (1 - held / max(1, distinct)))), rollouts.mean, rollouts.longest),
        Texts(held, prompt, min(_within(round(4 * prompt), limit), rollouts.longest)),
        completion / max(1.0, prompt + completion),
        benchmarks,
        tuple(said),
    )


def student_config(study: Study, shapes: str | None = None) -> PreTrainedConfig:
    """The configuration of the student to be, or of ``shapes``: a ``config.json``, a folder with one, or a hub id.

    Of a hub id only the configuration is fetched.

    Raises:
        StudentError: there is none, or transformers does not know it.
        ConfigError: there is no run that the student could continue.
        StoreError: there is no store of that run.
    """
    settings = study.student
    if shapes is not None:
        return _config_at(shapes, f"--shapes {shapes!r}", "Name a config.json, a folder with one, or a hub id")
    if (earlier := continued_from(settings)) is not None:
        return read_config(earlier)
    if settings.model in (*TAUGHT, TEXT):
        return made_config(settings)
    instead = "Correct student.model; `raygeo plan` can do without it, with the config.json of another (--shapes)"
    return _config_at(settings.model, f"student {settings.model!r}", instead)


def _config_at(place: str, named: str, instead: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        path = local_path(place)
        if path.is_dir():
            return read_config(path)
        if path.is_file():
            raw = json.loads(path.read_text())
            if not isinstance(raw, dict) or "model_type" not in raw:
                raise ValueError("it names no model_type")
            return AutoConfig.for_model(**raw)
        if not is_hub_id(place):
            where = "" if path.is_absolute() else f"; it was looked for in {Path.cwd()}"
            raise ValueError(f"it is neither a file or folder here nor a hub id (owner/name){where}")
        return AutoConfig.from_pretrained(place, trust_remote_code=False)
    except StudentError:
        raise
    except Exception as error:  # each family's own
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise StudentError(f"{named}: no usable config.json ({first}). {instead}.") from error


Count = Callable[[Sequence[str]], list[int]]


def _counter(study: Study, said: list[str]) -> Count:
    """A function from texts to their token counts."""
    settings = study.student
    tokenizer: Any = made_tokenizer(settings) if settings.built_in else None
    if tokenizer is None and settings.model != TEXT:
        try:
            folder = continued_from(settings) or Path(settings.model).expanduser()
            if Path(folder).is_dir():
                tokenizer = load_tokenizer(folder)
        except RaygeoError:
            tokenizer = None
    if tokenizer is None:
        said.append(f"tokens: the student's tokenizer is not here; {CHARACTERS_PER_TOKEN} characters a token assumed")
        return _guessed

    def count(texts: Sequence[str]) -> list[int]:
        try:
            return [len(ids) for ids in tokenizer(list(texts)).input_ids] if texts else []
        except Exception as error:  # the tokenizers library raises no narrower class
            why = (
                f"tokens: the student's tokenizer cannot read some of the texts, which are set aside ({error}); "
                f"{CHARACTERS_PER_TOKEN} characters a token assumed"
            )
            if why not in said:
                said.append(why)
            return _guessed(texts)

    return count


def _guessed(texts: Sequence[str]) -> list[int]:
    return [max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for text in texts]


def _lengths(count: Count, texts: list[str]) -> Texts:
    lengths = count(texts[:SAMPLE]) or [1]
    return Texts(len(texts), float(np.mean(lengths)), int(max(lengths)))


def _within(length: int, limit: int | None) -> int:
    return length if limit is None else min(length, limit)


def _assumed(data: str, limit: int | None) -> tuple[Texts, float, float]:
    """Rows of so many tokens, and the mean tokens of their prompts and completions."""
    try:
        rows, prompt, completion = (float(part) for part in data.split(":"))
    except ValueError:
        raise ConfigError(f"--data {data!r} is not ROWS:PROMPT:COMPLETION (rows, and mean tokens of each).") from None
    if not (1 <= rows <= MOST_ROWS and rows.is_integer()):
        raise ConfigError(f"--data {data!r}: rows are a whole number from 1 to {MOST_ROWS:,}.")
    if not all(0 < tokens <= MOST_TOKENS for tokens in (prompt, completion)):
        raise ConfigError(f"--data {data!r}: mean tokens are numbers above 0, at most {MOST_TOKENS:,}.")
    whole = prompt + completion
    if limit is not None and whole > limit:
        raise ConfigError(
            f"--data {data!r}: rows of {whole:g} tokens on average are longer than the {limit} that a row may have "
            "(rollouts.max_tokens, or else the student's context)."
        )
    return Texts(int(rows), whole, _within(max(round(4 * whole), 2), limit)), prompt, completion


def _benchmark(study: Study, benchmark: Benchmark, count: Count, said: list[str]) -> Texts:
    """Problems of a benchmark; of one that is not here, nothing is known but its limit."""
    try:
        asked = [problem.prompt for problem in benchmark_problems(study, benchmark, max_set_aside=1.0)]
    except RaygeoError as error:
        said.append(f"benchmark {benchmark.name}: {error}; left out of the plan")
        return Texts(0, 1.0, 1)
    return _lengths(count, asked)


def _read(study: Study, count: Count, limit: int | None, said: list[str]) -> tuple[Texts, int, float, float]:
    """Rows, distinct prompts, mean prompt and completion tokens of the files: the first rows tokenised, all counted."""
    prompts: list[str] = []
    completions: list[str] = []
    distinct: set[int] = set()
    rows = 0
    for prompt, completion in _texts(study):
        rows += 1
        distinct.add(hash(prompt))
        if len(prompts) < SAMPLE:
            prompts.append(prompt)
            completions.append(completion)
    heads, tails = np.array(count(prompts), dtype=float), np.array(count(completions), dtype=float)
    lengths = heads + tails + 1
    fitting = lengths <= limit if limit is not None else np.ones(len(lengths), dtype=bool)
    if not fitting.any():
        said.append("data: no row can be used")
        return Texts(1, 2.0, 2), 1, 1.0, 1.0
    share = float(fitting.mean())
    kept = round(rows * share)
    whole = rows == len(prompts)
    how = "all tokenised" if whole else f"the first {len(prompts):,} tokenised, all counted"
    without = f", {1 - share:.1%} longer than {limit} tokens left out" if share < 1 else ""
    said.append(f"data: {rows:,} rows ({how}){without}")
    longest = int(lengths[fitting].max()) if whole or limit is None else limit
    if not whole and limit is not None:
        said.append(f"longest row: taken to be the limit of {limit} tokens, as not all rows were tokenised")
    texts = Texts(kept, float(lengths[fitting].mean()), longest)
    return texts, len(distinct), float(heads[fitting].mean()), float(tails[fitting].mean()) + 1


def _texts(study: Study) -> Iterator[tuple[str, str]]:
    """Prompt and completion of every readable row."""
    for reader in study.rollouts.read:
        for record in reader.rollouts():
            values = record.values or {}
            prompt, completion = values.get("prompt"), values.get("completion")
            if record.error is None and isinstance(prompt, str) and isinstance(completion, str):
                yield prompt, completion
