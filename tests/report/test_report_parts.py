"""What analyses bring to the page: all of it is there, in the registry's order, and goes with their tables."""

import re
from html import unescape

import pytest
from report_study import CONTEXT, REFERENCE, UNSEEN

from raygeo.analyses import registry
from raygeo.report.page import draw_figures, render_page
from raygeo.report.parts import Column, Parts
from raygeo.report.results import results
from raygeo.tables import SCHEMAS

FIGURES = [
    "front",
    "rates", "accuracy", "monitor", "nll", "objective",
    "norms", "norm-rates", "trajectories", "cosine", "map", "angles", "off-principal",
    "layer-alpha", "locking", "paths", "base-paths", "matched-paths", "curves", "layerwise", "wise", "matched",
    "planes",
    "rank-truncation", "heads", "head-effects", "spectra", "eigenvalues", "directional", "block-curvature",
    "expansions", "sharpness", "critical-sharpness", "cka", "layer-cka", "drift", "divergence", "coherence",
    "gradient-cosines", "forgetting", "compressibility", "tunability",
    "diversity", "prescreen",
]  # fmt: skip
INAPPLICABLE = {"no_gold", "legs", "unrelated", "rounded", "pairs_left_out", "projections"}
"""Caveats on what is not so in the made-up study: no accuracies, stages, another base, weights stored in 16 bits, many
runs, projected gradients."""


def said(view, parts):
    return [sentence for caveat in parts.caveats for sentence in caveat(view)]


def test_the_made_up_study_holds_every_table_that_is_shown(tables):
    assert set(registry.schemas()) - set(tables) == UNSEEN
    assert all(table.num_rows for table in tables.values())


def test_every_figure_is_drawn_in_the_registrys_order(figures, page):
    plots = registry.parts().figures
    assert list(figures) == [plot.name for plot in plots] == FIGURES
    assert re.findall(r'<figure id="figure-([\w-]+)">', page) == list(figures)
    text = unescape(page)
    places = [re.search(rf"<(h3|summary)>{re.escape(plot.title)}</", text).start() for plot in plots]
    assert places == sorted(places)
    assert all(f"<figcaption>{plot.caption}</figcaption>" in text for plot in plots)
    assert "Not drawn" not in page


def test_every_section_stands_in_the_chapter_of_its_analysis(view, page):
    text = unescape(page)
    chapters = [re.split("</section>", part)[0] for part in re.split(r'<section id="part-', text)[1:]]
    for bundle in registry.parts().chapters:
        for part in bundle.sections:
            sheets = part.sheets(view)
            assert sheets
            for title, prose, sheet in sheets:
                assert sheet.rows, title
                place = text if part.leading else next(c for c in chapters if c.startswith(f'{bundle.name}"'))
                assert re.search(rf"<(summary|h2|h3)>{re.escape(title)}(: \d+ rows)?</", place)
                assert f"<p>{prose}</p>" in place or not prose
                assert f"<caption>{title}</caption>" in place


def test_chapters_stand_in_the_registrys_order(page):
    named = [bundle.name for bundle in registry.parts().chapters]
    shown = re.findall(r'<section id="part-([\w-]+)">', page)
    assert shown == [name for name in named if name in shown]
    assert len(shown) > 20


def test_every_caveat_that_applies_is_said(view, page):
    silent = {caveat.__name__ for caveat in registry.parts().caveats if not list(caveat(view))}
    assert silent == INAPPLICABLE
    listed = re.findall(r"<li>(.*?)</li>", unescape(page).split('<ul class="limits">')[1])
    assert listed == [*CONTEXT.caveats, *said(view, registry.parts())]


def test_every_column_of_the_results_is_filled_and_explained(view, page):
    columns = registry.parts().columns
    sheet = results(view, columns)
    assert sheet.columns[-len(columns) :] == [column.title for column in columns]
    for column in columns:
        place = sheet.columns.index(column.title)
        assert any(row[place] != "–" for row in sheet.rows), column.title
    notes = " ".join(column.note for column in columns)
    assert f"{notes} A dash means not measured." in unescape(page)
    assert all(re.fullmatch(r"[‖A-Z].*\.", column.note) for column in columns)


def test_columns_of_one_title_do_not_hide_each_other(view):
    twice = [Column("moved", "", lambda view, text=text: {REFERENCE: text}) for text in ("first", "second")]
    sheet = results(view, twice)
    assert next(row for row in sheet.rows if row[0] == REFERENCE)[-2:] == ["first", "second"]


def test_everything_for_the_tracker_is_found(view):
    parts = registry.parts()
    assert all(list(make(view)) for make in (*parts.metrics, *parts.histories))


@pytest.mark.parametrize("name", registry.analyses())
def test_what_an_analysis_shows_goes_with_its_tables(tables, name):
    analysis = registry.analyses()[name]
    without = registry.view({key: table for key, table in tables.items() if key not in analysis.tables}, REFERENCE)
    parts = analysis.report
    assert draw_figures(without, parts) == {}
    assert [column.cells(without) for column in parts.columns] == [{}] * len(parts.columns)
    assert not [row for section in parts.sections for *_, sheet in section.sheets(without) for row in sheet.rows]
    assert not [found for make in (*parts.metrics, *parts.histories) for found in make(without)]


@pytest.mark.slow
def test_a_study_in_which_nothing_is_analysed_says_nothing_of_analyses(tables):
    bare = registry.view({name: tables[name] for name in SCHEMAS if name in tables}, REFERENCE)
    for analysis in registry.analyses().values():
        assert said(bare, analysis.report) == []
    page = render_page(bare, CONTEXT, draw_figures(bare, registry.parts()), registry.parts())
    assert page.count("<figure ") == 6
    assert registry.analyses()["norms"].report.figures[0].title in page.split("Not drawn, for want of data")[1]


def test_parts_are_joined_bundle_by_bundle():
    one, two = (Parts(caveats=(caveat,)) for caveat in (list, tuple))
    assert Parts.joined([one, Parts(), two]).caveats == (list, tuple)
