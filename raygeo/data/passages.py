"""Texts that analyses are given in files of their own: passages of plain text, and prompts with completions."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from raygeo.data.readers.files import json_lines, locate
from raygeo.errors import DataError
from raygeo.models.batches import TokenSequence

MOST_BYTES = 1 << 28
"""The longest file of passages that is read."""


def read_passages(path: str, most: int) -> list[str]:
    """The first ``most`` passages of a UTF-8 text file, at a path or a URI: blank lines stand between them.

    Raises:
        DataError: there is no such file, it is not UTF-8, longer than ``MOST_BYTES``, or blank.
    """
    filesystem, name = locate(path)
    try:
        with filesystem.open_input_stream(name) as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(content) > MOST_BYTES:
        raise DataError(f"{path} has more than {MOST_BYTES >> 20} MiB; give a shorter file, a part of it.")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    passages = [passage.strip() for passage in re.split(r"\n\s*\n", text.replace("\r\n", "\n"))]
    found = [passage for passage in passages if passage][:most]
    if not found:
        raise DataError(f"{path} holds no text; give passages with blank lines between them.")
    return found


def read_pairs(path: str) -> list[tuple[str, str]]:
    """Prompts with completions of a file of JSON lines, at a path or a URI: the texts ``prompt`` and ``completion``.

    Raises:
        DataError: there is no such file, a line is not such an object, or there are fewer than two.
    """
    found = []
    for record in json_lines(path):
        pair = tuple(record.values.get(name) for name in ("prompt", "completion"))
        if record.error is not None or not all(isinstance(text, str) and text.strip() for text in pair):
            why = record.error or "no text 'prompt' and 'completion'"
            raise DataError(f'{path}, line {record.line}: {why}; each line is {{"prompt": ..., "completion": ...}}.')
        found.append((str(pair[0]), str(pair[1])))
    if len(found) < 2:
        raise DataError(f"{path} has {len(found)} lines; give at least two, one to train on and one to measure on.")
    return found


def passage_tokens(tokenizer: Any, passages: Sequence[str], most: int) -> list[TokenSequence]:
    """The first ``most`` tokens of each passage, the first of them as the prompt that the others follow.

    Where the tokenizer has a beginning-of-text token, that is the first. Passages of a single token are left out.

    Raises:
        DataError: no passage has two tokens, or the tokenizer has none for one.
    """
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    try:
        rows = [[*start, *tokenizer(passage, add_special_tokens=False)["input_ids"]][:most] for passage in passages]
    except Exception as error:  # the tokenizers library raises no narrower class
        why = f"the student's tokenizer has no tokens for some passage ({error}); give other texts."
        raise DataError(why) from error
    found = [TokenSequence(np.asarray(row, dtype=np.int64), 1) for row in rows if len(row) > 1]
    if not found:
        raise DataError("no passage has two tokens, so there is nothing to predict; give longer ones.")
    return found
