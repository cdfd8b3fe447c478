"""The tokenizer of these problems: characters, but for what the questions of a family have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from raygeo.toy.gym.family import Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<bos>", "<eos>")
ANSWER = "#### "
CHARACTERS = "\n" + "".join(map(chr, range(0x20, 0x7F))) + "".join(map(chr, range(0xC0, 0x100)))
"""Printable ASCII, and the letters of Latin-1."""


def gym_tokenizer(families: Iterable[Family]) -> PreTrainedTokenizerFast:
    """One token a character, a phrase or noun of ``families``, or ``#### ``; prompts begin with ``<bos>``.

    Text and tokens map onto each other exactly. A character that is not in ``CHARACTERS`` raises ``Exception``.
    """
    from transformers import PreTrainedTokenizerFast

    families = list(families)
    phrases = _longest_first([ANSWER, *(phrase for family in families for phrase in family.phrases)])
    nouns = _longest_first(noun for family in families for noun in family.nouns)
    known = dict.fromkeys([*SPECIAL, *CHARACTERS, *phrases, *nouns])
    vocabulary = {token: number for number, token in enumerate(known)}
    behind_numbers = [f"(?<=[0-9] )(?:{'|'.join(map(re.escape, nouns))})"] if nouns else []
    patterns = [*map(re.escape, phrases), *behind_numbers, r"[\s\S]"]
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


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted(set(texts), key=lambda text: (-len(text), text))
