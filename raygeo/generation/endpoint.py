"""Completions written by a server that speaks OpenAI's protocol: asked many at once, and again where it fails."""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

import requests
from pydantic import Field, field_validator, model_validator

from raygeo.errors import EndpointError, RaygeoError, StudentError
from raygeo.generation.engine import Completion, Engine, EngineSettings, Request, Students
from raygeo.generation.renderer import ChatRenderer, Renderer
from raygeo.generation.renderer.conversation import is_conversation, messages_of
from raygeo.models.lora import LoraSettings
from raygeo.models.mix import Mixture
from raygeo.models.run import Run
from raygeo.settings import Settings, content_key
from raygeo.store import AnyPath

log = logging.getLogger(__name__)
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses that another attempt may be spared."""
_LONGEST_PAUSE = 60.0
_ENDED = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence", "tool_calls", "tool_use", "function_call"})
_CUT = frozenset({"length", "max_tokens", "max_length"})
_BUSY = ("ratelimit", "overloaded", "exhausted", "servererror", "timeout", "unavailable")
"""What is in the names of errors that another attempt may be spared."""
_TOKEN_ID = "token_id:"
"""What stands before a token's id where a server names tokens by it (vLLM's ``return_tokens_as_token_ids``)."""
_OWN = frozenset(
    {"model", "messages", "prompt", "temperature", "seed", "n", "best_of", "logprobs", "top_logprobs", "echo"}
    | {"max_tokens", "max_completion_tokens", "max_new_tokens", "stream", "stream_options"}
)
"""Fields of a request that are raygeo's own."""
_WHOLE: dict[str, tuple[Any, ...]] = {
    "top_p": (1, None),
    "top_k": (0, -1, None),
    "top_a": (0, None),
    "min_p": (0, None),
    "typical_p": (1, None),
    "epsilon_cutoff": (0, None),
    "eta_cutoff": (0, None),
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "repeat_penalty": (1, None),
    "min_tokens": (0, None),
    "logit_bias": ({}, None),
}
"""Fields that change the distribution which is drawn from, and values at which they do not."""


