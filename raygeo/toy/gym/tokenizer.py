"""The tokenizer of these problems: characters, but for what the questions of a family have in common."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from raygeo.toy.gym.families import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
ANSWER = "#### "
CHARACTERS = "\n" + "".join(map(chr, range(0x20, 0x7F))) + "".join(map(chr, range(0xC0, 0x100)))
"""Printable ASCII, and the letters of Latin-1."""


def gym_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: one token a character, a phrase or noun of a family, or ``#### ``; prompts begin ``<bos>``.

    Text and tokens map onto each other exactly. A character that is not in ``CHARACTERS`` raises ``Exception``.
    """
    from transformers import PreTrainedTokenizerFast

    phrases = _longest_first(ANSWER, *(phrase for family in FAMILIES.values() for phrase in family.phrases))
    nouns = _longest_first(*(noun for family in FAMILIES.values() for noun in family.nouns))
    known = dict.fromkeys([*SPECIAL, *CHARACTERS, *phrases, *nouns])
    vocabulary = {token: number for number, token in enumerate(known)}
    patterns = [*map(_literal, phrases), f"(?<=[0-9] )(?:{'|'.join(map(_literal, nouns))})", r"[\s\S]"]
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(patterns)), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def _longest_first(*texts: str) -> list[str]:
    return sorted(set(texts), key=lambda text: (-len(text), text))


def _literal(text: str) -> str:
    return re.escape(text)
