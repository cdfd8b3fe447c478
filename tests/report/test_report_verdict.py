"""The verdict: no sentence stronger than its test, each with what it rests on, on the page and the console."""

import re

import numpy as np
import pytest
from report_study import REFERENCE
from view_cases import view_of

from raygeo.analyses import registry
from raygeo.evaluation.statistics import mcnemar
from raygeo.report.console import MOST_ROWS, as_text, summary
from raygeo.report.sheets import Sheet
from raygeo.report.verdict import problems_needed, smallest_visible
from raygeo.tables import BASE, to_arrow


def said(view):
    """Every sentence of the verdict, by what it rests on."""
    return [(f.rests_on, f.text) for verdict in registry.parts().verdicts for f in verdict(view)]


def told(view):
    return "\n".join(text for _, text in said(view))


def accuracy_study(correct, tests, n=100, samples=1, truncated=None):
    """A view of runs by accuracy and p after Holm's correction: ``tests`` are (a, b, only a, only b, p)."""
    return view_of(
        accuracy=[
            {
                "run": run,
                "benchmark": "heldout",
                "n": n,
                "problems": n,
                "correct": k,
                "accuracy": k / n,
                "samples": samples,
                "truncated": (truncated or {}).get(run, 0),
            }
            for run, k in correct.items()
        ],
        mcnemar=[
            {
                "benchmark": "heldout",
                "run_a": a,
                "run_b": b,
                "n": n,
                "only_a": x,
                "only_b": y,
                "p_exact": p,
                "p_holm": p,
            }
            for a, b, x, y, p in tests
        ],
        runs=[{"run": run, "key": run, "loss": "sft", "status": "finished"} for run in correct if run != BASE],
    )


def test_runs_are_told_from_the_base_by_their_corrected_test_alone():
    view = accuracy_study(
        {BASE: 40, "up": 60, "down": 20, "near": 49},
        [
            (BASE, "up", 5, 25, 0.01),
            (BASE, "down", 25, 5, 0.04),
            (BASE, "near", 3, 12, 0.051),
            ("up", "near", 15, 4, 0.2),
        ],
    )
    text = told(view)
    assert "(100 problems, base 40.0 %), Holm over 4 pairs: better than the base: up (+20.0)" in text
    assert "worse than the base: down (−20.0); not told from it: near (+9.0)." in text
    assert "No two runs are shown to differ in accuracy on heldout, of 1 pair after correction." in text
    assert "up and near, first and second on heldout, are 11.0 points apart and not told apart" in text


def test_answers_that_were_cut_off_are_said_first():
    view = accuracy_study({BASE: 40, "a": 20}, [(BASE, "a", 30, 10, 0.01)], truncated={BASE: 9, "a": 60})
    first, *_ = told(view).splitlines()
    assert first == (
        "On heldout 60.0 % of the answers of a were cut off at the length limit and count as wrong (9.0 % of those of "
        "base): differences in accuracy may be differences in length. Raise max_new_tokens of evaluation.answers."
    )
    view = accuracy_study({BASE: 40, "a": 20}, [(BASE, "a", 30, 10, 0.01)], truncated={BASE: 9, "a": 9})
    assert "cut off" not in told(view)
    view = accuracy_study({BASE: 40, "a": 20}, [(BASE, "a", 30, 10, 0.01)], truncated={BASE: 90, "a": 90})
    assert told(view).startswith(
        "On heldout 90.0 % of every model's answers were cut off at the length limit and count as wrong. Raise"
    )


@pytest.mark.parametrize(("solved", "word"), [(0, "none"), (100, "every one")])
def test_a_benchmark_that_tells_nothing_is_called_so(solved, word):
    view = accuracy_study({BASE: solved, "a": solved}, [(BASE, "a", 0, 0, 1.0)])
    said = f"All models, the base included, solve {word} of the 100 problems of heldout: its accuracy tells nothing"
    assert said in told(view)
    view = accuracy_study({BASE: 1, "a": solved}, [(BASE, "a", 0, 0, 1.0)])
    assert "All models" not in told(view)


def test_the_second_may_be_tied_and_what_is_told_apart_alone_needs_no_more_problems():
    tests = [("a", "b", 20, 5, 0.32), ("a", "c", 20, 5, 0.32), ("b", "c", 5, 5, 1.0)]
    text = told(accuracy_study({"a": 60, "b": 45, "c": 45}, tests))
    said = "a and b, first and one of the second on heldout, are 15.0 points apart and not told apart after correction"
    assert f"{said} for all pairs." in text
    assert "the median pair of runs disagrees" in text
    text = told(accuracy_study({BASE: 40, "a": 45}, [(BASE, "a", 10, 15, 0.4)]))
    assert "the median pair of models, the base included, disagrees" in text


def test_runs_that_differ_are_named_the_better_first():
    view = accuracy_study({BASE: 40, "a": 45, "b": 80}, [(BASE, "a", 5, 10, 0.5), ("a", "b", 2, 37, 0.001)])
    assert "1 of 1 pair of runs differs in accuracy on heldout after correction, b over a (+35.0) points." in told(view)
    assert "first and second" not in told(view)


def test_nothing_is_said_of_what_so_many_answers_a_problem_show():
    """The closed form is that of one answer a problem; tests of means of several see far smaller differences."""
    correct, tests = {BASE: 40, "a": 50, "b": 49}, [(BASE, "a", 20, 30, 0.3), ("a", "b", 30, 29, 0.9)]
    once, often = accuracy_study(correct, tests), accuracy_study(correct, tests, samples=8)
    for said_of_one in ("to be told apart with a probability of 80 %", "would tell it, tested alone"):
        assert said_of_one in told(once)
        assert said_of_one not in told(often)
    assert "not told from it: a" in told(often)


