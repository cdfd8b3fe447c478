"""The page as a document: whole, self-contained, accessible, escaped, and the same for the same study."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_study import CONTEXT, DIVERGED, REFERENCE, UNSEEN, build_tables
from view_cases import view_of

from raygeo.analyses import registry
from raygeo.report import page as page_module
from raygeo.report import typeset
from raygeo.report.limits import failures as failed_runs
from raygeo.report.page import draw_figures, render_page
from raygeo.report.parts import Parts
from raygeo.tables import SCHEMAS

VOID = {"meta", "link", "br", "img", "path", "use"}


def without_scripts(page):
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


class Outline(HTMLParser):
    """Every start tag with its attributes, the text outside styles and scripts, and whether tags nest."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & {*self.open[-1:]}:
            self.text.append(data)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


def test_the_page_is_whole_and_its_tags_nest(page, outline):
    assert page.startswith("<!doctype html>")
    assert outline.open == []


def test_the_page_asks_for_nothing_from_outside(page, outline):
    for tag, attributes in outline.tags:
        assert tag not in {"iframe", "object"}
        assert tag != "script" or set(attributes) == {"type"}
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", without_scripts(page))
    script = (Path(page_module.__file__).parent / "page.js").read_text()
    assert not re.search(r"https?://|fetch\((?!picture)|import\(", script)


def test_ids_are_unique_and_links_lead_to_them(outline):
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a.get("href") or a.get("xlink:href") for _, a in outline.tags} - {None, "data:,"}
    assert {"#results", "#part-sweep", "#part-accuracy", "#part-curvature", "#limits", "#made"} < links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_figure_has_words_for_those_who_do_not_see_it(figures, page, outline):
    pictures = [a for _, a in outline.tags if a.get("role") == "img"]
    assert len(pictures) == len(figures) == page.count("<figcaption>")
    assert all(len(a["aria-label"]) > 80 for a in pictures)


def test_every_table_has_a_caption_and_headed_rows_and_columns(page):
    tables = re.findall(r"<table.*?</table>", without_scripts(page), re.DOTALL)
    assert tables
    for table in tables:
        assert "<caption>" in table
        assert table.count('<th scope="row">') == table.count("<tr") - 1


def test_missing_values_are_dashes_and_never_nan(outline):
    text = " ".join(outline.text)
    assert not re.search(r"\bNaN\b|\bnan\b(?! at step)|\bNone\b|<NA>", text)


def test_caveats_settings_versions_and_stages_are_on_the_page(page):
    for text in (CONTEXT.caveats[0], "model: builtin:word-problems", "2.60.0", "3 min 5 s", CONTEXT.created):
        assert text in page


def test_the_tables_that_are_named_hold_rows(tables, page):
    assert set(re.findall(r"tables/(\w+)\.parquet", page)) == set(tables)


@pytest.mark.parametrize(("reason", "told"), [(None, "diverged"), ("out of memory.", "diverged, out of memory")])
def test_runs_without_a_result_are_named(tables, reason, told):
    runs = tables["runs"].to_pylist()
    runs[-1]["reason"] = reason
    page = render_page(view_of(REFERENCE, runs=runs), CONTEXT, {}, registry.parts())
    assert f"<strong>Runs without a result.</strong> {DIVERGED}: {told}. </p>" in page
    assert "nan" not in " ".join(Outline(page).text)


def test_all_text_is_escaped(tables):
    attack = '"><script>alert(1)</script>'
    run = {"run": attack, "key": "k", "reason": attack, "loss": attack, "status": attack}
    curve = {"run": attack, "metric": "nll", "value": 1.0}
    swap = {"run_a": attack, "run_b": "base", "kind": attack, "part": attack, "alpha": 1.0, "rise": 0.1}
    view = view_of(
        attack,
        runs=[run],
        trials=[{"run": attack, "entry": 0, "values": '{"a": "<script>"}', "status": attack}],
        accuracy=[{"run": attack, "benchmark": attack, "n": 3, "accuracy": 0.5}],
        mcnemar=[{"run_a": attack, "run_b": "base", "benchmark": attack, "p_holm": 1.0, "only_a": 0, "only_b": 0}],
        set_aside=[{"source": attack, "reason": attack, "line": 1}],
        counts=[{"stage": attack, "name": attack, "value": 1}],
        training_curves=[curve | {"step": step} for step in range(3)],
        layerwise=[swap, swap | {"part": "all", "excess": 0.0}],
    )
    context = replace(
        CONTEXT, title=attack, student=attack, purpose=attack, reference_run=attack, created=attack, caveats=[attack],
        settings_yaml=attack, versions={attack: attack}, timings=[(attack, 1.0, 1, 1)],
    )  # fmt: skip
    figures = draw_figures(view, registry.parts())
    assert {"nll", "layerwise"} < set(figures)
    page = render_page(view, context, figures, registry.parts())
    outline = Outline(page)
    assert "<script>alert" not in page
    assert [a["type"] for tag, a in outline.tags if tag == "script"] == ["application/json"] * len(figures) + ["module"]
    assert outline.open == []


