"""A matplotlib figure as part of a page: inline SVG that follows the page's colours, or an image if that is shorter.

Beside it stand its points, for the page to tell those under the pointer.
"""

import base64
import io
import json
import re
from collections import Counter

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from raygeo.report.hover import points
from raygeo.report.style import GRID, INK, MUTED, PAPER

SVG_LIMIT = 120_000
PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_FONTS = "font-family: 'DejaVu Sans', Verdana, sans-serif"
_PLACES = re.compile(r'(?<=[\s"])((?:d|x|y|x1|x2|y1|y2|width|height|points)=")([^"]*)')
_REFERRED = re.compile(r'(?<=url\(#)[^)]+|(?<=href="#)[^"]+')
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def embed(fig: Figure, name: str, alt: str) -> Markup:
    """Return ``fig`` as one ``<svg>`` element, or as one ``<img>`` if that is shorter, and its points.

    Up to ``SVG_LIMIT`` characters it is an ``<svg>`` in any case.

    What belongs to a run has the attribute ``data-run``. The same figure always gives the same text. ``name`` must be
    unique on the page: it prefixes every id of the SVG. The figure's layout stays as it is here when it is drawn again.
    """
    _lay_out(fig)
    svg = _svg(fig, name, alt)
    picture = svg if len(svg) <= SVG_LIMIT else min(svg, _image(fig, alt), key=len)
    told = json.dumps(points(fig), separators=(",", ":")).replace("<", "\\u003c")
    return Markup(f'{picture}<script type="application/json">{told}</script>')


def _lay_out(fig: Figure) -> None:
    """Place everything once, and not at each drawing, which takes longer than the drawing itself."""
    if (engine := fig.get_layout_engine()) is not None:
        engine.execute(fig)
        fig.set_layout_engine(None)


def _svg(fig: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        fig.savefig(buffer, format="svg", transparent=True, metadata=_METADATA)
    body = buffer.getvalue().partition("<svg")[2].partition(">")
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body[0]).groups()  # type: ignore[union-attr]
    inner = re.sub(r"<metadata>.*?</metadata>", "", body[2], count=1, flags=re.DOTALL)
    inner = re.sub(r'\bid="run:', 'data-run="', inner)
    inner = re.sub("|".join(PAGE_COLOURS), lambda found: PAGE_COLOURS[found[0]], inner)
    inner = _slim(inner, name)
    label = Markup.escape(alt)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'style="--width: {float(width) / 72:.2f}; {_FONTS}" xmlns:xlink="http://www.w3.org/1999/xlink">{inner.rstrip()}'
    )


def _slim(inner: str, name: str) -> str:
    """The same picture in a third of the text.

    Places to a hundredth of a point, in paths one after the other; fonts named once, and looks that occur again; no
    indentation, no turns by nothing, and only ids that something refers to, ``name`` and a number each.
    """
    inner = re.sub(r" font-family: [^;\"]*;?", "", inner)
    inner = re.sub(r' transform="rotate\(-?0 [^"]*"', "", inner)
    inner = re.sub(r"\s*\n\s*(?=[<LMQCz\"])", "", inner)
    numbers = {found: number for number, found in enumerate(dict.fromkeys(_REFERRED.findall(inner)))}
    inner = _REFERRED.sub(lambda found: f"{name}-{numbers[found[0]]}", inner)
    inner = re.sub(r' id="([^"]*)"', lambda at: f' id="{name}-{numbers[at[1]]}"' if at[1] in numbers else "", inner)
    inner = _PLACES.sub(lambda found: found[1] + re.sub(r"-?\d+\.\d{3,}", _rounded, found[2]), inner)
    inner = re.sub(r'(?<= d=")[MLz\d\s.-]+(?=")', lambda found: _steps(found[0]), inner)
    return _classed(inner, name)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _steps(path: str) -> str:
    """A path of straight lines by the step to each point from the one before, in hundredths that do not add up."""
    said: list[str] = []
    at = start = (0, 0)
    for command, x, y in re.findall(r"([MLz])(?: ?(-?[\d.]+) (-?[\d.]+))?", path):
        if command == "z":
            said.append("z")
            at = start
            continue
        point = round(100 * float(x)), round(100 * float(y))
        if command == "M":
            said.append(f"M{point[0] / 100:g} {point[1] / 100:g}")
            start = point
        else:
            step = [f"{(new - old) / 100:g}" for new, old in zip(point, at, strict=True)]
            said.append(f"l{step[0]}{'' if step[1].startswith('-') else ' '}{step[1]}")
        at = point
    return "".join(said)


def _classed(inner: str, name: str) -> str:
    """Looks that occur again as classes of a style sheet of the picture's own."""
    name = "_" + re.sub(r"\W", "-", name)
    looks = Counter(re.findall(r' style="([^"]*)"', inner))
    classes = {look: f"{name}-{number}" for number, look in enumerate(look for look in looks if looks[look] > 1)}
    inner = re.sub(r' style="([^"]*)"', lambda at: f' class="{classes[at[1]]}"' if at[1] in classes else at[0], inner)
    rules = "".join(f".{of}{{{look.replace(': ', ':').replace('; ', ';')}}}" for look, of in classes.items())
    return f"<style>{rules}</style>{inner}"


def _image(fig: Figure, alt: str) -> str:
    """The picture pixel by pixel, which as lossless WebP takes a third of a PNG."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="webp", dpi=144, pil_kwargs={"lossless": True, "method": 4})
    data = base64.b64encode(buffer.getvalue()).decode()
    style = f"--width: {fig.get_figwidth():.2f}"
    return f'<img alt="{Markup.escape(alt)}" style="{style}" src="data:image/webp;base64,{data}">'