class Price(Settings):
    """What a million tokens cost, in any currency."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


@dataclass
class Usage:
    """Requests that were answered, the tokens that the server counted in them, and answers that ended otherwise than by
    themselves or at their greatest length.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown_ends: int = 0

    def add(self, other: Usage) -> None:
        """Count what another has counted."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.unknown_ends += other.unknown_ends

    def cost(self, price: Price | None) -> float | None:
        """What the tokens cost; None without a price."""
        if price is None:
            return None
        return (self.prompt_tokens * price.prompt + self.completion_tokens * price.completion) / 1e6


class EndpointSettings(EngineSettings):
    """A server that speaks OpenAI's protocol (vLLM, SGLang, TGI, llama.cpp, a provider's): it writes with models that
    it has under names, so it samples teachers, and cannot answer for runs.
    """

    elsewhere: ClassVar[bool] = True
    revision: ClassVar[int] = 2

    type: Literal["endpoint"] = "endpoint"
    base_url: str
    """Where it is, with its version: ``http://127.0.0.1:8000/v1``."""
    model: str
    """The name it has the model under."""
    api: Literal["chat", "completions"] = "chat"
    """``chat`` sends messages, which the server puts into the model's chat template; ``completions`` sends the text as
    it is."""
    api_key_env: str | None = None
    """The environment variable that holds the key, on the machine that the study is started on. The key itself is
    never stored, shown, or part of a content key."""
    concurrency: int = Field(16, ge=1)
    """Requests at once."""
    timeout: float = Field(600, gt=0)
    """Seconds until a request without an answer is given up and asked again."""
    deadline: float = Field(3600, gt=0)
    """Seconds after which a prompt that is still not answered, however often it was asked, ends the work; all that was
    answered is kept."""
    backoff: float = Field(1.0, gt=0)
    """Seconds before the first repetition, doubled for each further one, up to a minute, and spread at random; where
    the server says how long to wait (Retry-After), that is waited."""
    logprobs: bool = False
    """Ask for the log-probabilities of the tokens drawn. They are kept at temperature 1, where the server's tokens are
    the student's, end included. They are of the whole distribution, so nothing in ``extra`` may make the server draw
    from another one."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the greatest length of a completion."""
    extra: dict[str, Any] = Field({})
    """Further fields of each request, such as ``{top_p: 0.95}``; none that raygeo sets itself."""
    price: Price | None = None
    """What its tokens cost."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give the server's address with its version, as in http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("the address may hold no key or password; name the variable that does in api_key_env")
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if wrong := sorted(_OWN & extra.keys()):
            raise ValueError(
                f"{', '.join(wrong)}: set by raygeo itself, from the settings of decoding (temperature, samples, "
                "max_new_tokens, seed) and of the engine (logprobs, length_field)"
            )
        return extra

    @model_validator(mode="after")
    def _whole_distribution(self) -> Self:
        if self.logprobs and self.redrawn:
            raise ValueError(
                f"extra sets {', '.join(self.redrawn)}, so tokens are drawn from another distribution than the one "
                "that the server's log-probabilities are of; leave that out, or set logprobs to false"
            )
        return self

    @property
    def redrawn(self) -> list[str]:
        """Fields in ``extra`` that have tokens drawn from another distribution than the model's."""
        return sorted(name for name, value in self.extra.items() if name in _WHOLE and value not in _WHOLE[name])

    @property
    def identity(self) -> list[Any]:
        """The engine's name, the model's name, and what is asked for; not where the server is."""
        return [super().identity, self.model, self.api, self.logprobs, self.extra]

    def unfit(self, lora: LoraSettings | None) -> str:
        """That it writes with no run."""
        return (
            "an endpoint writes with the models that it has and cannot be given the weights of runs; choose the engine "
            "local or vllm (rollouts.sample.engine may be an endpoint)"
        )

    def check_here(self) -> None:
        """See that the key is there, the server too, and that it has the model."""
        _Server(self).check()

    def students(self, base: AnyPath | None = None, runs: Sequence[Run] = ()) -> Students:
        """The one model that the server has under the name.

        Raises:
            StudentError: ``runs`` have deltas, which it cannot be given.
            EndpointError: the key is missing, the server is not there, or has no model of that name.
        """
        if any(run.delta is not None for run in runs):
            raise StudentError(_NO_DELTAS)
        self.check_here()
        return _Named()

    def engine(self, model: Any, renderer: Renderer, batch_size: int) -> EndpointEngine:
        """The engine that asks the server; ``model`` is None, and ``concurrency`` takes the place of a batch size."""
        return EndpointEngine(self, renderer)


_NO_DELTAS = (
    "an endpoint writes with the models that it has, and cannot be given the weights of runs or mixtures of them; "
    "choose the engine local or vllm for these."
)


class _Named:
    """The model of a server, which has the weights it has."""

    def mixed(self, mixture: Mixture) -> AbstractContextManager[None]:
        """Nothing, for the base alone."""
        if mixture:
            raise StudentError(_NO_DELTAS)
        return nullcontext()


