"""What a renderer does, whatever form prompts are given to a model in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from raygeo.models.batches import TokenSequence

MARKS = (
    "prompts with their own beginning-of-text",
    "prompts with special tokens inside",
    "prompts that ended in end-of-text",
    "completions with their own end",
    "completions with special tokens inside",
)
"""What ``own_marks`` may find, in its words."""


class Renderer(ABC):
    """Turns prompts and completions into the tokens of one tokenizer, and tokens into text.

    ``identity`` is its ``form`` and what tokens depend on beside the tokenizer, and a part of every content key that
    depends on tokens; ``revision`` counts the ways equal texts have become tokens, and is among the key's revisions.
    """

    form: ClassVar[str]
    revision: ClassVar[int]
    identity: str

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @property
    def pad_id(self) -> int:
        """The token that batches are padded with."""
        return int(self.tokenizer.pad_token_id)

    @property
    def opened(self) -> str:
        """The opening of a thought with which a prompt ends as a model is given it; nothing for most."""
        return ""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: end-of-text, and whatever else the model's generation settings end at.

        ``load_tokenizer`` puts the latter on the tokenizer.
        """
        return tuple(dict.fromkeys([self.tokenizer.eos_token_id, *getattr(self.tokenizer, "stop_ids", ())]))

    def encode(self, prompt: str, completion: str, *, ended: bool = True) -> TokenSequence:
        """Tokens of ``prompt`` and ``completion``; one that ``ended`` gets its own end, or the renderer's."""
        head = self.prompt_ids(prompt)
        ids = [*head, *self.completion_ids(completion, ended)]
        return TokenSequence(np.asarray(ids, dtype=np.int64), len(head))

    def encode_many(self, pairs: Sequence[tuple[str, str]]) -> list[TokenSequence]:
        """``encode`` of each prompt and ended completion."""
        return [self.encode(*pair) for pair in pairs]

    @abstractmethod
    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt as a model is given it."""

    @abstractmethod
    def unfit_prompt(self, prompt: str) -> str | None:
        """Why a prompt cannot be put to a model in this form, or None; ``prompt_ids`` refuses it with ``DataError``."""

    @abstractmethod
    def completion_ids(self, completion: str, ended: bool = True) -> list[int]:
        """Tokens of a completion right behind a prompt, with its end, which is one token, if it ``ended``."""

    @abstractmethod
    def text_behind(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add behind a prompt; special tokens add none."""

    @abstractmethod
    def end_text(self, end: int) -> str:
        """What has to stand behind a text for ``completion_ids`` to end it with the token ``end``, perhaps nothing."""

    @property
    @abstractmethod
    def end_texts(self) -> list[str]:
        """What a text may hold at its end for a token that ends completions, sorted."""

    @abstractmethod
    def without_end(self, completion: str) -> str:
        """The completion without the ends that stand behind it."""

    @abstractmethod
    def own_marks(self, prompt: str, completion: str) -> list[str]:
        """Which special tokens the texts hold as text, in the words of ``MARKS``: each is counted, whatever is done."""

    @abstractmethod
    def unfit_completion(self, completion: str, ids: Sequence[int]) -> str | None:
        """Why no model could have written a completion, of tokens ``ids`` with its end, or None."""