def test_an_empty_study_makes_a_page():
    empty = view_of()
    assert draw_figures(empty, registry.parts()) == {}
    page = render_page(empty, CONTEXT, {}, registry.parts())
    outline = Outline(page)
    assert outline.open == []
    assert CONTEXT.title in page
    ids = {attributes.get("id") for _, attributes in outline.tags}
    assert {"study", "limits", "made"} < ids
    assert not {name for name in ids if name and name.startswith(("results", "part-", "figure-", "table-"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCHEMAS) - UNSEEN))
def test_the_page_does_without_any_table_of_the_study(tables, name):
    without = registry.view({key: table for key, table in tables.items() if key != name}, REFERENCE)
    page = render_page(without, CONTEXT, {}, registry.parts())
    assert Outline(page).open == []
    assert f"tables/{name}.parquet" not in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("analysis", "name"), [(a.name, name) for a in registry.analyses().values() for name in a.tables]
)
def test_the_page_does_without_any_table_of_an_analysis(tables, analysis, name):
    """All tables of an analysis but one, as a study leaves them that was killed."""
    kept = {*SCHEMAS, *registry.analyses()[analysis].tables} - {name}
    page = render_page(
        registry.view({key: tables[key] for key in kept & set(tables)}, REFERENCE), CONTEXT, {}, registry.parts()
    )
    assert Outline(page).open == []
    assert f"tables/{name}.parquet" not in page


@pytest.mark.slow
def test_the_same_study_gives_the_same_page():
    plots = tuple(plot for plot in registry.parts().figures if plot.name in ("accuracy", "cosine", "spectra"))
    parts = Parts(figures=plots, sections=registry.parts().sections)

    def made():
        view = registry.view(build_tables(), REFERENCE)
        return render_page(view, CONTEXT, draw_figures(view, parts), parts)

    assert made() == made()


def test_figures_not_drawn_are_named(view, figures):
    parts = registry.parts()
    page = render_page(view, CONTEXT, {"accuracy": figures["accuracy"]}, parts)
    assert without_scripts(page).count('role="img"') == 1
    left_out = "; ".join(plot.title for plot in parts.figures if plot.name != "accuracy")
    assert f"Not drawn, for want of data: {left_out}." in page.replace("&#39;", "'")


def test_every_analysis_has_a_section_with_its_question_and_what_it_leads_with_open(page):
    chapters = dict(re.findall(r'<section id="part-(\w+)">(.*?)</section>', without_scripts(page), re.DOTALL))
    shown = [one for one in registry.analyses().values() if one.report.figures or one.report.sections]
    assert {"sweep", "accuracy", "training"} | {one.name for one in shown} == set(chapters)
    for one in shown:
        assert f'<p class="lead">{html.escape(one.question, quote=False)}' in chapters[one.name].replace("&#39;", "'")
        opened = re.sub(r"<details.*?</details>", "", chapters[one.name], flags=re.DOTALL)
        assert opened.count("<figure") == min(1, chapters[one.name].count("<figure"))
        assert opened.count("<table ") <= 1


def test_losses_or_seeds_stands_behind_the_results(page):
    ids = re.findall(r'<section id="([\w-]+)"', page)
    assert ids[:4] == ["verdict", "results", "table-cosine_baselines-permutation_tests", "study"]


def test_the_page_of_few_runs_is_within_its_budget(page):
    assert len(page.encode()) < 5_000_000


def test_runs_that_a_scheduler_stopped_do_not_stand_among_failures(tables):
    runs = tables["runs"].to_pylist()
    runs[-2] |= {"status": "stopped", "reason": "stopped after step 20 of 150"}
    view = view_of(REFERENCE, runs=runs)
    page = render_page(view, CONTEXT, {}, registry.parts())
    failures, stopped = page.split("Runs without a result.")[1].split("1 run stopped early by the sweep's scheduler")
    assert DIVERGED in failures
    assert runs[-2]["run"] not in failures
    assert f"<li>{runs[-2]['run']}: stopped after step 20 of 150</li>" in stopped.split("</details>")[0]
    assert [runs[-2]["run"] in sentence for sentence in failed_runs(view)] == [False, False]


@pytest.mark.parametrize("value", [0.0, 0.05, -0.123, 41.7, 1234.0, 123456.0, 7.25e-7, -3e-9])
def test_what_is_written_is_sorted_by_its_number(value):
    assert typeset.number(typeset.significant(value, 6)) == pytest.approx(value, rel=1e-5)
    assert typeset.number(typeset.percent(value)) == pytest.approx(100 * value, abs=0.05)
    assert typeset.number(typeset.points(value)) == pytest.approx(100 * value, abs=0.05)
    assert typeset.number(typeset.rate(value)) == pytest.approx(value, rel=1e-5)
    assert typeset.number(typeset.count(value)) == int(value)


@pytest.mark.parametrize("seconds", [0.4, 12, 75, 3600, 7322])
def test_times_are_sorted_by_their_seconds(seconds):
    assert typeset.number(typeset.duration(seconds)) == pytest.approx(seconds, abs=60 if seconds >= 3600 else 1)


@pytest.mark.parametrize("text", ["", "–", "sft", "0.2 to 0.4", "12 of 40", "sft-lr5e-05-s0"])
def test_words_have_no_number(text):
    assert typeset.number(text) is None
