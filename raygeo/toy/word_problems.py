"""Word problems written from templates, the solvers that answer them, careful or careless, and their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from raygeo.errors import ConfigError
from raygeo.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMES = ("Amy", "Bea", "Cora", "Dana", "Eva", "Fay", "Gia", "Hana", "Ivy", "June", "Kim", "Lea")
OBJECTS = ("apples", "books", "cards", "coins", "eggs", "keys", "marbles", "nuts", "pens", "shells", "stamps", "stones")
ADDING = ("buys", "finds", "gets", "makes", "wins")
SUBTRACTING = ("drops", "gives", "loses", "sells", "uses")
MULTIPLYING = {"doubles": 2, "triples": 3}
LIMIT = 99

_OTHER_WORDS = (
    ".", "?", "has", "she", "more", "from", "to", "how", "many", "the", "pile", "+", "-", "*", "=", "####",
    "first", "then", "so",
)  # fmt: skip
_ATTEMPTS = 10_000

Style = Literal["plain", "teacher"]


class ProblemSettings(Settings):
    """How hard the problems are. Ranges include both ends; every quantity of a right solution is in 0..99."""

    steps: tuple[int, int] = (2, 4)
    """Number of things that happen."""
    start: tuple[int, int] = (3, 50)
    """How many objects there are at first."""
    operand: tuple[int, int] = (2, 20)
    """How many are added or taken away at a step."""
    multiply: float = Field(0.1, ge=0, le=1)
    """Probability that a step doubles or triples the pile."""

    @model_validator(mode="after")
    def _ranges(self) -> ProblemSettings:
        for name, least in (("steps", 1), ("start", 0), ("operand", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high <= LIMIT:
                raise ValueError(f"{name} is [{low}, {high}]; give [lowest, highest] within {least}..{LIMIT}")
        return self


class Carelessness(Settings):
    """How a solver errs: the probability of each error on each occasion for it."""

    carry: float = Field(0.0, ge=0, le=1)
    """The carry of an addition that has one is dropped: ``17 + 8 = 15``."""
    gets: float = Field(0.0, ge=0, le=1)
    """``gets N from X`` is read as a subtraction."""
    gives: float = Field(0.0, ge=0, le=1)
    """``gives N to X`` is read as an addition."""
    skip: float = Field(0.0, ge=0, le=1)
    """A step is left out."""


@dataclass(frozen=True)
class Event:
    """One thing that happens: ``amount`` is added, taken away or multiplied by, ``other`` is a second person."""

    verb: str
    amount: int
    other: str = ""

    @property
    def sign(self) -> str:
        """The arithmetic sign of the event: ``+``, ``-`` or ``*``."""
        if self.verb in MULTIPLYING:
            return "*"
        return "+" if self.verb in ADDING else "-"

    def __str__(self) -> str:
        match self.verb:
            case "doubles" | "triples":
                return f"{self.verb} the pile"
            case "gets":
                return f"gets {self.amount} from {self.other}"
            case "gives":
                return f"gives {self.amount} to {self.other}"
        return f"{self.verb} {self.amount} more" if self.verb in ADDING else f"{self.verb} {self.amount}"


@dataclass(frozen=True)
class Problem:
    """``name`` has ``start`` objects, then ``events`` happen; the answer is how many there are in the end."""

    name: str
    noun: str
    start: int
    events: tuple[Event, ...]

    @property
    def prompt(self) -> str:
        """The problem in words; a completion continues it without any text between."""
        told = "".join(f"she {event} . " for event in self.events)
        return f"{self.name} has {self.start} {self.noun} . {told}how many {self.noun} ?"

    @property
    def gold(self) -> str:
        """The right answer."""
        return self.solution.rpartition("#### ")[2]

    @property
    def solution(self) -> str:
        """A right solution in the plain style: ``10 - 4 = 6 . 6 + 2 = 8 . #### 8``."""
        return solve(self, Carelessness(), Random(0))

    @property
    def steps(self) -> int:
        """Number of events."""
        return len(self.events)


