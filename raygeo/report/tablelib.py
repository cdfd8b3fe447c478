"""The library that makes tables on the page sort, filter and save themselves: DataTables, as itables ships it."""

import re
from functools import cache
from importlib import resources


@cache
def table_library() -> str:
    """The library as the beginning of a script module, in which ``jQuery`` with its plugin ``DataTable`` is known.

    The text is that of the installed package itables (MIT, as DataTables is), with its notices.

    Raises:
        FileNotFoundError: the package has no such file, so that its version is none that raygeo knows.
    """
    text = (resources.files("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    exported = re.search(r"export\s*\{[^}]*?([\w$]+) as jQuery\b[^}]*\};?", text)
    if exported is None:
        raise FileNotFoundError("itables/html/dt_bundle.js does not export jQuery; install a version in its range.")
    known = f"const jQuery = {exported[1]};"
    return f"{text[: exported.start()]}{known}{text[exported.end() :]}".replace("</script", "<\\/script")
