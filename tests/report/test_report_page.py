import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest
from report_study import CONTEXT, DIVERGED, REFERENCE, RUNS, build_tables

from raygeo.report import embed
from raygeo.report.figures import FIGURES, draw_figures
from raygeo.report.limits import limits, seed_pairs
from raygeo.report.page import render_page
from raygeo.report.sections import off_principal, representation, results, study, weights, yardsticks
from raygeo.report.style import RC
from raygeo.report.view import View
from raygeo.tables import SCHEMAS, to_arrow

VOID = {"meta", "link", "br", "img", "path", "use"}


class Outline(HTMLParser):
    """Every start tag with its attributes, the text outside styles, and whether tags nest."""

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
        if "style" not in self.open[-1:]:
            self.text.append(data)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


def row(sheet, name):
    cells = next(cells for cells in sheet.rows if cells[0] == name)
    return dict(zip(sheet.columns, cells, strict=True))


def test_the_page_is_whole_and_its_tags_nest(page, outline):
    assert page.startswith("<!doctype html>")
    assert outline.open == []


def test_the_page_asks_for_nothing_from_outside(page, outline):
    for tag, attributes in outline.tags:
        assert tag not in {"script", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "data", "srcset"):
            assert re.match(r"#|data:", attributes.get(name) or "#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique_and_links_lead_to_them(outline):
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a.get("href") or a.get("xlink:href") for _, a in outline.tags} - {None, "data:,"}
    assert links
    assert {link.removeprefix("#") for link in links} <= set(ids)


def test_every_figure_is_shown_with_words_for_those_who_do_not_see_it(page, outline):
    pictures = [a for _, a in outline.tags if a.get("role") == "img"]
    assert len(pictures) == len(FIGURES) == page.count("<figcaption>")
    assert all(len(a["aria-label"]) > 80 for a in pictures)


def test_every_table_has_a_caption_and_headed_rows_and_columns(page):
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        assert "<caption>" in table
        assert table.count('<th scope="row">') == table.count("<tr") - 1


def test_results_hold_the_right_numbers_with_the_base_first(tables):
    sheet = results.results(View(tables, REFERENCE))
    assert [cells[0] for cells in sheet.rows] == ["base", *RUNS, DIVERGED]
    rft = row(sheet, "rft-lr5e-05-s0")
    assert rft["accuracy"] == ("91.7 %", "[88.0, 94.3]")
    assert rft["points vs base"] == "+49.7"
    assert rft["p (Holm) vs base"] == "< 0.001"
    assert rft["‖Δ‖"] == "3.70"
    assert rft["‖Δ‖/‖W‖"] == "4.4 %"
    assert rft["cosine to ref."] == "0.68"
    assert rft["top eigenvalue"] == "13.4"
    assert rft["trace"] == ("425", "± 12")
    assert rft["barrier to ref."] == ("0.000", "[0.000, 0.001]")
    base = row(sheet, "base")
    assert base["accuracy"] == ("42.0 %", "[36.6, 47.7]")
    assert base["cosine to ref."] == base["points vs base"] == "–"
    diverged = row(sheet, DIVERGED)
    assert diverged["status"] == "diverged"
    assert {diverged[c] for c in ("accuracy", "‖Δ‖", "cosine to ref.", "trace", "barrier to ref.")} == {"–"}


def test_a_run_known_only_from_its_geometry_is_not_called_untrained(tables):
    view = View({name: tables[name] for name in ("deltas", "similarity")}, REFERENCE)
    rft = row(results.results(view), "rft-lr5e-05-s0")
    assert (rft["status"], rft["‖Δ‖"], rft["‖Δ‖/‖W‖"], rft["cosine to ref."]) == ("–", "3.70", "4.4 %", "0.68")


def test_a_reference_run_that_failed_has_no_cosine(tables):
    assert row(results.results(View(tables, DIVERGED)), DIVERGED)["cosine to ref."] == "–"


