"""A part of the page that fails takes neither the page nor the other parts, and is named with its reason."""

import re
from html import unescape

import pytest
from matplotlib.figure import Figure
from report_study import CONTEXT, DIVERGED
from view_cases import finished, view_of

from raygeo.errors import WorkloadError
from raygeo.report.missing import Failures, brief, gaps, unreached
from raygeo.report.page import PageContext, draw_figures, render_page
from raygeo.report.parts import Column, Parts
from raygeo.report.plots import figure, make_panels
from raygeo.report.sheets import Sheet, section
from raygeo.report.study import STUDY


def fails(view):
    """Any part of an analysis that has a defect."""
    raise ValueError("no such thing")


def draw(view):
    fig, [ax] = make_panels(1, 1, 2.0)
    ax.plot([1, 2])
    return fig


def draw_badly(view):
    """A figure that fails only when it is set on the page."""
    fig = Figure(layout="constrained")
    fig.subplots().set_title("$\\nosuch{$")
    return fig


SOUND = Parts(
    columns=(Column("good", "Good is good.", lambda view: {"sft": "kept"}),),
    figures=(figure("good", "A good figure", "It is drawn.")(draw),),
    sections=(section("A good section")(lambda view: Sheet(["run"], [("sft",)])),),
    caveats=(lambda view: ["A good caveat."],),
)
BROKEN = Parts(
    columns=(Column("bad", "Bad is bad.", fails), Column("number", "It is none.", lambda view: {"sft": 3})),
    figures=(figure("bad", "A bad figure", "")(fails), figure("ugly", "An ugly figure", "")(draw_badly)),
    sections=(
        section("A bad section")(fails),
        section("A ragged section")(lambda view: Sheet(["run", "n"], [("sft",)])),
    ),
    caveats=(fails, lambda view: "one text"),
)


def said(page):
    return re.findall(r"<li>(.*?)</li>", unescape(page).split("What is missing here.")[1].split("</ul>")[0])


def test_what_fails_is_left_out_and_named_and_the_rest_is_there():
    view, failures = view_of(runs=finished("sft")), Failures()
    parts = Parts.joined([STUDY, BROKEN, SOUND])
    page = render_page(view, CONTEXT, draw_figures(view, parts, failures), parts, failures)
    for text in ("A good figure", "A good section", "A good caveat.", "Good is good.", "<td>kept</td>", "sft"):
        assert text in page
    for text in (
        "<h3>A bad section",
        "<h3>A ragged section",
        "Bad is bad.",
        "It is none.",
        "figure-bad",
        "figure-ugly",
    ):
        assert text not in page
    assert "bad figure" not in page.split("Not drawn, for want of data")[1]
    found = said(page)
    reasons = {
        "the figure bad": "ValueError: no such thing",
        "the figure ugly": "ValueError: ",
        "the column 'bad'": "ValueError: no such thing",
        "the column 'number'": "TypeError: a cell is 3",
        "the section 'A bad section'": "ValueError: no such thing",
        "the section 'A ragged section'": "ValueError: a row has 1 cells",
        "the caveat test_report_missing.fails": "ValueError: no such thing",
        "the caveat test_report_missing.<lambda>": "TypeError: it did not give a list",
    }
    assert len(found) == len(reasons) == len(failures.reasons)
    for what, why in reasons.items():
        assert any(sentence.startswith(f"{what} failed and was left out: {why}") for sentence in found), what


def test_a_page_that_lacks_nothing_says_nothing(page):
    view = view_of(runs=finished("sft"))
    context = PageContext("t", "s", "sft", "now", stages=["train"], timings=[("train", 1.0, 1, 0)])
    assert "What is missing here" not in render_page(view, context, {}, Parts())
    assert said(page) == [
        "geometry.planes failed, so that its part of this page is missing or incomplete: planes: 1 of 2 tasks failed. "
        "- it broke"
    ]


def test_runs_and_the_report_itself_are_named_elsewhere(view):
    assert DIVERGED in view.failed
    assert len(view.rows("missing")) == 3
    assert len(gaps(view)) == 1


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ((), "The stages train, evaluate have not come to an end: what stands here of them, if anything, is "),
        (("train",), "The stage evaluate has not come to an end: what stands here of it, if anything, is "),
    ],
)
def test_stages_that_have_not_ended_are_named(ended, said):
    assert unreached(("train", "evaluate"), ended)[0].startswith(said)
    context = PageContext("t", "s", "", "now", stages=["train", "evaluate"], timings=[(s, 1.0, 1, 0) for s in ended])
    page = render_page(view_of(""), context, {}, Parts())
    assert said in page
    assert "reference run" not in page


def test_all_stages_that_ended_need_no_word():
    assert unreached(("train",), ("start", "train")) == []


def test_a_reason_is_one_line():
    assert brief("Traceback (most recent call last):\n  File\nValueError: x") == "ValueError: x"
    assert brief("norms: 2 tasks failed.\n- a: b\n- c: d") == "norms: 2 tasks failed. - c: d"
    assert brief("one") == "one"
    assert brief("") == "no reason was recorded"
    failures = Failures()

    def lacking():
        raise WorkloadError("said as it is.")

    assert failures.attempt("it", lacking) is None
    assert failures.sentences() == ["it failed and was left out: said as it is."]
