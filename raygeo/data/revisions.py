"""Revisions of the code between texts and numbers, by the names under which tables keep them."""

from collections.abc import Iterable

from raygeo.data.grading import RULES
from raygeo.data.readers import Reader
from raygeo.generation.engine import EngineSettings
from raygeo.generation.renderer import Renderer


def renderer_revision(kind: type[Renderer]) -> dict[str, int]:
    """The revision of one renderer."""
    return {f"renderer {kind.form}": kind.revision}


def text_revisions(
    renderers: Iterable[type[Renderer]] = (),
    engines: Iterable[type[EngineSettings]] = (),
    readers: Iterable[type[Reader]] = (),
) -> dict[str, int]:
    """Revisions of the rules of grading and of these renderers, engines and readers."""
    return (
        {"grading": RULES}
        | {name: number for kind in renderers for name, number in renderer_revision(kind).items()}
        | {f"engine {kind.model_fields['type'].default}": kind.revision for kind in engines}
        | {f"reader {kind.model_fields['type'].default}": kind.reader_revision for kind in readers}
    )
