"""The page in a real browser: nothing wider than the window, nothing complained of, nothing asked of the network."""

import html
import re
import shutil
import subprocess

import pytest
from view_cases import view_of

from raygeo.report.page import PageContext, render_page
from raygeo.report.parts import Parts

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FRAME = """<!doctype html><html><body>
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const unseen = [...page.querySelectorAll(".plot > *")].filter(plot => plot.getBoundingClientRect().height < 60);
  console.assert(page.compatMode === "CSS1Compat", "quirks mode");
  document.body.dataset.measured = [root.clientWidth, root.scrollWidth, unseen.length].join(" ");
}};
</script></body></html>"""


def browse(folder, page: str, width: int, *flags: str) -> tuple[str, str]:
    """Open ``page`` in a window ``width`` pixels wide; returns its document and what the browser logged."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", *flags, file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def measure(folder, page: str, width: int) -> tuple[list[int], str]:
    """Width of the window, of the page in it, and how many figures are not seen; then what the browser logged."""
    document, log = browse(folder, FRAME.format(width=width, page=html.escape(page)), 1400, "--dump-dom")
    found = re.search(r'data-measured="([\d ]+)"', document)
    assert found, log
    return [int(number) for number in found[1].split()], log


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window_and_the_browser_has_no_complaint(tmp_path, page, width):
    measured, log = measure(tmp_path, page, width)
    assert measured == [width, width, 0]
    assert "CONSOLE" not in log


def test_the_measure_notices_what_is_too_wide_and_what_is_logged(tmp_path):
    broken = '<!doctype html><html><body><div style="width: 3000px">.</div><script>missing()</script></body></html>'
    (window, page, _), log = measure(tmp_path, broken, 1280)
    assert page > window + 1000
    assert "CONSOLE" in log


def test_the_page_paints(tmp_path, page):
    picture = tmp_path / "page.png"
    browse(tmp_path, page, 1280, f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000


FILTERED = """<!doctype html><html><body><iframe srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, said = [];
  const box = page.querySelector("input[aria-label='Filter: Results of every run, the base first']");
  const rows = [...box.parentElement.querySelectorAll("tbody tr")];
  for (const words of ["lr2 s1", "S1", "nothing", ""]) {{
    box.value = words;
    box.dispatchEvent(new Event("input"));
    const left = rows.filter(row => frame.contentWindow.getComputedStyle(row).display !== "none").length;
    said.push(left + box.nextElementSibling.textContent);
  }}
  document.body.dataset.said = said.join(",");
}};
</script></body></html>"""


def test_filters_hide_the_rows_that_lack_a_word(tmp_path):
    names = [f"sft-lr{lr}-s{seed}" for lr in range(9) for seed in range(3)]
    runs = [{"run": name, "key": name, "loss": "sft", "status": "finished"} for name in names]
    page = render_page(view_of(names[0], runs=runs), PageContext("many", "tiny", names[0], "now"), {}, Parts())
    document, log = browse(tmp_path, FILTERED.format(page=html.escape(page)), 1400, "--dump-dom")
    found = re.search(r'data-said="([^"]*)"', document)
    assert found, log
    assert found[1] == "1 1 of 28 rows,9 9 of 28 rows,0 0 of 28 rows,28"