def test_several_benchmarks_have_their_own_columns(tables):
    more = [r | {"benchmark": "gsm8k"} for r in tables["accuracy"].to_pylist()]
    both = to_arrow("accuracy", tables["accuracy"].to_pylist() + more)
    columns = results.results(View(tables | {"accuracy": both}, REFERENCE)).columns
    assert "word-problems accuracy" in columns
    assert "gsm8k accuracy" in columns


def test_missing_values_are_dashes_and_never_nan(outline):
    text = " ".join(outline.text)
    assert not re.search(r"\bNaN\b|\bnan\b(?! at step)|\bNone\b|<NA>", text)


def test_mcnemar_reads_from_both_sides(tables):
    sheet = results.mcnemar.make(View(tables, REFERENCE))["word-problems"]
    assert row(sheet, "base")[REFERENCE] == ("< 0.001", "12 : 136")
    assert row(sheet, REFERENCE)["base"] == ("< 0.001", "136 : 12")
    assert row(sheet, "base")["base"] == ""


def test_facts_count_what_was_learned_from(tables):
    shown = {fact.label: fact.value for fact in study.facts(View(tables, REFERENCE))}
    assert shown == {
        "prompts": "40",
        "graded rollouts": "320",
        "of rollouts correct": "46.9 %",
        "of prompts mixed: right and wrong": "77.5 %",
        "rollouts truncated": "1",
        "input rows rejected": "1",
        "runs finished": "8 of 9",
    }


def test_the_noise_floor_counts_pairs_at_least_as_alike(tables):
    (cells,) = weights.noise_floor.make(View(tables, REFERENCE)).rows
    assert cells == [REFERENCE, "sft-lr5e-05-s1", "data order", "0.871", "2 of 26"]


def test_cosines_stand_beside_their_yardsticks(tables):
    sheet = yardsticks.yardsticks.make(View(tables, REFERENCE))
    cells = next(c for c in sheet.rows if c[:2] == [REFERENCE, "rft-lr5e-05-s0"])
    assert dict(zip(sheet.columns, cells, strict=True)) == {
        "a": REFERENCE,
        "b": "rft-lr5e-05-s0",
        "seeds that differ": "none",
        "cosine": "0.683",
        "z": "525.4",
        "floor": ("0.87 to 0.87", "1 pair: data order"),
        "disattenuated": "–",
        "centred": ("0.38 / 0.28", "−0.20 / −0.15"),
        "distance": ("2.73", "2.63"),
    }
    assert len(sheet.rows) == 28
    assert row(sheet, "rft-lr5e-05-s0")["floor"] == "–"


def test_separations_have_their_p_or_the_reason_why_not(tables):
    first, second, third = yardsticks.separations.make(View(tables, REFERENCE)).rows
    assert first == [
        "all", "7", ("0.871", "1 pair"), ("0.366", "5 pairs"), "1.61", "–",
        "6 different labelings cannot give a p-value",
    ]  # fmt: skip
    assert second[-2:] == ["0.002", "all 720 labelings"]
    assert third[-3:] == ["–", "< 0.001", "9\u2009999 draws of 1\u2009000\u2009000\u2009000 labelings"]


def test_floors_and_spans_name_configurations_by_a_run(tables):
    own, between = yardsticks.floors.make(View(tables, REFERENCE)).rows
    assert own == [REFERENCE, "itself", "data order", "1", ("0.871", "[0.871, 0.871]"), "–"]
    assert between[1:] == ["rft-lr5e-05-s0", "data order", "1", ("0.669", "[0.669, 0.669]"), "1.020"]
    span = row(yardsticks.spans.make(View(tables, REFERENCE)), "sft-lr5e-05-s1")
    assert span["orthogonal fraction"] == "0.491"
    assert span["the run is"] == "one of them, left out"


