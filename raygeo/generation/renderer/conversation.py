"""Conversations of several messages as one text each, so that a prompt is a text wherever it is kept or compared."""

import json
from collections.abc import Mapping, Sequence

_BEGINS = '[{"role":'


def conversation_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that stands for ``messages``, each with a ``role`` and a ``content``.

    One message of the user is its content; anything else is the canonical JSON of the list.
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return _canonical(messages)


def is_conversation(prompt: str) -> bool:
    """Whether a prompt is the canonical JSON of messages."""
    return _parsed(prompt) is not None


def messages_of(prompt: str) -> list[dict[str, str]]:
    """The messages that a prompt stands for: those of a conversation, else one of the user."""
    return _parsed(prompt) or [{"role": "user", "content": prompt}]


def _parsed(prompt: str) -> list[dict[str, str]] | None:
    if not prompt.startswith(_BEGINS):
        return None
    try:
        found = json.loads(prompt)
        same = _canonical(found) == prompt
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = all(isinstance(text, str) for message in found for text in message.values())
    return found if same and texts else None


def _canonical(messages: Sequence[Mapping[str, str]]) -> str:
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
