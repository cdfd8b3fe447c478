"""GSM8K as it is published (Cobbe et al. 2021, arXiv:2110.14168)."""

from collections.abc import Iterator
from typing import Literal

from raygeo.data.grading import gold_answer
from raygeo.data.readers.base import PromptReader
from raygeo.data.readers.files import hash_lines, json_lines
from raygeo.data.validation import Record, SetAside, required_text


class Gsm8kReader(PromptReader):
    """GSM8K's own JSON lines (``question``, ``answer`` ending in ``#### 18``).

    As rollouts, every gold solution is one correct completion whose source is "gold".
    """

    type: Literal["gsm8k"] = "gsm8k"
    path: str | tuple[str, ...]
    """Files, as paths or as URIs that pyarrow understands."""

    def fingerprint(self) -> str:
        """SHA-256 of the files."""
        return hash_lines(self.path)

    def _raw(self) -> Iterator[Record]:
        return json_lines(self.path)

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
            raise SetAside("answer has no number after '####'")
        return question, answer, gold