def test_weights_before_and_after_have_overlaps_beside_chance(tables):
    cells = row(off_principal.off_principal.make(View(tables, REFERENCE)), "rft-lr5e-05-s0")
    assert cells["unchanged"] == ("66 %", "of 65\u2009536")
    assert cells["spectral shift"] == "0.0027"
    assert cells["output turn"] == ("11°", "mean 5.6°")
    assert cells["principal"] == ("23 %", "22 % shuffled, 30 % random (z 40)")
    (first, *_), pairs = (sheet := off_principal.changed_pairs.make(View(tables, REFERENCE))).rows, len(sheet.rows)
    assert first[2:] == ["0.125", "0.080", "1\u2009234"]
    assert pairs == 28


def test_limits_of_yardsticks_follow_what_was_found(tables):
    said = "\n".join(limits(View(tables, REFERENCE)))
    assert "not tested here: 6 different labelings cannot give a p-value." in said
    assert "as few as 1 pair of runs, and have no interval. 1 of 1 exceed 1" in said
    assert "holds 71.0 % of the variance" in said
    assert "Sparsity counts entries of 65\u2009536" in said
    tested = [r | {"reason": ""} for r in tables["separations"].to_pylist()]
    flat = [r | {"share": float(r["axis"] == 1)} for r in tables["map_axes"].to_pylist()]
    other = {"separations": to_arrow("separations", tested), "map_axes": to_arrow("map_axes", flat)}
    said = "\n".join(limits(View(tables | other, REFERENCE)))
    assert "asks whether the loss matters at all (6 losses, 7 runs)" in said
    assert "The map is flat" not in said


def test_trajectories_have_their_laws_and_turns(tables):
    cells = row(weights.trajectories.make(View(tables, REFERENCE)), "rft-lr5e-05-s0")
    assert cells == {
        "run": "rft-lr5e-05-s0",
        "points": "9",
        "a + b log t": ("−0.370 + 0.740 log t", "RSS 0.040"),
        "c t^q": ("0.183 t^0.600", "RSS 0.0010"),
        "AIC, log − power": "27.5",
        "‖Δ‖ / path": "0.91",
        "sharpest turn, cosine": "0.60",
    }


def test_trajectories_of_too_few_points_have_no_law():
    rows = [{"run": "b", "step": step, "norm": 0.1 * step} for step in (1, 4)]
    fits = [{"run": "b", "law": law, "n": 2} for law in ("log", "power")]
    tables = {"trajectories": to_arrow("trajectories", rows), "trajectory_fits": to_arrow("trajectory_fits", fits)}
    for given in (tables, {"trajectories": tables["trajectories"]}):
        (cells,) = weights.trajectories.make(View(given, REFERENCE)).rows
        assert cells == ["b", "2", *["–"] * 5]


def test_limits_of_trajectories_follow_how_runs_were_trained(tables):
    def said(**training):
        runs = [run | {"params": json.dumps({"training": training})} for run in tables["runs"].to_pylist()]
        return "\n".join(limits(View(tables | {"runs": to_arrow("runs", runs)}, REFERENCE)))

    assert "9 kept steps a run" in said()
    assert "Learning rates fell" in said(schedule="linear")
    assert "Learning rates fell" not in said(schedule="constant")
    assert "LoRA starts with B at zero" in said(lora={"r": 4})
    assert "LoRA starts with B at zero" not in said(lora=None)


def test_runs_with_other_settings_are_no_noise_floor(tables):
    runs = tables["runs"].to_pylist()
    for run in runs:
        if run["run"] == "sft-lr5e-05-s1":
            run["params"] = '{"loss": {"type": "sft"}, "training": {"lr": 5e-05, "seed": 1, "batch_size": 64}}'
    assert seed_pairs(View(tables | {"runs": to_arrow("runs", runs)}, REFERENCE)).empty


@pytest.mark.parametrize(("lora", "pairs"), [(None, 0), ({"r": 4}, 1)])
def test_an_adapter_seed_makes_a_noise_floor_only_where_there_is_an_adapter(tables, lora, pairs):
    runs = tables["runs"].to_pylist()
    for run in runs:
        if run["run"].startswith("sft-lr5e-05-s"):
            run["init_seed"], run["seed"] = run["seed"], 0
            run["params"] = json.dumps({"loss": {"type": "sft"}, "training": {"lora": lora, "lr": 5e-5}})
    found = seed_pairs(View(tables | {"runs": to_arrow("runs", runs)}, REFERENCE))
    assert len({frozenset(pair) for pair in zip(found.run_a, found.run_b, strict=True)}) == pairs


