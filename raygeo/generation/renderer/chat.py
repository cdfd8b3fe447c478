"""Prompts put to a model in the chat template of its tokenizer."""

import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from raygeo.errors import DataError, StudentError
from raygeo.generation.renderer.conversation import is_conversation, messages_of
from raygeo.generation.renderer.plain import PlainRenderer
from raygeo.settings import Settings, content_key

TODAY = date(2025, 1, 1)
"""What templates that write the date of today are given, so that a study reads the same tomorrow."""
_CODES = "aAbBdHIjmMpSyY"
_DATED = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{code}', '{TODAY.strftime(f'%{code}')}')" for code in _CODES)
    + " }}{% endmacro %}{{ '' }}"
)  # transformers hands no functions on to templates
_USER, _ANSWER = "What is 6 times 7?", "It is 42."
_OWN = ("conversation", "messages", "add_generation_prompt", "tokenize", "chat_template", "continue_final_message")
_TAG = re.compile(r"(?P<tag><(?P<name>[^<>|/\s]+)>|\[[A-Z_]+\])(?P<behind>\s*)$")
_THOUGHT = re.compile("^.[a-z:_]*(think|thought|reason)", re.IGNORECASE)
_CLOSED = re.compile(r"(?P<tag><(?P<name>[^<>|/\s]+)>)\s*</(?P=name)>\s*$")


class ChatSettings(Settings):
    """How the texts of a study are put to its models, in training, sampling and evaluation alike."""

    template: Literal["auto", "plain", "chat"] = "auto"
    """``chat`` puts every prompt into the tokenizer's chat template, ``plain`` gives it as it is written; ``auto`` uses
    the template where the tokenizer has one."""
    system: str | None = None
    """The system message of prompts that bring none of their own."""
    template_kwargs: dict[str, str | bool | int | float | None] = Field(default_factory=dict)
    """Whatever else the template takes, such as ``{enable_thinking: false}``."""

    foreign: ClassVar[dict[str, str]] = {"chat_template_kwargs": "template_kwargs"}

    @field_validator("template_kwargs")
    @classmethod
    def _not_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        if wrong := sorted(set(given) & set(_OWN)):
            raise ValueError(f"{', '.join(wrong)}: set by raygeo itself")
        return given


