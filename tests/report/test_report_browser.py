"""The page in a real browser: nothing wider than the window, nothing complained of, and what it does under the hand."""

import csv
import html
import json
import re
import shutil
import subprocess

import pytest
from view_cases import view_of

from raygeo.analyses.similarity.report import cosine_heatmap
from raygeo.report.page import PageContext, draw_figures, render_page
from raygeo.report.parts import Parts
from raygeo.report.sheets import Sheet, section
from raygeo.report.training import accuracy
from raygeo.tables import BASE

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]
FRAME = """<!doctype html><html><body>
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  for (const fold of page.querySelectorAll("main details")) fold.open = {opened};
  const unseen = [...page.querySelectorAll(".plot > svg, .plot > img")].filter(plot => {{
    const box = plot.getBoundingClientRect();
    return !plot.closest("details:not([open])") && box.height < 60;
  }});
  const told = [...page.querySelectorAll("#results thead th")].find(head => head.textContent.includes("accuracy"));
  console.assert(page.compatMode === "CSS1Compat", "quirks mode");
  const hidden = told && told.getBoundingClientRect().right > root.clientWidth ? 1 : 0;
  document.body.dataset.measured = [root.clientWidth, root.scrollWidth, unseen.length, hidden].join(" ");
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return done.stdout, done.stderr


def measure(folder, page: str, width: int, opened: str = "true") -> tuple[list[int], str]:
    """Width of the window, of the page in it, how many figures are not seen, and whether accuracy is hidden in the
    table of results; then what the browser logged.
    """
    frame = FRAME.format(width=width, page=html.escape(page), opened=opened)
    document, log = browse(folder, frame, 1600, "--dump-dom")
    found = re.search(r'data-measured="([\d ]+)"', document)
    assert found, log
    return [int(number) for number in found[1].split()], log


def act(folder, page: str, script: str):
    """What a script that follows the page's own says of it, as JSON."""
    following = (
        "<script type='module'>const pause = () => new Promise(resolve => setTimeout(resolve, 100));"
        f"document.body.dataset.said = JSON.stringify(await (async () => {{{script}}})());</script></body></html>"
    )
    head, _, _ = page.rpartition("</body>")
    document, log = browse(folder, head + following, 1400, "--virtual-time-budget=20000", "--dump-dom")
    found = re.search(r'data-said="([^"]*)"', document)
    assert found, log
    assert "CONSOLE" not in log
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("opened", ["false", "true"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_window_and_the_browser_has_no_complaint(tmp_path, page, width, opened):
    measured, log = measure(tmp_path, page, width, opened)
    assert measured == [width, width, 0, 0]
    assert "CONSOLE" not in log


def test_tables_are_no_wider_than_paper(tmp_path, page):
    on_paper = page.replace("@media print", "@media all")
    assert on_paper != page
    measured, _ = measure(tmp_path, on_paper, 720)
    assert measured == [720, 720, 0, 0]


def test_the_measure_notices_what_is_too_wide_and_what_is_logged(tmp_path):
    broken = '<!doctype html><html><body><div style="width: 3000px">.</div><script>missing()</script></body></html>'
    (window, page, *_), log = measure(tmp_path, broken, 1280)
    assert page > window + 1000
    assert "CONSOLE" in log


def test_the_page_paints(tmp_path, page):
    picture = tmp_path / "page.png"
    browse(tmp_path, page, 1280, f"--screenshot={picture}")
    assert picture.stat().st_size > 50_000


LOSSES = ("sft", "dpo", "grpo")
NAMES = [f"{loss}-s{seed}" for loss in LOSSES for seed in range(2)]
ACCURACIES = dict(zip((BASE, *NAMES), (0.5, 0.9, 0.095, 1.0, 0.3, 0.7, 0.6), strict=True))


@section("Numbers")
def numbers(view):
    values = ["−0.5", "12", "3 × 10⁻⁵", "–", "< 0.001"]
    return Sheet(["name", "value"], [(f"row {i}", value) for i, value in enumerate(values)])


@section("Apart", folded=True)
def apart(view):
    return Sheet(["name", "value"], [("a", "1"), ("b", "2")])


@pytest.fixture(scope="module")
def small():
    """The page of six runs of three losses."""
    view = view_of(
        NAMES[0],
        runs=[{"run": name, "key": name, "loss": name[:-3], "status": "finished"} for name in NAMES],
        accuracy=[
            {"run": name, "benchmark": "heldout", "n": 1000, "correct": round(1000 * value), "accuracy": value}
            | {"low": value - 0.05, "high": min(1.0, value + 0.05), "truncated": 0, "undecided": 0}
            for name, value in ACCURACIES.items()
        ],
        similarity=[
            {"run_a": NAMES[0], "run_b": name, "scope": "global", "name": "", "cosine": -0.12344 * place}
            for place, name in enumerate(NAMES[1:], 1)
        ],
    )
    parts = Parts(name="small", figures=(accuracy, cosine_heatmap), sections=(numbers, apart))
    return render_page(view, PageContext("small", "tiny", NAMES[0], "now"), draw_figures(view, parts), parts)


FIRST = "const rows = table => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim());"


def test_tables_are_sorted_by_number_either_way(tmp_path, small):
    script = """
    const said = [];
    for (const [place, column] of [["#results table", 1], ["#part-small table", 1]]) {
      const table = document.querySelector(place), head = table.tHead.rows[0].cells[column];
      for (let click = 0; click < 2; click++) {
        head.dispatchEvent(new MouseEvent("click", { bubbles: true }));
        await pause();
        said.push(rows(table));
      }
    }
    return said;"""
    rising, falling, up, down = act(tmp_path, small, FIRST + script)
    assert rising == sorted(ACCURACIES, key=ACCURACIES.__getitem__)
    assert falling == rising[::-1]
    assert up == ["row 3", "row 0", "row 2", "row 4", "row 1"]
    assert down == up[::-1]


def test_filters_leave_the_rows_that_have_all_words(tmp_path, small):
    script = """
    const box = document.querySelector("input[aria-label='Filter: Results of every run, the base first']");
    const table = document.querySelector("#results table"), said = [];
    for (const words of ["s1 dpo", "S1", "nothing", ""]) {
      box.value = words;
      box.dispatchEvent(new Event("input"));
      const shown = rows(table).filter(name => !name.startsWith("No matching"));
      said.push([shown, box.closest(".tools").querySelector("[role=status]").textContent]);
    }
    return said;"""
    assert act(tmp_path, small, FIRST + script) == [
        [["dpo-s1"], "1 of 7 rows"],
        [["sft-s1", "dpo-s1", "grpo-s1"], "3 of 7 rows"],
        [[], "0 of 7 rows"],
        [[BASE, *NAMES], ""],
    ]


def test_tables_are_saved_as_csv(tmp_path, small):
    script = """
    let blob = null;
    URL.createObjectURL = made => { blob = made; return "#"; };
    document.querySelector("#results .tools button").click();
    while (!blob) await pause();
    return new TextDecoder("utf-8").decode(await blob.arrayBuffer());"""
    head, base, first, *rest = filter(None, csv.reader(act(tmp_path, small, script).splitlines()))
    assert head[:4] == ["run", "accuracy", "points vs base", "p (Holm) vs base"]
    assert base[:2] == [BASE, "50.0 % [45.0, 55.0]"]
    assert first[:2] == ["sft-s0", "90.0 % [85.0, 95.0]"]
    assert [row[0] for row in rest] == NAMES[1:]


def test_what_is_folded_opens_where_a_link_leads_and_on_paper(tmp_path, small):
    script = """
    const fold = document.querySelector("#part-small details:has(table)"), said = [fold.open];
    const table = document.querySelector("#part-small details table");
    dispatchEvent(new Event("beforeprint"));
    said.push(fold.open);
    dispatchEvent(new Event("afterprint"));
    said.push(fold.open);
    location.hash = fold.id;
    await pause();
    said.push(fold.open, table.classList.contains("dataTable"));
    return said;"""
    assert act(tmp_path, small, script) == [False, True, False, True, True]


def test_figures_tell_the_point_under_the_pointer_and_its_run_stands_out(tmp_path, small):
    script = """
    const plot = document.querySelector("#figure-accuracy .plot"), picture = plot.querySelector("svg");
    const { size, lines } = JSON.parse(plot.querySelector("script").textContent);
    const [, , [[x, y]]] = lines.find(([run, place, points]) => run === "dpo-s1" && points.length === 1);
    picture.scrollIntoView();
    const box = picture.getBoundingClientRect();
    const at = { clientX: box.left + x / size[0] * box.width, clientY: box.top + y / size[1] * box.height };
    const move = () => picture.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...at }));
    move();
    const mark = plot.querySelector("[data-run='dpo-s1']").getBoundingClientRect();
    const tip = document.querySelector(".tip");
    const off = Math.hypot(at.clientX - mark.left - mark.width / 2, at.clientY - mark.top - mark.height / 2);
    const dimmed = [...new Set([...plot.querySelectorAll(".dim")].map(mark => mark.dataset.run))];
    const told = [...tip.childNodes].map(part => part.textContent);
    plot.dispatchEvent(new PointerEvent("pointerleave"));
    return { told, dimmed, off, after: [tip.hidden, plot.querySelectorAll(".dim").length] };"""
    found = act(tmp_path, small, script)
    assert found["told"] == ["dpo-s1", "accuracy, % 30"]
    assert found["dimmed"] == [BASE, *(name for name in NAMES if name != "dpo-s1")]
    assert found["off"] < 3
    assert found["after"] == [True, 0]


def test_heatmaps_tell_the_cell_under_the_pointer(tmp_path, small):
    """At the middle of the numbers that are written in the cells, and beside all of them."""
    script = """
    const fold = document.querySelector("#figure-cosine").closest("details"), tip = document.querySelector(".tip");
    if (fold) fold.open = true;
    const picture = document.querySelector("#figure-cosine .plot svg");
    const tell = (clientX, clientY) => {
      picture.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX, clientY }));
      return tip.hidden ? null : [...tip.childNodes].map(part => part.textContent.trim());
    };
    const over = number => {
      const word = [...picture.querySelectorAll("text")].find(text => text.textContent === number);
      const box = word.getBoundingClientRect();
      return tell(box.left + box.width / 2, box.top + box.height / 2);
    };
    const { cells: [[, , , [left]]], size } = JSON.parse(picture.nextElementSibling.textContent);
    const box = picture.getBoundingClientRect();
    return [over("\u22120.25"), tell(box.left + (left - 9) / size[0] * box.width, box.top + box.height / 2)];"""
    told, beside = act(tmp_path, small, script)
    assert told == ["cosine of weight deltas, all modules −0.2469", NAMES[0], NAMES[2]]
    assert beside is None


@pytest.mark.parametrize(("width", "opened"), [(1400, True), (500, False)])
def test_the_contents_are_a_menu_where_the_window_is_narrow(tmp_path, small, width, opened):
    document, _ = browse(tmp_path, small, width, "--dump-dom")
    [nav] = re.findall(r"<nav.*?</nav>", document, re.DOTALL)
    assert ("<details open" in nav) is opened
    assert re.findall(r'href="#([\w-]+)"', nav) == ["results", "study", "part-small", "limits", "made"]