def test_limits_name_what_this_study_cannot_show(tables):
    said = "\n".join(limits(View(tables, REFERENCE)))
    assert f"{DIVERGED} has no result: diverged, objective became nan at step 12" in said
    assert "7 of 8 combinations of loss and learning rate were trained with one seed" in said
    assert "300 problems" in said
    assert "± 5.6 points" in said
    assert "dpo-lr0.0005-s0 has the most, 10.3 %" in said
    assert "Holm-corrected over 36 pairs" in said
    assert "delta of dpo-lr0.0005-s0 is 6.2 times as long as that of dpo-lr5e-05-s0" in said
    assert "61° to 89° on the left" in said
    assert "11 values of α for the NLL and 5 values of α for accuracy" in said
    assert "cannot be negative by construction" in said
    assert "200 hidden states of fixed texts" in said


def test_limits_that_do_not_apply_are_not_said(tables):
    runs = [r | {"delta_norm": 1.0, "seed": s} for r in tables["runs"].to_pylist()[:2] for s in (0, 1)]
    for run in runs:
        run["run"] += f"-{run['seed']}"
    assert limits(View({"runs": to_arrow("runs", runs)}, REFERENCE)) == []


def test_caveats_settings_versions_and_stages_are_on_the_page(page):
    for text in (CONTEXT.caveats[0], "model: builtin:word-problems", "2.60.0", "3 min 5 s", CONTEXT.created):
        assert text in page
    assert "tables/similarity.parquet" in page


def test_all_text_is_escaped(tables):
    attack = '"><script>alert(1)</script>'
    runs = [r | {"run": attack, "reason": attack, "loss": attack} for r in tables["runs"].to_pylist()[-1:]]
    hostile = {
        "runs": to_arrow("runs", runs),
        "accuracy": to_arrow("accuracy", [{"run": attack, "benchmark": attack, "n": 3, "accuracy": 0.5}]),
        "rejected": to_arrow("rejected", [{"source": attack, "reason": attack, "line": 1}]),
        "curves": to_arrow("curves", [{"run": attack, "step": s, "metric": "nll", "value": 1.0} for s in range(3)]),
    }
    context = replace(
        CONTEXT, title=attack, student=attack, caveats=[attack], settings_yaml=attack, versions={attack: attack}
    )
    page = render_page(hostile, replace(context, reference_run=attack), draw_figures(hostile, attack))
    assert "<script" not in page
    assert Outline(page).open == []


@pytest.mark.parametrize("name", [*SCHEMAS, None])
def test_the_page_does_without_any_table(tables, name):
    """Each table missing in turn, and (None) all of them."""
    left = {} if name is None else {key: table for key, table in tables.items() if key != name}
    page = render_page(left, CONTEXT, {})
    assert CONTEXT.title in page
    assert Outline(page).open == []


@pytest.mark.parametrize("names", [("rollouts",), ("rejected",), ("runs",), tuple(SCHEMAS)])
def test_the_page_does_with_empty_tables(tables, names):
    """To ``View.frame`` an empty table is a missing one; these three are read without it as well."""
    page = render_page(tables | {name: SCHEMAS[name].empty_table() for name in names}, CONTEXT, {})
    assert Outline(page).open == []


def test_the_same_study_gives_the_same_page():
    def made():
        tables = build_tables()
        with matplotlib.rc_context(RC):
            drawn = {name: FIGURES[name].draw(View(tables, REFERENCE)) for name in ("accuracy", "cosine", "spectra")}
        return render_page(tables, CONTEXT, drawn)

    assert made() == made()


