"""Where rollouts and prompts come from: one settings model a format, each yielding records lazily."""

import hashlib
import io
import json
import logging
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.dataset
from pyarrow import fs
from pydantic import Field, field_validator

from raygeo.errors import DataError
from raygeo.rollouts.grading import gold_answer
from raygeo.rollouts.validation import (
    SNIPPET_CHARACTERS,
    PromptIdentities,
    Record,
    Rejection,
    gold_text,
    identifier,
    optional_text,
    refuse_too_many,
    rejection_row,
    required_text,
)
from raygeo.settings import Settings
from raygeo.workload import Rows

_log = logging.getLogger(__name__)
_ROLLOUT_FIELDS = (
    "prompt",
    "completion",
    "gold",
    "reward",
    "correct",
    "truncated",
    "prompt_id",
    "sample",
    "source",
    "logprobs",
)
_PROMPT_FIELDS = ("prompt", "gold", "solution", "prompt_id")
_PUBLISHED_MARKER = re.compile(r"A:[ \t]*")


class Fields(Settings):
    """The key of each field in a record; ``meta.score`` looks into nested records, ``samples.0`` into lists.

    ``prompt`` and ``completion`` must be there. Any other field must be there if another key than the default is given
    for it, and may be absent otherwise.
    """

    prompt: str = "prompt"
    completion: str = "completion"
    gold: str = "gold"
    """The gold answer, or a text that ends in it."""
    solution: str = "solution"
    """A worked solution of the problem (prompts only)."""
    reward: str = "reward"
    correct: str = "correct"
    truncated: str = "truncated"
    """True when the completion was cut by a length limit."""
    prompt_id: str = "prompt_id"
    sample: str = "sample"
    source: str = "source"
    """Who wrote the completion; by default the name of the file or data set."""
    logprobs: str = "logprobs"
    """Log-probabilities of the completion's tokens under the model that wrote it, at its sampling temperature: a list
    with one number a token, end-of-text included unless the completion was cut."""

    def pick(self, raw: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return the values of ``names`` found in ``raw``; raise ``Rejection`` when a required one is missing."""
        values = {name: _look_up(raw, getattr(self, name)) for name in names}
        for name in names:
            key = getattr(self, name)
            required = name in ("prompt", "completion") or key != type(self).model_fields[name].default
            if required and values[name] is None:
                raise Rejection(f"missing field {key!r}")
        return values

    def columns(self) -> set[str]:
        """Return the top-level columns that may be needed of a columnar file."""
        paths = {getattr(self, name) for name in type(self).model_fields}
        return paths | {path.partition(".")[0] for path in paths}


class Reader(Settings):
    """The base of all readers."""

    template: str = "{prompt}"
    """The text a model is given, with ``{prompt}`` where the question stands."""
    limit: int | None = Field(default=None, ge=1)
    """Read only this many records, the first ones."""

    @field_validator("template")
    @classmethod
    def _has_one_prompt(cls, template: str) -> str:
        if template.count("{prompt}") != 1:
            raise ValueError("the template must contain {prompt} exactly once")
        return template

    def rollouts(self) -> Iterator[Record]:
        """Yield rollouts. Raises ``DataError`` when the source cannot be opened; bad records are yielded as errors."""
        return self._convert(self._rollouts)

    @abstractmethod
    def fingerprint(self) -> str:
        """A key of what would be read: the content of files, or the name and revision of a data set."""

    @abstractmethod
    def _raw(self) -> Iterator[Record]:
        """Yield records whose ``values`` are as found."""

    @abstractmethod
    def _rollouts(self, record: Record) -> Iterator[Record]:
        """Convert one readable raw record to rollouts; may raise ``Rejection``."""

    def _convert(self, convert: Any) -> Iterator[Record]:
        for record in islice(self._raw(), self.limit):
            if record.error is not None:
                yield record
                continue
            try:
                yield from convert(record)
            except Rejection as reason:
                yield _failed(record, str(reason))

    def _with(self, record: Record, values: Mapping[str, Any]) -> Record:
        prompt = values["prompt"]
        if isinstance(prompt, str) and prompt.strip():  # a blank question must stay visible under any template
            values = {**values, "prompt": self.template.replace("{prompt}", prompt)}
        return Record(record.origin, record.line, values, text=record.text)


class PromptReader(Reader):
    """A reader that also gives prompts with gold answers, for benchmarks and for sampling."""

    def prompts(self) -> Iterator[Record]:
        """Yield prompts: the fields prompt, gold, solution and prompt_id."""
        return self._convert(self._prompts)

    @abstractmethod
    def _prompts(self, record: Record) -> Iterator[Record]:
        """Convert one readable raw record to prompts; may raise ``Rejection``."""


class _MappedReader(PromptReader):
    """A reader of records whose fields the user names."""

    fields: Fields = Fields()
    """Which key holds which field."""

    def _rollouts(self, record: Record) -> Iterator[Record]:
        values = self.fields.pick(record.values, _ROLLOUT_FIELDS)
        if values["source"] is None:
            values["source"] = Path(record.origin).stem
        yield self._with(record, values)

    def _prompts(self, record: Record) -> Iterator[Record]:
        yield self._with(record, self.fields.pick(record.values, _PROMPT_FIELDS))


class JsonlReader(_MappedReader):
    """JSON lines, possibly compressed (``.gz``, ``.zst``, ``.bz2``)."""

    type: Literal["jsonl"] = "jsonl"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return _hash_files(self.path)

    def _raw(self) -> Iterator[Record]:
        return _json_lines(self.path)


class ParquetReader(_MappedReader):
    """Parquet files."""

    type: Literal["parquet"] = "parquet"
    path: str | tuple[str, ...]
    """Files or folders of files, as paths or as URIs that pyarrow understands."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return _hash_files(self.path)

    def _raw(self) -> Iterator[Record]:
        wanted = self.fields.columns()
        for path in _paths(self.path):
            filesystem, name = _locate(path)
            try:
                dataset = pa.dataset.dataset(name, filesystem=filesystem, format="parquet")
                columns = [column for column in dataset.schema.names if column in wanted]
                for fragment in dataset.get_fragments():
                    batches = fragment.to_batches(schema=dataset.schema, columns=columns)
                    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
                    for line, values in enumerate(rows, 1):
                        yield Record(fragment.path, line, values)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"cannot read {path} as Parquet: {error}") from error


