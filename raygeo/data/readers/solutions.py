"""The model solutions published with GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""

import re
from collections.abc import Iterator
from typing import Literal

from raygeo.data.grading import gold_answer
from raygeo.data.readers.base import Reader, failed
from raygeo.data.readers.files import hash_lines, json_lines
from raygeo.data.validation import Record, SetAside, required_text

_PUBLISHED_MARKER = re.compile(r"A:[ \t]*")


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
        return hash_lines(self.path)

    def _raw(self) -> Iterator[Record]:
        return json_lines(self.path)

    def _rollouts(self, record: Record) -> Iterator[Record]:
        question = required_text(record.values, "question")
        gold = gold_answer(required_text(record.values, "ground_truth"))
        if gold is None:
            raise SetAside("ground_truth has no number after 'A:'")
        models = {name: value for name, value in record.values.items() if isinstance(value, dict)}
        if not models:
            raise SetAside("no model's solution")
        for model, graded in models.items():
            try:
                completion, truncated = self._solution(required_text(graded, "solution"))
                if not isinstance(graded.get("is_correct"), bool):
                    raise SetAside("is_correct is not true or false")
            except SetAside as reason:
                yield failed(record, str(reason))
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
