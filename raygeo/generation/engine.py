"""What writes completions, whatever runs the model, and the settings that it is chosen by."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from raygeo.errors import StudentError
from raygeo.generation.renderer import Renderer
from raygeo.models.likelihood import TopLogprobs
from raygeo.models.lora import LoraSettings
from raygeo.models.mix import Mixture
from raygeo.models.run import Run
from raygeo.settings import Settings
from raygeo.store import AnyPath


class Journal(Protocol):
    """Where answers are kept one by one, as texts under keys, until whoever asked has stored what it makes of them."""

    def read(self, key: str) -> str | None:
        """What is kept under a key, or None."""
        ...

    def write(self, key: str, text: str) -> None:
        """Keep a text; once this returns, it is there whole."""
        ...


@dataclass(frozen=True)
class Request:
    """Prompts to be completed, and how: each ``samples`` times, in at most ``max_new_tokens`` tokens.

    Temperature 0 takes the likeliest token at each step; any other draws from softmax(logits / temperature), as the
    ``seed`` decides. ``top_logprobs`` asks for the log-probabilities of so many of the likeliest tokens at each step,
    from engines that give them. ``journal`` is where an engine that asks elsewhere keeps what each prompt was answered,
    and looks before it asks; others need none.
    """

    prompts: Sequence[str]
    max_new_tokens: int
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    journal: Journal | None = None


@dataclass(frozen=True)
class Completion:
    """What was written behind a prompt.

    ``ids`` are the tokens drawn, with the end where one was reached, which ``text`` lacks; ``stop`` says whether it was
    ("end"), or the completion was cut at its greatest length ("length"), or a server says something else, such as that
    it held the text back ("unknown"). ``end`` is what has to stand behind the text for a renderer to end it as it was
    ended; nothing for end-of-text. The text need not tokenise back to ``ids``.
    ``logprobs`` are the log-probabilities of ``ids`` where they were drawn, at the sampling temperature; None for
    greedy completions, and where they are not known.

    An engine that hears texts alone gives no ``ids``, but how many tokens were ``counted``. ``top_logprobs`` are
    log-probabilities of the likeliest tokens by their ids, one mapping a token, from engines that give them.
    """

    text: str
    ids: tuple[int, ...]
    stop: Literal["end", "length", "unknown"]
    end: str = ""
    logprobs: tuple[float, ...] | None = None
    counted: int | None = None
    top_logprobs: tuple[Mapping[int, float], ...] | None = None

    @property
    def truncated(self) -> bool:
        """Whether it was cut before it ended."""
        return self.stop == "length"

    @property
    def tokens(self) -> int:
        """How many tokens were drawn, the end included where the engine counts it."""
        return len(self.ids) if self.counted is None else self.counted


def check_lengths(prompts: Sequence[int], max_new_tokens: int, longest: int | None, limit: str) -> None:
    """See that prompts of so many tokens can be continued by ``max_new_tokens`` within ``longest``, which is ``limit``.

    Raises:
        StudentError: a prompt has no token, or is too long for that.
    """
    if 0 in prompts:
        raise StudentError(f"prompt {list(prompts).index(0)} has no token, so there is nothing to continue; remove it.")
    most = max(prompts, default=0)
    if longest is not None and most + max_new_tokens > longest:
        raise StudentError(
            f"the longest prompt has {most} tokens; with max_new_tokens={max_new_tokens} that exceeds {limit}. Lower "
            "max_new_tokens or drop long prompts."
        )


def check_prompts(
    renderer: Renderer, prompts: Sequence[str], max_new_tokens: int, longest: int | None, who: str
) -> None:
    """As ``check_lengths``, before anything is written; ``who`` is to write.

    Only prompts that may be too long are tokenised: a token has a byte or more, and what a renderer puts around a
    prompt no more tokens than the shortest has with it.

    Raises:
        StudentError: as ``check_lengths``.
    """
    if longest is None or not prompts:
        return
    around = len(renderer.prompt_ids(min(prompts, key=len)))
    doubtful = [prompt for prompt in prompts if len(prompt.encode()) + around + max_new_tokens > longest]
    lengths = [len(renderer.prompt_ids(prompt)) for prompt in doubtful]
    check_lengths(lengths, max_new_tokens, longest, f"the {who}'s context of {longest}")


class Engine(ABC):
    """Writes completions with a model. Equal requests give equal results; how prompts are batched is its own affair."""

    @abstractmethod
    def generate(self, request: Request) -> list[list[Completion]]:
        """Complete every prompt: one list of ``request.samples`` per prompt, in the order of ``request.prompts``."""

    def score(self, texts: Sequence[tuple[str, str, bool]], *, temperature: float) -> list[tuple[float, ...] | None]:
        """Log-probabilities of the completion tokens of (prompt, completion, ended) ``texts``; None if not known.

        Tokens are those that training reads; probabilities are softmax(logits / ``temperature``).
        """
        return [None] * len(texts)

    def score_top(
        self, texts: Sequence[tuple[str, str, bool]], count: int, *, temperature: float
    ) -> list[TopLogprobs | None]:
        """The ``count`` likeliest tokens at each completion token of ``texts``, as ``score`` takes them; None if not
        known.
        """
        return [None] * len(texts)


class Students(Protocol):
    """Models by their weights: those of a base, and of the base with deltas added."""

    def mixed(self, mixture: Mixture) -> AbstractContextManager[Any]:
        """The model at base + sum of coefficient * delta, as long as the context lasts."""
        ...


class EngineSettings(Settings, ABC):
    """Which engine writes, and how: one subclass an engine, in a module beside this one.

    A subclass has a ``type``, a literal that studies name it by. ``revision`` counts the ways it has answered equal
    requests: whoever changes the completions of one raises it.
    """

    if TYPE_CHECKING:
        type: str

    revision: ClassVar[int] = 1
    elsewhere: ClassVar[bool] = False
    """Whether the model runs elsewhere, under a name, so that nothing here has its weights or can change them."""
    adapters_only: ClassVar[bool] = False
    """Whether it is given what runs changed as adapters, and so cannot write with weights changed in another way."""

    @property
    def identity(self) -> Any:
        """What content keys hold of the engine beside its revision: its name; where completions depend on settings, a
        subclass adds these.
        """
        return self.type

    def check_here(self) -> None:
        """See, where it is to write on this machine or is asked from it, that it can.

        Raises:
            RaygeoError: why it cannot.
        """
        return

    def longest(self, context: int | None) -> int | None:
        """The longest sequence, in tokens, of a model with so much ``context``; None where there is no limit."""
        return context

    def unfit(self, lora: LoraSettings | None) -> str | None:
        """Why it cannot write with runs that train these adapters, or all weights where there are none; else None."""
        return None

    def unfit_mixture(self, loras: Sequence[LoraSettings], count: int) -> str | None:
        """Why it cannot write with a mixture of any ``count`` of the runs that train these adapters, or None."""
        return None

    @abstractmethod
    def students(self, base: AnyPath, runs: Sequence[Run] = ()) -> Students:
        """What ``engine`` writes with: the model in folder ``base``, with room for the deltas of ``runs``."""

    @abstractmethod
    def engine(self, model: Any, renderer: Renderer, batch_size: int) -> Engine:
        """The engine that writes with ``model``, which ``students`` gave, at most ``batch_size`` rows at once."""
