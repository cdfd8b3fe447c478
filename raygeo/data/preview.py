"""What a person sees of data before anything is made of them."""

from typing import Any

from raygeo.data.readers.base import Reader
from raygeo.generation.renderer.conversation import messages_of

_SHOWN = 60


def first_row(reader: Reader) -> str:
    """How a reader reads, and its first rollout in one line."""
    found = reader.resolved()
    row = next((record for record in found.rollouts() if record.error is None), None)
    if row is None:
        return f"{found.described()}; no record can be read"
    asked, written = messages_of(str(row.values["prompt"]))[-1]["content"], str(row.values["completion"])
    return f"{found.described()}; first: {_short(asked)} -> {_short(written)} ({said_of(row.values)})"


def said_of(values: Any) -> str:
    """What a rollout brings besides its texts."""
    if values.get("correct") is not None:
        verdict = "right" if values["correct"] else "wrong"
    elif values.get("gold") is not None:
        verdict = f"to be graded against {_short(values['gold'])}"
    else:
        verdict = f"reward {values['reward']}" if values.get("reward") is not None else "no verdict"
    return verdict + ", cut off" * bool(values.get("truncated")) + ", one of a pair" * bool(values.get("pair"))


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} ... {text[-_SHOWN // 2 :]}")
