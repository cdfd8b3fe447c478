"""The reference page of all losses (``docs/loss-types.md``), made of what they declare."""

import re
from collections.abc import Iterable, Iterator

from raygeo.losses.base import Loss
from raygeo.losses.catalogue import Entry, describe
from raygeo.options import as_table

_HEAD = """# Every loss and its paper

What `loss` in a study file can name. This page is made of what the losses declare: `raygeo losses --page
docs/loss-types.md`; with a type, `raygeo losses TYPE` prints one of them. [losses.md](losses.md) says how a study
chooses and varies them; [geometry.md](geometry.md) has the papers of what is measured.

| type | | paper |
| --- | --- | --- |
"""


def reference_page(losses: Iterable[type[Loss]]) -> str:
    """The page as Markdown: an index of types and papers, then each loss in full."""
    entries = [describe(loss) for loss in losses]
    index = "".join(f"| [`{each.type}`](#{each.type}) | {each.title} | {_linked(each.paper)} |\n" for each in entries)
    return "\n".join([f"{_HEAD}{index}", *(line for each in entries for line in _lines(each))])


def _lines(entry: Entry) -> Iterator[str]:
    yield f"## {entry.type}\n"
    yield f"{entry.title}: {_linked(entry.paper)}.\n"
    yield f"    {entry.formula}\n"
    yield f"{_linked(entry.description.replace('``', '`'))}\n"
    yield f"Averaged over {entry.unit}s. Needs {'; '.join(entry.needs) or 'nothing but graded rollouts'}.\n"
    yield from as_table(entry.options)


def _linked(paper: str) -> str:
    """A reference, with links to arXiv."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", paper)