class DatasetsReader(_MappedReader):
    """A Hugging Face data set: a local folder, or a name on the hub (the only reader that may use the network)."""

    type: Literal["datasets"] = "datasets"
    name: str
    """A folder of data files, a folder made by ``save_to_disk``, or a hub name such as ``openai/gsm8k``."""
    subset: str | None = None
    """The data set's configuration, ``main`` for ``openai/gsm8k``."""
    split: str = "train"
    revision: str | None = None
    """Commit or tag on the hub; give one to be reproducible."""

    def fingerprint(self) -> str:
        """The fingerprint that ``datasets`` keeps of the split."""
        return str(self._load()._fingerprint)

    def _raw(self) -> Iterator[Record]:
        dataset = self._load()
        wanted = self.fields.columns()
        dataset = dataset.select_columns([column for column in dataset.column_names if column in wanted])
        for line, values in enumerate(dataset, 1):
            yield Record(self.name, line, values)

    def _load(self) -> Any:
        import datasets

        folder = Path(self.name).expanduser()
        if self.name.startswith(("/", ".", "~")) and not folder.is_dir():
            raise DataError(f"there is no folder {self.name}; for a single file use the reader 'jsonl' or 'parquet'")
        try:
            if (folder / "dataset_dict.json").exists():
                return datasets.load_from_disk(str(folder))[self.split]
            if (folder / "state.json").exists():
                return datasets.load_from_disk(str(folder))
            name = str(folder) if folder.is_dir() else self.name
            return datasets.load_dataset(name, self.subset, split=self.split, revision=self.revision)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"cannot load split {self.split!r} of the data set {self.name!r}: {error}") from error


class Gsm8kReader(PromptReader):
    """GSM8K's own JSON lines (``question``, ``answer`` ending in ``#### 18``).

    As rollouts, every gold solution is one correct completion whose source is "gold".
    """

    type: Literal["gsm8k"] = "gsm8k"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return _hash_files(self.path)

    def _raw(self) -> Iterator[Record]:
        return _json_lines(self.path)

    def _rollouts(self, record: Record) -> Iterator[Record]:
        question, answer, gold = self._problem(record)
        values = {"prompt": question, "completion": answer, "gold": gold, "correct": True, "source": "gold"}
        yield self._with(record, values)

    def _prompts(self, record: Record) -> Iterator[Record]:
        question, answer, gold = self._problem(record)
        yield self._with(record, {"prompt": question, "gold": gold, "solution": answer})

    @staticmethod
    def _problem(record: Record) -> tuple[str, str, str]:
        question, answer = (required_text(record.values, name) for name in ("question", "answer"))
        gold = gold_answer(answer)
        if gold is None:
            raise Rejection("answer has no number after '####'")
        return question, answer, gold


