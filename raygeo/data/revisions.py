"""Revisions of the code between texts and numbers, by the names under which tables keep them."""

from collections.abc import Iterable

from raygeo.data.grading import RULES
from raygeo.data.readers import Reader
from raygeo.generation.engine import EngineSettings
from raygeo.generation.renderer import Renderer


def text_revisions(
    renderers: Iterable[type[Renderer]] = (),
    engines: Iterable[type[EngineSettings]] = (),
    readers: Iterable[type[Reader]] = (),
) -> dict[str, int]:
    """Revisions of the rules of grading and of these renderers, engines and readers."""
    return (
        {"grading": RULES}
        | {f"renderer {kind.form}": kind.revision for kind in renderers}
        | {f"engine {kind.model_fields['type'].default}": kind.revision for kind in engines}
        | {f"reader {kind.model_fields['type'].default}": kind.reader_revision for kind in readers}
    )