class EndpointEngine(Engine):
    """Asks a server, ``concurrency`` prompts at once; ``usage`` counts what was answered.

    Where a request names a journal, each answer is kept there at once, and what is there is not asked for again. A
    server that gives fewer samples than asked is asked for the rest. Completions hold text; ``ids`` and ``logprobs``
    only where the server's tokens are those of ``renderer``. A thought whose beginning the server's chat template has
    written, so that its text only ends one, is given its beginning. ``usage`` counts completions that ended for another
    reason than ends and lengths (a content filter, one that is not known here): their ``stop`` is "unknown".
    """

    def __init__(self, settings: EndpointSettings, renderer: Renderer):
        self.settings, self.renderer = settings, renderer
        self.usage = Usage()
        self._unknown: set[str] = set()
        self._ids: dict[str, int | None] | None = None

    def generate(self, request: Request) -> list[list[Completion]]:
        """Complete every prompt; see ``Engine.generate``.

        Raises:
            EndpointError: the server refuses a prompt, or has not answered one by the deadline. What was answered is
                in the journal, if there is one.
        """
        answered: dict[int, _Answer] = {}
        waiting: queue.SimpleQueue[tuple[int, _Answer]] = queue.SimpleQueue()
        for index, prompt in enumerate(request.prompts):
            kept = None if request.journal is None else request.journal.read(self._key(request, prompt))
            answer = _Answer([], Usage()) if kept is None else _Answer.parse(kept)
            if len(answer.completions) < request.samples:
                waiting.put((index, answer))
            else:
                answered[index] = answer
        lacking = len(request.prompts) - len(answered)
        answered |= self._ask_all(request, waiting, lacking)
        for answer in answered.values():
            self.usage.add(answer.usage)
        return [answered[index].completions for index in range(len(request.prompts))]

    def _key(self, request: Request, prompt: str) -> str:
        how = (request.max_new_tokens, request.samples, request.temperature, request.seed, request.top_logprobs)
        return content_key(self.settings.revision, self.settings.identity, prompt, *how)

    def _ask_all(
        self, request: Request, waiting: queue.SimpleQueue[tuple[int, _Answer]], count: int
    ) -> dict[int, _Answer]:
        """Answers to the prompts that are ``waiting``, with what each has, from threads that end with this process."""
        found: queue.SimpleQueue[tuple[int, _Answer | Exception]] = queue.SimpleQueue()
        stop, keeping = threading.Event(), threading.Lock()
        server = _Server(self.settings, stop)

        def keep(prompt: str, answer: _Answer) -> None:
            if request.journal is not None:
                with keeping:
                    request.journal.write(self._key(request, prompt), answer.text())

        def work() -> None:
            while not stop.is_set():
                try:
                    index, answer = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    for _ in self._ask(server, request, request.prompts[index], answer):
                        keep(request.prompts[index], answer)
                    found.put((index, answer))
                except Exception as error:
                    found.put((index, error))

        answered: dict[int, _Answer] = {}
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.settings.concurrency, count))]
        try:
            for thread in threads:
                thread.start()
            while len(answered) < count:
                index, answer = found.get()
                if isinstance(answer, RaygeoError):
                    raise type(answer)(f"{_shown(request.prompts[index])}: {answer}")
                if isinstance(answer, Exception):
                    raise answer
                answered[index] = answer
        finally:
            stop.set()
        return answered

    def _ask(self, server: _Server, request: Request, prompt: str, answer: _Answer) -> Iterator[None]:
        """Ask for what ``answer``, to one prompt, lacks; yield each time that it holds more."""
        settings = self.settings
        until = time.monotonic() + settings.deadline
        body: dict[str, Any] = {"model": settings.model, "temperature": request.temperature}
        body[settings.length_field] = request.max_new_tokens
        if settings.api == "chat":
            path, body["messages"] = "chat/completions", _messages(self.renderer, prompt)
        elif is_conversation(prompt):
            raise EndpointError("a conversation cannot be sent as one text; set the engine's api to chat.")
        else:
            path, body["prompt"] = "completions", prompt
        if settings.logprobs or request.top_logprobs:
            asked = {"logprobs": True, "top_logprobs": request.top_logprobs}
            body |= asked if settings.api == "chat" else {"logprobs": request.top_logprobs}
        while (missing := request.samples - len(answer.completions)) > 0:
            own = int(content_key(request.seed, prompt, len(answer.completions)), 16) % 2**31
            given = server.ask(
                path, settings.extra | body | {"seed": own} | ({"n": missing} if missing > 1 else {}), until
            )
            choices = given.get("choices") or []
            if not choices:
                raise EndpointError(f"{settings.base_url} answered without a choice: {json.dumps(given)[:200]}")
            counts = given.get("usage") or {}
            answer.usage.add(Usage(1, counts.get("prompt_tokens") or 0, counts.get("completion_tokens") or 0))
            alone = counts.get("completion_tokens") if len(choices) == 1 else None
            for choice in choices[:missing]:
                answer.completions.append(self._completion(request, choice, alone))
                answer.usage.unknown_ends += answer.completions[-1].stop == "unknown"
            yield

    def _completion(self, request: Request, choice: Mapping[str, Any], counted: int | None) -> Completion:
        """What one choice of a response holds; ``counted`` are its tokens, where the server says."""
        message = choice.get("message")
        text = (choice.get("text") if message is None else message.get("content")) or ""
        if message is not None and (thought := message.get("reasoning_content") or message.get("reasoning")):
            text = f"<think>\n{thought.strip()}\n</think>\n\n{text}"
        if message is not None and "</think>" in text and "<think>" not in text.partition("</think>")[0]:
            text = f"<think>\n{text}"
        why = choice.get("finish_reason")
        stop: Literal["end", "length", "unknown"] = "end" if why in _ENDED else "length" if why in _CUT else "unknown"
        if stop == "unknown" and str(why) not in self._unknown:
            self._unknown.add(str(why))
            log.warning("%s ends answers with finish_reason %r: no end, no length", self.settings.model, why)
        tokens = _tokens(choice.get("logprobs"))
        if counted is None:
            counted = len(tokens) or len(self.renderer.completion_ids(text, stop == "end"))
        ids: tuple[int, ...] = ()
        logprobs = top = None
        if self.settings.logprobs and request.temperature == 1:
            ids, logprobs = self._aligned(text, stop == "end", tokens)
        if request.top_logprobs and request.temperature in (0, 1) and self._aligned(text, stop == "end", tokens)[0]:
            top = self._by_id([likeliest for _, _, likeliest in tokens])
        return Completion(text, ids, stop, "", logprobs, counted, top)

    def _by_id(self, likeliest: Sequence[Mapping[str, float]]) -> tuple[Mapping[int, float], ...] | None:
        """The likeliest tokens by the student's ids; None where a text is that of no token, or of several."""
        found = [{self._id_of(text): score for text, score in step.items()} for step in likeliest]
        return None if any(None in step for step in found) else tuple(found)  # type: ignore[arg-type]

    def _id_of(self, text: str) -> int | None:
        """The student's token with this text, if it is one alone; ``token_id:7`` is token 7."""
        if text.startswith(_TOKEN_ID):
            return int(text.removeprefix(_TOKEN_ID))
        if self._ids is None:
            self._ids = {}
            decode = self.renderer.tokenizer.decode
            for i in range(len(self.renderer.tokenizer)):
                said = decode([i])
                self._ids[said] = None if said in self._ids else i
        return self._ids.get(text)

    def _aligned(
        self, text: str, ended: bool, tokens: Sequence[tuple[str, float, Mapping[str, float]]]
    ) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
        """The student's tokens of a text with their log-probabilities, where the server's tokens are the same."""
        ids = tuple(self.renderer.completion_ids(text, ended))
        decode = self.renderer.tokenizer.decode
        if len(ids) != len(tokens) or any(
            token not in (decode([i]), f"{_TOKEN_ID}{i}") for i, (token, _, _) in zip(ids, tokens, strict=True)
        ):
            return (), None
        return ids, tuple(logprob for _, logprob, _ in tokens)