def test_figures_not_drawn_are_named(tables, figures):
    page = render_page(tables, CONTEXT, {"accuracy": figures["accuracy"]})
    assert page.count('role="img"') == 1
    assert FIGURES["cka"].title in page


def test_a_large_figure_becomes_a_png(figures, monkeypatch):
    monkeypatch.setattr(embed, "SVG_LIMIT", 1000)
    text = embed.embed(figures["accuracy"], "accuracy", 'say "hi"')
    assert text.startswith('<img alt="say &#34;hi&#34;"')
    assert "data:image/png;base64,iVBORw0KGgo" in text


def test_treatments_of_cka_stand_side_by_side(tables):
    sheet = representation.treatments.make(View(tables, REFERENCE))
    assert sheet.columns == ["run", "plain", "no first component"]
    assert row(sheet, "rft-lr5e-05-s0")["plain"] == ("0.852", "least 0.852")
    assert row(sheet, "rft-lr5e-05-s0")["no first component"] == ("0.704", "least 0.704")


def test_the_last_layer_against_the_reference_is_plain_cka(tables):
    more = [r | {"treatment": "without_1_pc", "cka": 0.1} for r in tables["cka"].to_pylist()]
    both = tables | {"cka": to_arrow("cka", tables["cka"].to_pylist() + more)}
    for given in (tables, both):
        assert row(weights.reference_pairs.make(View(given, REFERENCE)), "rft-lr5e-05-s0")["CKA, last layer"] == "0.968"


def test_predictions_are_compared_with_the_base_and_the_reference(tables):
    sheet = representation.predictions.make(View(tables, REFERENCE))
    assert [cells[0] for cells in sheet.rows] == ["base", *RUNS]
    rft, base = row(sheet, "rft-lr5e-05-s0"), row(sheet, "base")
    assert rft["KL(run ‖ base)"] == ("0.274", "[0.219, 0.329]")
    assert rft["KL(base ‖ run)"] == ("0.301", "[0.241, 0.361]")
    assert rft["agrees with ref."] == ("90.0 %", "[72.0, 108.0]")
    assert base["KL(run ‖ base)"] == row(sheet, REFERENCE)["KL(run ‖ ref.)"] == "–"
    assert base["entropy"] == ("0.200", "[0.180, 0.210]")
    assert base["calibration error"] == ("3.0 %", "[2.7, 3.1]")


def test_coherence_stands_at_the_base_and_at_the_run(tables):
    sft = row(representation.coherence.make(View(tables, REFERENCE)), REFERENCE)
    assert sft["m"] == "32"
    assert sft["m-coherence at the base"] == ("4.72", "[4.10, 5.34]")
    assert sft["a pair at the run"] == ("0.030", "[0.010, 0.050]")
    assert sft["gradient at the run"] == "1.30"


def test_cosines_of_gradients_are_missing_where_prompts_are_too_few(tables):
    sheet = representation.gradient_cosines.make(View(tables, REFERENCE))
    assert len(sheet.rows) == 15
    assert sheet.rows[0][2] == ("0.800", "[0.780, 0.820]")
    without = [cells for cells in tables["gradient_cosines"].to_pylist() if cells["expected"] is None]
    assert sum(cells[3] == "–" for cells in sheet.rows) == len(without)


def test_limits_say_what_representations_predictions_and_gradients_were_measured_on(tables):
    said = " ".join(limits(View(tables, REFERENCE)))
    assert "Drift of hidden states is over 6\u2009412 tokens" in said
    assert "6\u2009412 tokens of 200 correct held-out solutions" in said
    assert "KL(run ‖ base) of dpo-lr0.0005-s0 is 39 times that of dpo-lr5e-05-s0." in said
    assert "Coherence is over 32 training prompts" in said
    matched = [r for r in tables["divergences"].to_pylist() if r["run_b"] in (REFERENCE, "sft-lr5e-05-s1")]
    fewer = tables | {"divergences": to_arrow("divergences", matched)}
    assert "not matched in how far their predictions" not in " ".join(limits(View(fewer, REFERENCE)))
