"""Selective self-to-supervised fine-tuning: the student's own answer where it is right, another's where it is not."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from raygeo.errors import DataError
from raygeo.losses.base import Selection
from raygeo.losses.imitation import Imitation
from raygeo.losses.selection import Group


class S3FT(Imitation):
    """Negative log-likelihood, for each prompt, of a correct rollout of the student's own or, failing that, of another.

    Who wrote a rollout is said by its ``source``. A prompt without a correct rollout of either is left out. The paper
    asks the student once, and where that answer is wrong it first tries a paraphrase of the gold answer in the
    student's words; here any of the student's rollouts may be the right one, and nothing is paraphrased. The student's
    rollouts are data: they are those of the model that you sampled, and are not drawn anew while it learns, but in
    rounds, where all are its own.
    """

    title: ClassVar[str] = "S3FT"
    paper: ClassVar[str] = "Gupta et al. 2025, arXiv:2502.08130, without its paraphrases"
    formula: ClassVar[str] = "-1[correct and (own, or no own is correct)] sum_t log p_t"
    order: ClassVar[int] = 190
    in_groups: ClassVar[bool] = False
    variants: ClassVar = (*Imitation.variants, {"max_per_prompt": None})

    type: Literal["s3ft"] = "s3ft"
    """Names the loss."""

    own: str = "student"
    """The ``source`` of rollouts that the student wrote; ``rollouts.sample`` with ``teacher: student`` writes
    ``student``."""

    max_per_prompt: int | None = Field(default=1, ge=1)
    """Keep only the first so many rollouts of a prompt in table order; null keeps all."""

    def select(self, rollouts: pa.Table) -> Selection:
        """Choose rollouts; ``own_rows`` counts those of the student's own.

        Raises:
            DataError: no rollout is the student's own, or none is correct.
        """
        sources = rollouts.column("source").to_pylist()
        if self.own not in sources:
            found = ", ".join(sorted({repr(source) for source in sources})[:5]) or "none"
            raise DataError(
                f"{self.title} finds nothing to learn from: the student wrote none of {len(sources)} rollouts. Their "
                f"source would be {self.own!r}, and is {found}. Name the field that says who wrote a rollout "
                "(rollouts.read, fields: source), or give what it says of the student's as the loss's option own."
            )
        selection = super().select(rollouts)
        own = sum(sources[row] == self.own for example in selection.examples for row in example.rows)
        return Selection(selection.examples, selection.counts | {"own_rows": own})

    def row_weights(self, group: Group) -> Sequence[float | None]:
        """One for the rollouts chosen, none for others."""
        correct = [(row, by) for row, ok, by in zip(group.rows, group.correct, group.sources, strict=True) if ok]
        own = [row for row, by in correct if by == self.own]
        chosen = (own or [row for row, _ in correct])[: self.max_per_prompt]
        return [1.0 if row in chosen else None for row in group.rows]
