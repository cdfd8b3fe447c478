"""A store with the made-up study, opened as a reader does: the figures and the verdict are those of the page."""

import pytest
from report_study import REFERENCE

import raygeo
from raygeo.analyses.registry import parts
from raygeo.errors import ConfigError
from raygeo.report.console import sentences
from raygeo.report.missing import Failures
from raygeo.store import Store

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def results(tables, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("opened") / "store")
    for name, table in tables.items():
        store.publish_rows(name, table)
    return raygeo.open(store.location)


def test_the_verdict_is_that_of_the_page(results, view):
    assert results.verdict == sentences(view, parts(), Failures())
    assert any(said.startswith("Accuracy on ") for said in results.verdict)


def test_figures_are_drawn_by_name(results, figures):
    drawn = results.figure("cosine")
    assert [axes.get_title() for axes in drawn.axes] == [axes.get_title() for axes in figures["cosine"].axes]
    with pytest.raises(ConfigError, match="there is no figure 'cosin'; did you mean 'cosine'"):
        results.figure("cosin")


def test_runs_are_in_the_order_of_the_study(results, view):
    assert list(results.runs) == view.names
    assert results.runs[REFERENCE].record == view.records[REFERENCE]


def test_all_figures_are_those_of_the_page(results, figures):
    assert list(results.figures) == list(figures)