class ChatRenderer(PlainRenderer):
    """A model reads the conversation in its tokenizer's chat template, up to where its own turn begins.

    The prompt's tokens are those of the template with its generation prompt, with one beginning-of-text if the template
    writes any or the tokenizer puts one before texts. A completion is tokenised apart, right behind the generation
    prompt, exactly as a model would have to write it: whatever a template does to the turns of an assistant when it
    shows them later (Qwen3 puts an empty ``<think>`` block in, others take one out) is not done to it, except that
    white space which the template always puts before an answer (Mistral's) belongs to the completion's tokens and not
    to its text. Where the generation prompt opens a ``<think>``, one that begins a completion is that one, and so is an
    empty block that it closes. A completion ends in the token that ends the template's turns, unless it brings another
    end of its own.

    ``left_out`` is what the template puts before an answer when it shows it, and completions are not given.

    Texts of completions hold whatever was written but the ends: tokens such as ``<think>`` stay, special or not.
    """

    form = "chat"
    revision = 1

    def __init__(self, tokenizer: Any, settings: ChatSettings | None = None):
        """Find out what the template puts around an answer.

        Raises:
            StudentError: the template fails; what it makes of a prompt is not how it begins the whole conversation; or
                it does not end an answer with a token of its own.
        """
        super().__init__(tokenizer)
        self.settings = settings or ChatSettings()
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise StudentError(f"the tokenizer's chat template cannot be used: {error}") from error
        self._template = f"{_DATED}{template}" if "strftime_now" in template else template
        filled_in = content_key(template, self.settings.system, self.settings.template_kwargs)
        self.identity = f"{self.form}-{filled_in}"
        self._refusals: dict[tuple[str, ...], str | None] = {}
        roles = ("user",) if self.settings.system is None else ("system", "user")
        if (refusal := self._refusal(roles)) is not None:
            raise StudentError(
                f"the chat template of the student cannot be used: {refusal}. Correct it (chat_template.jinja, or "
                "chat_template in tokenizer_config.json), change student.chat, or set student.chat.template to plain."
            )
        before, self._header, self._end = self._measure()
        self._lead = before if before.isspace() else ""
        self.left_out = before.removeprefix(self._lead)

    @property
    def opened(self) -> str:
        """The tag of a thought that the generation prompt ends in, with the white space behind it; else nothing."""
        found = _TAG.search(self._header)
        return found["tag"] + found["behind"] if found and _THOUGHT.search(found["tag"]) else ""

    @property
    def end_id(self) -> int:
        """The token that ends a turn of the template."""
        return self._end

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The template's own end, then end-of-text and those of the model's generation settings."""
        return tuple(dict.fromkeys([self._end, *super().stop_ids]))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, a question or a conversation, with the generation prompt.

        Raises:
            DataError: the template refuses the conversation.
        """
        if (why := self.unfit_prompt(prompt)) is not None:
            raise DataError(f"{why} ({prompt[:80]!r}).")
        ids = self._plain_ids(self._text(self.messages(prompt), True))
        bos, start = self.tokenizer.bos_token_id, self._start
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids if bos is None or ids[:1] == [bos] or bos not in start else [*start, *ids]

    def unfit_prompt(self, prompt: str) -> str | None:
        """Why a prompt cannot be put into the template, or None."""
        conversation = self.messages(prompt)
        if conversation[-1]["role"] == "assistant":
            return "prompt is a conversation that ends with the assistant's own message"
        if (why := self._refusal(tuple(message["role"] for message in conversation))) is not None:
            return f"the chat template refuses the conversation: {why}"
        held = [mark for mark in self._marks if any(mark in message["content"] for message in conversation)]
        if held:
            return f"prompt already holds {held[0]} of a chat template; give the bare question, or set " + (
                "student.chat.template to plain"
            )
        return None

    def completion_ids(self, completion: str, ended: bool = True) -> list[int]:
        """Tokens of a completion right behind the generation prompt, with an end if it ``ended``."""
        return super().completion_ids(self._lead + self._unopened(completion), ended)

    def text_behind(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add behind a generation prompt; beginnings, ends and padding add none."""
        return super().text_behind(ids).removeprefix(self._lead)

    def own_marks(self, prompt: str, completion: str) -> list[str]:
        """Which special tokens the texts hold as text, in the words of ``MARKS``."""
        return super().own_marks("\n".join(message["content"] for message in messages_of(prompt)), completion)

    def unfit_completion(self, completion: str, ids: Sequence[int]) -> str | None:
        """Why no model could have written a completion, of tokens ``ids`` with its end, or None."""
        closed = _CLOSED.search(self._header)
        if closed is not None and self._unopened(completion).lstrip().startswith(closed["tag"]):
            return f"completion opens {closed['tag']}, which the chat template's generation prompt has closed"
        return super().unfit_completion(completion, ids)

    def _decode(self, ids: Sequence[int]) -> str:
        silent = {self.tokenizer.bos_token_id, self.tokenizer.pad_token_id, *self.stop_ids}
        return str(self.tokenizer.decode([i for i in ids if i not in silent], skip_special_tokens=False))

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The messages of a prompt, with the study's system message unless they have their own."""
        text = prompt if is_conversation(prompt) else self._split_prompt(prompt)[1]
        found = messages_of(text)
        if self.settings.system is None or found[0]["role"] == "system":
            return found
        return [{"role": "system", "content": self.settings.system}, *found]

    def _text(self, conversation: Sequence[dict[str, str]], generate: bool) -> str:
        """The conversation in the template. Raises ``DataError`` where the template fails."""
        how = {"tokenize": False, "add_generation_prompt": generate, "chat_template": self._template}
        try:
            return str(self.tokenizer.apply_chat_template(list(conversation), **how, **self.settings.template_kwargs))
        except Exception as error:  # whatever a template brings about
            raise DataError(str(error) or type(error).__name__) from error

    def _refusal(self, roles: tuple[str, ...]) -> str | None:
        """Why conversations of these roles cannot be used, or None: found out once for each sequence of roles."""
        if roles not in self._refusals:
            self._refusals[roles] = self._tried(roles)
        return self._refusals[roles]

    def _tried(self, roles: tuple[str, ...]) -> str | None:
        conversation = [{"role": role, "content": f"{_USER} ({place})"} for place, role in enumerate(roles)]
        try:
            prompt = self._text(conversation, True)
            whole = self._text([*conversation, {"role": "assistant", "content": _ANSWER}], False)
        except DataError as error:
            return str(error)
        if not whole.startswith(prompt):
            place = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
            return (
                f"its prompt is not how it begins the whole conversation: {prompt[max(0, place - 20) : place + 40]!r} "
                f"in the one is {whole[max(0, place - 20) : place + 40]!r} in the other"
            )
        if _ANSWER not in whole[len(prompt) :]:
            return "it does not show the assistant's answer"
        if self._ending(whole[len(prompt) :].partition(_ANSWER)[2]) is None:
            return "it does not end the assistant's answer with a special token"
        return None

    def _measure(self) -> tuple[str, str, int]:
        """What stands before an answer in its turn, what stands behind a question, and the end of a turn."""
        conversation = self.messages(_USER)
        prompt = self._text(conversation, True)
        whole = self._text([*conversation, {"role": "assistant", "content": _ANSWER}], False)
        lead, _, tail = whole[len(prompt) :].partition(_ANSWER)
        end = self._ending(tail)
        assert end is not None
        return lead, prompt.rpartition(_USER)[2], end

    def _ending(self, tail: str) -> int | None:
        """The token that ``tail``, what stands behind an answer, begins with, if it is one that stands for itself."""
        added = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items()}
        found = max((text for text in added if text and tail.lstrip().startswith(text)), key=len, default=None)
        return None if found is None else added[found]

    @cached_property
    def _marks(self) -> list[str]:
        """What stands in no question: special tokens of the template, and what it puts behind a question."""
        text = self._text([*self.messages(_USER), {"role": "assistant", "content": _ANSWER}], False)
        special = set() if self._special is None else set(self._special.findall(text))
        return sorted(special - {self.tokenizer.bos_token} | {self._header.strip()} - {""})

    def _unopened(self, completion: str) -> str:
        """The completion without the thinking that the generation prompt has opened, or opened and closed, itself."""
        text = completion.lstrip()
        if (closed := _CLOSED.search(self._header)) is not None:
            block = re.match(rf"{re.escape(closed['tag'])}\s*</{re.escape(closed['name'])}>\s*", text)
            return completion if block is None else text[block.end() :]
        if (opened := _TAG.search(self._header)) is not None and text.startswith(opened["tag"]):
            return text.removeprefix(opened["tag"]).removeprefix(opened["behind"])
        return completion