class SolutionsReader(Reader):
    """Model solutions as published with GSM8K: every model's solution of a problem is one rollout, already graded.

    A record holds ``question``, ``ground_truth`` and, under each model's name, ``solution`` and ``is_correct``; all of
    them end in ``A: 18``. The model's name becomes the source. A solution without that last line was cut by a length
    limit, and is marked as truncated.
    """

    type: Literal["solutions"] = "solutions"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""
    answer_marker: Literal["####", "A:"] = "####"
    """How the last line names the answer. The default writes ``#### 18`` as GSM8K's own solutions do, so that rollouts
    and gold solutions share one format; ``A:`` leaves the text as published."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return _hash_files(self.path)

    def _raw(self) -> Iterator[Record]:
        return _json_lines(self.path)

    def _rollouts(self, record: Record) -> Iterator[Record]:
        question = required_text(record.values, "question")
        gold = gold_answer(required_text(record.values, "ground_truth"))
        if gold is None:
            raise Rejection("ground_truth has no number after 'A:'")
        models = {name: value for name, value in record.values.items() if isinstance(value, dict)}
        if not models:
            raise Rejection("no model's solution")
        for model, graded in models.items():
            try:
                completion, truncated = self._solution(required_text(graded, "solution"))
                if not isinstance(graded.get("is_correct"), bool):
                    raise Rejection("is_correct is not true or false")
            except Rejection as reason:
                yield _failed(record, str(reason))
                continue
            values = {
                "prompt": question,
                "completion": completion,
                "gold": gold,
                "correct": graded["is_correct"],
                "truncated": truncated,
                "source": model,
            }
            yield self._with(record, values)

    def _solution(self, text: str) -> tuple[str, bool]:
        head, newline, last = text.rstrip().rpartition("\n")
        marker = _PUBLISHED_MARKER.match(last)
        if marker is None:
            return text, True
        return (text if self.answer_marker == "A:" else f"{head}{newline}#### {last[marker.end() :]}"), False


AnyReader = Annotated[
    JsonlReader | ParquetReader | DatasetsReader | Gsm8kReader | SolutionsReader, Field(discriminator="type")
]
AnyPromptReader = Annotated[JsonlReader | ParquetReader | DatasetsReader | Gsm8kReader, Field(discriminator="type")]


@dataclass(frozen=True)
class Prompt:
    """A problem: what the model is given, the answer it is graded against, and a worked solution if there is one."""

    prompt_id: str
    prompt: str
    gold: str
    solution: str | None


def read_prompts(reader: PromptReader, *, max_rejected: float = 0.0) -> list[Prompt]:
    """Read problems in order; the ids are given ones or hashes of the prompts, so they are unique.

    Raises ``DataError`` when more than the share ``max_rejected`` of records is unusable (blank, without gold answer,
    or a problem that already occurred), by default at the first one: a benchmark is read whole or not at all.
    """
    rejected: Rows = []
    identities = PromptIdentities()
    prompts: dict[str, Prompt] = {}
    for record in reader.prompts():
        try:
            prompt = _prompt(record, identities)
            if prompt.prompt_id in prompts:
                raise Rejection("prompt occurs in an earlier record")
            prompts[prompt.prompt_id] = prompt
        except Rejection as reason:
            rejected.append(rejection_row(record, str(reason)))
    total = len(prompts) + len(rejected)
    refuse_too_many(rejected, total, max_rejected, "prompts")
    if rejected:
        _log.warning("%d of %d prompts could not be used", len(rejected), total)
    return list(prompts.values())


def _prompt(record: Record, identities: PromptIdentities) -> Prompt:
    if record.error is not None:
        raise Rejection(record.error)
    text = required_text(record.values, "prompt")
    gold = gold_text(record.values)
    if gold is None:
        raise Rejection("missing field 'gold'")
    prompt_id = identities.identify(text, identifier(record.values))
    return Prompt(prompt_id, text, gold, optional_text(record.values, "solution"))


def _failed(record: Record, reason: str) -> Record:
    return Record(record.origin, record.line, record.values, error=reason, text=record.text)


def _look_up(raw: Any, path: str) -> Any:
    """Return the value at a dotted ``path``; None when it is absent. A key that itself contains dots goes first."""
    if isinstance(raw, Mapping) and path in raw:
        return raw[path]
    for part in path.split("."):
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list) and part.isdecimal() and int(part) < len(raw):
            raw = raw[int(part)]
        else:
            return None
    return raw


def _paths(path: str | tuple[str, ...]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else path


def _locate(path: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path on it."""
    try:
        if "://" in path:
            filesystem, name = fs.FileSystem.from_uri(path)
        else:
            filesystem, name = fs.LocalFileSystem(), str(Path(path).expanduser().resolve())
        found = filesystem.get_file_info(name).type != fs.FileType.NotFound
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot open {path}: {error}") from error
    if not found:
        raise DataError(f"there is no file {path}")
    return filesystem, name


def _hash_files(path: str | tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for each in _paths(path):
        filesystem, name = _locate(each)
        info = filesystem.get_file_info(name)
        files = [info] if info.is_file else filesystem.get_file_info(fs.FileSelector(name, recursive=True))
        for file in sorted(f.path for f in files if f.is_file):
            with filesystem.open_input_stream(file) as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _json_lines(path: str | tuple[str, ...]) -> Iterator[Record]:
    for each in _paths(path):
        filesystem, name = _locate(each)
        try:
            with filesystem.open_input_stream(name) as stream:
                for line, content in enumerate(io.BufferedReader(stream), 1):
                    if content.strip():
                        yield _json_line(each, line, content)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {each}: {error}") from error


def _json_line(origin: str, line: int, content: bytes) -> Record:
    text = content[: 4 * SNIPPET_CHARACTERS].decode("utf-8-sig", errors="backslashreplace")[:SNIPPET_CHARACTERS].strip()
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Record(origin, line, error="not UTF-8", text=text)
    except (ValueError, RecursionError):
        return Record(origin, line, error="not JSON", text=text)
    if not isinstance(values, dict):
        return Record(origin, line, error="not a JSON object", text=text)
    return Record(origin, line, values, text=text)
