"""What somebody may have meant who wrote a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name among those ``known`` that is most like ``name``, in whatever case, or else the first that begins with
    it; None if there is none.
    """
    names, begun = {each.lower(): each for each in known}, name.lower()
    found = get_close_matches(begun, names, 1) or [each for each in names if begun and each.startswith(begun)]
    return names[found[0]] if found else None


def hint(name: str, known: Iterable[str], said: str) -> str:
    """The question whether the nearest name was meant; where none is near, what is ``said`` and all of them."""
    known = list(known)
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"{said} {', '.join(known) or 'none'}."