@dataclass
class _Answer:
    """All samples of a prompt, and what they took."""

    completions: list[Completion]
    usage: Usage

    def text(self) -> str:
        return json.dumps({"completions": [asdict(each) for each in self.completions], "usage": asdict(self.usage)})

    @classmethod
    def parse(cls, text: str) -> _Answer:
        raw = json.loads(text)
        for each in raw["completions"]:
            each["ids"] = tuple(each["ids"])
            if each["logprobs"] is not None:
                each["logprobs"] = tuple(each["logprobs"])
            if each["top_logprobs"] is not None:
                each["top_logprobs"] = tuple(
                    {int(i): score for i, score in step.items()} for step in each["top_logprobs"]
                )
        return cls([Completion(**each) for each in raw["completions"]], Usage(**raw["usage"]))


@dataclass
class _Server:
    """Requests to a server, each made until it is answered, refused, or out of time."""

    settings: EndpointSettings
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=self.settings.concurrency)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.session.auth = _Key(self.settings.api_key_env)

    def check(self) -> None:
        """See that the server is there and has the model, as far as it lists what it has.

        Raises:
            EndpointError: it is not, or has not; or the key is missing.
        """
        url, name = f"{self.settings.base_url}/models", self.settings.model
        try:
            response = self.session.get(url, timeout=30)
            listed = response.json() if response.ok else {}
        except (requests.RequestException, ValueError) as error:
            raise EndpointError(f"{url} cannot be read ({error}); is the server running there?") from error
        if response.status_code in (401, 403):
            raise EndpointError(
                f"{url}: {self._said(response)}. Check the key in {self.settings.api_key_env or 'api_key_env'}."
            )
        known = [str(each.get("id")) for each in listed.get("data") or []] if isinstance(listed, dict) else []
        if known and name not in known:
            raise EndpointError(f"{self.settings.base_url} has no model {name!r}; it has {', '.join(known[:10])}.")

    def ask(self, path: str, body: Mapping[str, Any], until: float) -> dict[str, Any]:
        """The answer to a request; made again until the time ``until`` where another attempt may be answered.

        Raises:
            EndpointError: the request is refused, or not answered in time.
        """
        url, attempt, last = f"{self.settings.base_url}/{path}", 0, "not asked"
        while (left := until - time.monotonic()) > 0 and not self.stop.is_set():
            wait = None
            try:
                response = self.session.post(url, json=body, timeout=min(left, self.settings.timeout))
                if response.ok:
                    given = response.json()
                    error = _error_inside(given)
                    if error is None and isinstance(given, dict):
                        return given
                    last = "an answer that is no JSON object" if error is None else self._said(response)
                    if error is not None and not _spared(error):
                        raise EndpointError(f"{url} refuses the request: {last}")
                else:
                    last = self._said(response)
                    if response.status_code not in _AGAIN:
                        raise EndpointError(f"{url} refuses the request: {last}")
                    wait = _retry_after(response.headers.get("Retry-After"))
            except (requests.RequestException, ValueError) as error:
                last = f"{type(error).__name__}: {error}"
            pause = min(_LONGEST_PAUSE, self.settings.backoff * 2**attempt) * random.uniform(0.5, 1.5)
            pause = pause if wait is None else wait + random.uniform(0, self.settings.backoff)
            if pause > until - time.monotonic():
                break
            self.stop.wait(pause)
            attempt += 1
        raise EndpointError(
            f"{url} has not answered within {self.settings.deadline:g} s, asked {attempt + 1} times (last: {last}). "
            "What was answered is kept: run the same command when the server is well, or raise the engine's deadline."
        )

    def _said(self, response: requests.Response) -> str:
        """Status and words of a refusal, without the key if it repeats that."""
        words = " ".join(response.text.split())
        if key := os.environ.get(self.settings.api_key_env or ""):
            words = words.replace(key, "[key]")
        return f"{response.status_code} {response.reason}: {words[:300]}"