def test_many_runs_are_counted():
    runs = {f"r{i}": 60 + i for i in range(9)}
    view = accuracy_study({BASE: 40, **runs}, [(BASE, run, 0, k - 40, 1e-4) for run, k in runs.items()])
    assert "better than the base: 9 runs, r8 (+28.0), r7 (+27.0), r6 (+26.0) and others." in told(view)


def test_what_problems_can_show_is_what_tests_show():
    """The closed form against simulated exact McNemar tests, and against its own inverse."""
    rng, n, discordant, level = np.random.default_rng(0), 400, 0.3, 0.05
    gap = smallest_visible(discordant, n, level)
    only_a, only_b = (discordant + gap) / 2, (discordant - gap) / 2
    seen = 0
    for _ in range(300):
        kinds = rng.choice(3, size=n, p=[only_a, only_b, 1 - discordant])
        a, b = ({str(i): bool(kind == which) for i, kind in enumerate(kinds)} for which in (0, 1))
        seen += mcnemar(a, b).p_exact < level
    assert 0.70 < seen / 300 < 0.86
    assert problems_needed(discordant, gap, level) == pytest.approx(n)
    assert smallest_visible(0.01, 20, level) is None
    assert problems_needed(0.1, 0.2, level) is None


def test_losses_and_seeds(view):
    assert "by more than seeds do is not tested: 6 different labelings cannot give a p-value." in told(view)
    test = {"like": "", "runs": 8, "losses": 2, "within_n": 4, "within_mean": 0.9, "between_n": 8, "between_mean": 0.5}
    for p, claim in ((0.01, "Losses move the weights apart"), (0.2, "Losses are not shown to move the weights apart")):
        assert claim in told(view_of(permutation_tests=[{**test, "p": p}]))


def test_alike_as_seeds_is_by_the_floor_of_the_same_kind():
    def floor(a, b, seeds, mean, low):
        known = {"configuration_a": a, "configuration_b": b, "seeds": seeds, "n": 1}
        return known | {"mean": mean, "low": low, "high": 1.0}

    rows = [
        floor("a", "a", "both", 0.6, 0.5),
        floor("a", "a", "order", 0.8, 0.5),
        floor("a", "b", "order", 0.76, 0.7),
        floor("a", "b", "both", 0.62, 0.6),
        floor("a", "c", "order", 0.7, 0.7),
        floor("a", "d", "init", 0.9, 0.9),
    ]
    text = told(view_of(noise_floors=rows))
    judged = "1 of 2 pairs of configurations that have several seeds of one (of 3 in all) is as alike as seeds of one"
    assert f"{judged} of them are on average: a and b (0.62)" in text
    assert "the least alike of the others are a and c (0.70). Cosines are means over runs of other seeds" in text


def test_a_barrier_is_one_whose_interval_is_above_zero(view):
    assert "has a barrier that can be told from 0 on solutions (7 paths" in told(view)

    def barrier(run, low, scale=1.0):
        return {"run_a": "ref", "run_b": run, "probe": "solutions", "metric": "nll", "chord": 0.1 * scale,
                "chord_low": low * scale, "chord_high": 0.2 * scale, "n": 9}  # fmt: skip

    runs = [{"run": run, "key": run, "loss": "sft", "status": "finished"} for run in ("ref", "x", "y")]

    def text_of(*barriers):
        table = to_arrow("barriers", barriers, registry.schemas()["barriers"])
        return told(registry.view({"barriers": table, "runs": to_arrow("runs", runs)}, "ref"))

    text = text_of(barrier("x", 0.05), barrier("y", -0.01))
    said = (
        "1 of 2 straight paths from ref to another run has a barrier on solutions (the largest: x, 0.10 [0.050, 0.20]"
    )
    assert said in text
    none = text_of(barrier("x", 0.0, scale=0.0), barrier("y", 0.0, scale=0.0))
    assert "can be told from 0 on solutions (2 paths, 9 texts; all are 0)." in none
    low = text_of(barrier("x", 0.05, scale=4e-3), barrier("y", -0.01))
    assert "(the largest: x, 4.0 × 10⁻⁴ [2.0 × 10⁻⁴, 8.0 × 10⁻⁴]" in low
    assert "by a 95 % interval each, not corrected for their number; the other's is not told from 0." in text


def test_every_sentence_leads_to_what_it_rests_on(view, page):
    places = set(re.findall(r'id="([^"]+)"', page))
    found = said(view)
    assert len(found) > 6
    for rests_on, text in found:
        assert rests_on in places, text
        assert f'href="#{rests_on}"' in page
    assert page.index('id="verdict"') < page.index('id="study"')


def test_the_console_shows_results_and_verdict(view):
    table, *sentences = summary(view, registry.parts())
    assert re.search(rf"{REFERENCE} +83.3 % +\+41.3 +< 0.001 +sft +5e-05 +0 finished", table)
    assert sentences == [f"- {text}" for _, text in said(view)]
    many = Sheet(["run", "x"], [[f"r{i}", ("1", "detail")] for i in range(MOST_ROWS + 5)], frozenset({"run"}))
    assert as_text(many).endswith("\n... and 5 more rows on the page")
    assert "detail" not in as_text(many)
