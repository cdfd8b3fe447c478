"""Problems with gold answers under the names that published benchmarks give them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from raygeo.data.grading import gold_answer
from raygeo.data.readers.base import PromptReader
from raygeo.data.readers.csv import csv_rows
from raygeo.data.readers.datasets import DatasetsReader
from raygeo.data.readers.files import hash_lines, hash_paths, json_lines
from raygeo.data.readers.parquet import ParquetReader
from raygeo.data.shapes.convert import gold_of
from raygeo.data.validation import Record, SetAside
from raygeo.errors import DataError

_PROMPTS = ("prompt", "question", "problem")
_GOLDS = ("gold", "answer", "final_answer", "expected_answer", "ground_truth")
_IDS = ("prompt_id", "unique_id", "problem_id", "id")
_CSV = (".csv", ".csv.gz", ".csv.zst", ".csv.bz2")
_SUBSETS = {"openai/gsm8k": "main"}


class ProblemsReader(PromptReader):
    """A benchmark by its file or its name on the hub: GSM8K, MATH-500, AIME and whatever has columns like theirs.

    The question is read from ``prompt``, ``question`` or ``problem``, the gold answer from ``gold``, ``answer``,
    ``final_answer``, ``expected_answer`` or ``ground_truth``, the first that there is; of an answer that ends in
    ``#### 18``, as GSM8K's do, the number is the gold answer and the whole a worked solution.
    """

    type: Literal["problems"] = "problems"
    path: str
    """A file (``.jsonl``, ``.parquet``, ``.csv``), or a name on the hub (``HuggingFaceH4/MATH-500``)."""
    subset: str | None = None
    """The data set's configuration on the hub."""
    split: str | None = None
    """The split on the hub: by default ``test``, or ``train`` where there is none."""

    def fingerprint(self) -> str:
        """SHA-256 of the file, or the fingerprint that ``datasets`` keeps of the split."""
        if not self._is_file:
            return str(self._loaded()._fingerprint)
        return hash_paths(self.path) if self.path.endswith((".parquet", *_CSV)) else hash_lines(self.path)

    @property
    def _is_file(self) -> bool:
        return self.path.endswith((".json", ".jsonl", ".gz", ".zst", ".bz2", ".parquet", *_CSV))

    def _raw(self) -> Iterator[Record]:
        if self.path.endswith(".parquet"):
            yield from ParquetReader(path=self.path)._raw()
        elif self.path.endswith(_CSV):
            yield from csv_rows(self.path)
        elif self._is_file:
            yield from json_lines(self.path)
        else:
            for line, values in enumerate(self._loaded(), 1):
                yield Record(self.path, line, values)

    def _loaded(self) -> Any:
        place = Path(self.path).expanduser()
        if "/" not in self.path or place.is_file() or (self.path.startswith(("/", ".", "~")) and not place.is_dir()):
            raise DataError(
                f"{self.path!r} is neither a .jsonl, .parquet or .csv file nor a name on the hub (owner/name)."
            )
        subset = self.subset or _SUBSETS.get(self.path)
        first: DataError | None = None
        for split in (self.split,) if self.split else ("test", "train"):
            try:
                return DatasetsReader(name=self.path, subset=subset, split=split)._load()
            except DataError as error:
                first = first or error
        assert first is not None
        raise first

    def _rollouts(self, record: Record) -> Iterator[Record]:
        raise SetAside("a problem has no completion to learn from")

    def _prompts(self, record: Record) -> Iterator[Record]:
        values = record.values
        prompt, gold = _first(values, _PROMPTS), gold_of(_first(values, _GOLDS))
        solution = values.get("solution")
        if isinstance(gold, str) and "####" in gold:
            solution, gold = gold, gold_answer(gold)
        gold = str(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) else gold
        names = {"prompt": prompt, "gold": gold, "solution": solution, "prompt_id": _first(values, _IDS, needed=False)}
        yield self._with(record, names)


def _first(values: Mapping[str, Any], names: tuple[str, ...], *, needed: bool = True) -> Any:
    """The value of the first of ``names`` that has one.

    Raises:
        SetAside: none has, and one is ``needed``.
    """
    for name in names:
        if values.get(name) is not None:
            return values[name]
    if needed:
        raise SetAside(f"no field {', '.join(names[:-1])} or {names[-1]}")
    return None