class _Key(requests.auth.AuthBase):
    """Puts the key of an environment variable into each request, and keeps it nowhere."""

    def __init__(self, variable: str | None):
        self.variable = variable
        if variable is not None and not os.environ.get(variable):
            raise EndpointError(f"the environment variable {variable} (api_key_env) is not set; set it to the key.")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.variable is not None:
            request.headers["Authorization"] = f"Bearer {os.environ[self.variable]}"
        return request


def _tokens(given: Any) -> list[tuple[str, float, Mapping[str, float]]]:
    """Text, log-probability and likeliest tokens of each token, of a response in either form; none if it has none."""
    if not isinstance(given, Mapping):
        return []
    if "content" in given:
        return [
            (each["token"], each["logprob"], {t["token"]: t["logprob"] for t in each.get("top_logprobs") or []})
            for each in given["content"] or []
        ]
    texts, scores = given.get("tokens") or [], given.get("token_logprobs") or []
    top = given.get("top_logprobs") or [{}] * len(texts)
    return list(zip(texts, scores, top, strict=True))


def _messages(renderer: Renderer, prompt: str) -> list[dict[str, str]]:
    """The messages of a prompt, with the study's system message where its renderer fills a chat template in."""
    return renderer.messages(prompt) if isinstance(renderer, ChatRenderer) else messages_of(prompt)


def _error_inside(given: Any) -> dict[str, Any] | None:
    """The error that an answer holds in its own place or in that of a choice, whatever its status; None if none."""
    if not isinstance(given, dict):
        return None
    if given.get("object") == "error":
        return given
    errors = [part.get("error") for part in (given, *(given.get("choices") or []))]
    error = next(filter(None, errors), None)
    return error if error is None or isinstance(error, dict) else {"message": str(error)}


def _spared(error: Mapping[str, Any]) -> bool:
    """Whether an error, by its code or its kind, is one that another attempt may be spared."""
    told = [error[name] for name in ("code", "status", "type") if error.get(name) is not None]
    numbers = [int(each) for each in told if str(each).isdigit()]
    if numbers:
        return numbers[0] in _AGAIN
    return any(word in str(each).lower().replace("_", "") for each in told for word in _BUSY)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, given as such or as a date; None where it does not."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _shown(prompt: str) -> str:
    return f"prompt {prompt[:80]!r}" + ("..." if len(prompt) > 80 else "")