def solve(problem: Problem, carelessness: Carelessness, rng: Random, style: Style = "plain") -> str:
    """Write a solution, making the errors of ``carelessness`` at random and carrying their results on.

    The teacher style adds words: ``first 10 - 4 = 6 . then 6 + 2 = 8 . so #### 8``. A pile that an error would leave
    below zero is empty.
    """
    value, lines = problem.start, []
    for event in problem.events:
        if rng.random() < carelessness.skip:
            continue
        sign = event.sign
        if event.verb == "gets" and rng.random() < carelessness.gets:
            sign = "-"
        if event.verb == "gives" and rng.random() < carelessness.gives:
            sign = "+"
        result = max(0, _apply(sign, value, event.amount))
        if sign == "+" and value % 10 + event.amount % 10 > 9 and rng.random() < carelessness.carry:
            result -= 10
        lines.append(f"{value} {sign} {event.amount} = {result} . ")
        value = result
    if style == "plain":
        return f"{''.join(lines)}#### {value}"
    told = "".join(("then " if place else "first ") + line for place, line in enumerate(lines))
    return f"{told}so #### {value}"


def draw_problem(settings: ProblemSettings, rng: Random) -> Problem:
    """Draw one problem.

    Raises:
        ConfigError: no event allowed by ``settings`` keeps the pile within 0..99.
    """
    name = rng.choice(NAMES)
    value = start = rng.randint(*settings.start)
    events: list[Event] = []
    for _ in range(rng.randint(*settings.steps)):
        event, value = _draw_event(settings, name, value, rng)
        events.append(event)
    return Problem(name, rng.choice(OBJECTS), start, tuple(events))


def draw_corpus(
    settings: ProblemSettings, carelessness: Carelessness, teacher_share: float, count: int, seed: int
) -> list[tuple[str, str]]:
    """Draw ``count`` (prompt, solution) pairs, ``teacher_share`` of them in the teacher style."""
    rng = Random(f"corpus {seed}")
    corpus = []
    for _ in range(count):
        problem = draw_problem(settings, rng)
        style: Style = "teacher" if rng.random() < teacher_share else "plain"
        corpus.append((problem.prompt, solve(problem, carelessness, rng, style)))
    return corpus


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of these problems: one token a word, a sign or a digit, and a first ``<bos>`` with prompts.

    Decoding puts one space between tokens but none between digits, so text and tokens map onto each other exactly, and
    prompt and completion give the same tokens together as apart. A word outside the vocabulary raises ``Exception``.
    """
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    words = [*"0123456789", *NAMES, *OBJECTS, *ADDING, *SUBTRACTING, *MULTIPLYING, *_OTHER_WORDS]
    vocabulary = {token: number for number, token in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]|[A-Za-z]+|#+|\S"), "removed", invert=True)
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # a space before every token but the first
            decoders.Fuse(),
            decoders.Replace(Regex("(?<=[0-9]) (?=[0-9])"), ""),
        ]
    )
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def _draw_event(settings: ProblemSettings, name: str, value: int, rng: Random) -> tuple[Event, int]:
    for _ in range(_ATTEMPTS):
        if rng.random() < settings.multiply:
            verb = rng.choice(list(MULTIPLYING))
            event = Event(verb, MULTIPLYING[verb])
        else:
            verb = rng.choice(ADDING if rng.random() < 0.5 else SUBTRACTING)
            other = rng.choice([n for n in NAMES if n != name]) if verb in ("gets", "gives") else ""
            event = Event(verb, rng.randint(*settings.operand), other)
        result = _apply(event.sign, value, event.amount)
        if 0 <= result <= LIMIT:
            return event, result
    raise ConfigError(
        f"word problems: from a pile of {value}, no operand in {list(settings.operand)} keeps it within 0..{LIMIT}; "
        "choose smaller operands."
    )


def _apply(sign: str, value: int, amount: int) -> int:
    match sign:
        case "+":
            return value + amount
        case "-":
            return value - amount
    return value * amount
