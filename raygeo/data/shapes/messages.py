"""Prompts and completions that come as messages, in the forms that data sets have them."""

from collections.abc import Mapping, Sequence
from typing import Any

from raygeo.data.validation import SetAside
from raygeo.generation.renderer.conversation import conversation_text

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def are_messages(value: Any) -> bool:
    """Whether ``value`` is a list of messages: ``role`` and ``content``, or ``from`` and ``value``."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)
    )


def as_messages(value: Any) -> Any:
    """A single message as a list of one; anything else is returned as it is."""
    return [value] if isinstance(value, Mapping) and are_messages([value]) else value


def prompt_text(value: Any) -> Any:
    """The prompt that a text or messages stand for; anything else is returned as it is."""
    return conversation_text(plain_messages(value)) if are_messages(value) else value


def completion_text(value: Any) -> Any:
    """The completion that a text or one message of the assistant stands for; anything else is returned as it is."""
    if not are_messages(value):
        return value
    found = plain_messages(value, thinking=True)
    if len(found) != 1 or found[0]["role"] != "assistant":
        raise SetAside("completion is not one message of the assistant")
    return found[0]["content"]


def split_conversation(value: Any) -> tuple[str, str]:
    """A conversation's prompt, and its last message, which must be the assistant's, as the completion."""
    if not are_messages(value):
        raise SetAside("messages are not a list of role and content")
    if len(value) < 2:
        raise SetAside("messages hold no prompt")
    return prompt_text(value[:-1]), completion_text(value[-1:])


def plain_messages(value: Sequence[Mapping[str, Any]], thinking: bool = False) -> list[dict[str, str]]:
    """Messages as role and text; with ``thinking``, what a message holds of it goes before its text, in a ``<think>``.

    Raises ``SetAside`` where one calls tools, or holds anything but text.
    """
    plain = []
    for message in value:
        role = str(message.get("role") or message.get("from"))
        if message.get("tool_calls"):
            raise SetAside("a message calls tools")
        text = _content(message["content"] if "content" in message else message.get("value"))
        thought = next((message[k] for k in ("reasoning_content", "reasoning", "thinking") if message.get(k)), None)
        if thinking and thought is not None and "<think>" not in text:
            text = f"<think>\n{_content(thought).strip()}\n</think>\n\n{text}"
        plain.append({"role": _ROLES.get(role, role), "content": text})
    return plain


def _content(value: Any) -> str:
    """A message's content as text: a text, or a list of parts, all of them text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    raise SetAside("a message is not text")
