"""From text to tokens and back: the one place where special tokens and boundaries are decided."""

from typing import Any

from raygeo.errors import StudentError
from raygeo.generation.renderer.base import MARKS, Renderer
from raygeo.generation.renderer.chat import ChatRenderer, ChatSettings
from raygeo.generation.renderer.plain import PlainRenderer

__all__ = ["MARKS", "RENDERERS", "ChatRenderer", "ChatSettings", "PlainRenderer", "Renderer", "renderer_for"]

RENDERERS = (PlainRenderer, ChatRenderer)
_AS_ASKED = ChatSettings()


def renderer_for(tokenizer: Any, chat: ChatSettings = _AS_ASKED) -> Renderer:
    """The renderer of a model's texts, given its tokenizer and how the study wants its texts to be put.

    Raises:
        StudentError: a chat template is asked for or is to be filled in, and there is none; or it cannot be used.
    """
    if chat.template != "plain" and getattr(tokenizer, "chat_template", None) is not None:
        return ChatRenderer(tokenizer, chat)
    if chat.template == "chat" or chat.system is not None or chat.template_kwargs:
        where = "is set to plain" if chat.template == "plain" else "finds no chat template in the tokenizer"
        raise StudentError(
            f"student.chat asks for a chat template, but student.chat.template {where}; take a student with one, or "
            "leave student.chat out."
        )
    return PlainRenderer(tokenizer)
