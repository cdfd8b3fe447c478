"""Prompts that a model reads as they are written, and its completions right behind."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from raygeo.errors import DataError
from raygeo.generation.renderer.base import MARKS, Renderer
from raygeo.generation.renderer.conversation import is_conversation
from raygeo.models.batches import TokenSequence

_TOGETHER = 64
_LEADS = ("\n", ".", "a", "0")
_PROBES = ("a", " a", "0", " 0", "- a", "\\a")


class PlainRenderer(Renderer):
    """A model reads the prompt as it is written, and its completion right behind.

    Prompt and completion are tokenised apart, so that their boundary is exact, and as parts of one text, so that a
    tokenizer that marks the beginnings of words does not mark the completion's. A sequence begins as the tokenizer
    begins its texts, with one beginning-of-text token if there is any; nothing stands between prompt and completion; a
    completion that ended by itself has one end. Marks of its own that a text holds at these places are taken for them,
    not added to them (``own_marks`` names them). Special tokens elsewhere in a prompt are its author's, and stay.
    """

    form = "plain"
    revision = 2
    identity = form
    _known: Mapping[str, list[int]] = MappingProxyType({})
    """Tokens of texts that were tokenised together."""

    def encode_many(self, pairs: Sequence[tuple[str, str]]) -> list[TokenSequence]:
        """``encode`` of each prompt and ended completion, tokenised ``_TOGETHER`` at a time."""
        lead = self._leads[0][0] if self._leads else ""
        found = []
        for start in range(0, len(pairs), _TOGETHER):
            few = pairs[start : start + _TOGETHER]
            texts = [text for p, c in few for text in (self._split_prompt(p)[1], lead + self._split_end(c)[0])]
            texts = list(dict.fromkeys(texts))
            self._known = dict(zip(texts, self.tokenizer(texts, add_special_tokens=False).input_ids, strict=True))
            found += super().encode_many(few)
        self._known = {}
        return found

    @property
    def end_id(self) -> int:
        """The token that ends a completion which brings no end of its own: end-of-text."""
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt as a model is given it: what the tokenizer puts before a text, and the text.

        Raises:
            DataError: the prompt is a conversation.
        """
        if (why := self.unfit_prompt(prompt)) is not None:
            raise DataError(f"{why} ({prompt[:80]!r}).")
        start, (own, body, _) = self._start, self._split_prompt(prompt)
        if own and self.tokenizer.bos_token_id not in start:
            start = [self.tokenizer.bos_token_id]
        return [*start, *self._plain_ids(body)]

    def unfit_prompt(self, prompt: str) -> str | None:
        """A conversation of several messages has no one text."""
        if is_conversation(prompt):
            return "prompt is a conversation of several messages, which only a student with a chat template can read"
        return None

    def completion_ids(self, completion: str, ended: bool = True) -> list[int]:
        """Tokens of a completion right behind a prompt, with its own end or ``end_id`` if it ``ended``."""
        body, end = self._split_end(completion)
        ids = self._ids_behind_text(body)
        return [*ids, self.end_id if end is None else end] if ended else ids

    def text_behind(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add behind a prompt; special tokens add none."""
        for lead, lead_ids in self._leads:
            text = self._decode([*lead_ids, *ids])
            if text.startswith(lead):
                return text.removeprefix(lead)
        return self._decode(ids)

    def end_text(self, end: int) -> str:
        """The text of the token ``end``; ``end_id`` needs none."""
        return "" if end == self.end_id else str(self.tokenizer.decode(end))

    @property
    def end_texts(self) -> list[str]:
        """The ends that stand in texts as they are written, sorted."""
        return sorted(self._ends)

    def without_end(self, completion: str) -> str:
        """The completion without the ends that stand behind it."""
        return self._split_end(completion)[0]

    def own_marks(self, prompt: str, completion: str) -> list[str]:
        """Which special tokens the texts hold as text, in the words of ``MARKS``."""
        bos, body, prompt_end = self._split_prompt(prompt)
        written, end = self._split_end(completion)
        found = (bos, self._holds_special(body), prompt_end, end is not None, self._holds_special(written))
        return [mark for mark, held in zip(MARKS, found, strict=True) if held]

    def unfit_completion(self, completion: str, ids: Sequence[int]) -> str | None:
        """Why no model could have written a completion, of tokens ``ids`` with its end, or None."""
        if not self.without_end(completion).strip():
            return "completion holds nothing but its end"
        if not set(self._ends.values()).isdisjoint(ids[:-1]):
            return "completion continues behind an end-of-text token"
        if self.tokenizer.bos_token_id not in (None, *self.stop_ids) and self.tokenizer.bos_token_id in ids:
            return "completion holds a beginning-of-text token"
        return None

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _holds_special(self, text: str) -> bool:
        return self._special is not None and self._special.search(text) is not None

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        """Finds the tokens that the tokenizer takes for special wherever they stand in a text."""
        found = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        texts = sorted(found | set(map(str, self.tokenizer.all_special_tokens)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def _plain_ids(self, text: str) -> list[int]:
        known = self._known.get(text)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids if known is None else known)

    @cached_property
    def _start(self) -> list[int]:
        """What the tokenizer puts before a text."""
        for text, body in self._tokenised(_PROBES):
            framed = list(self.tokenizer(text).input_ids)
            for place in range(len(framed) - len(body) + 1):
                if body and framed[place : place + len(body)] == body:
                    return framed[:place]
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [i for i in self.tokenizer("").input_ids if i == bos]

    @cached_property
    def _leads(self) -> list[tuple[str, list[int]]]:
        """Texts, with their tokens, behind which the tokenizer puts no word-start mark; none where it never does."""
        found = []
        for lead, lead_ids in self._tokenised(_LEADS):
            behind = [(list(ids), self._plain_ids(lead + text)) for text, ids in self._tokenised(_PROBES)]
            whole = all(joined[: len(lead_ids)] == lead_ids for _, joined in behind)
            marked = any(joined[len(lead_ids) :] != ids for ids, joined in behind)
            if whole and marked and lead_ids and self.tokenizer.decode(lead_ids) == lead:
                found.append((lead, lead_ids))
        return found

    def _tokenised(self, texts: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
        """The texts that the tokenizer knows the words of, with their tokens."""
        for text in texts:
            try:
                yield text, self._plain_ids(text)
            except Exception:  # the tokenizers library raises no narrower class
                continue

    def _ids_behind_text(self, text: str) -> list[int]:
        """Tokens of a text that stands right behind another one."""
        for lead, lead_ids in self._leads:
            ids = self._plain_ids(lead + text)
            if ids[: len(lead_ids)] == lead_ids:
                return ids[len(lead_ids) :]
        return self._plain_ids(text)

    def _split_prompt(self, prompt: str) -> tuple[bool, str, bool]:
        """Whether a prompt has its own beginning-of-text, the prompt without, and whether end-of-text stood behind."""
        body, own, ended = prompt, False, False
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        while bos and body.startswith(bos):
            body, own = body.removeprefix(bos), True
        while eos != bos and body.endswith(eos):
            body, ended = body.removesuffix(eos), True
        return own, body, ended

    @cached_property
    def _ends(self) -> dict[str, int]:
        """The ends that stand in texts as they are written: end-of-text, and stops that are special tokens."""
        tokenizer = self.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {tokenizer.eos_token_id}
        return {str(tokenizer.convert_ids_to_tokens(end)): end for end in self.stop_ids if end in special}

    def _split_end(self, completion: str) -> tuple[str, int | None]:
        """The completion without the ends that stand behind it, and the first of those."""
        body, first = completion, None
        while (found := next((end for end in self._ends if body.rstrip().endswith(end)), None)) is not None:
            body, first = body.rstrip().removesuffix(found), self._ends[found]
        return body, first
