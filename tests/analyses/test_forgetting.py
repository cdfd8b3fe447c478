from dataclasses import replace

import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, noise, save_run, save_student
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM
from view_cases import axes_of, finished, row_of, sheet_of, view_of

from raygeo.analyses.forgetting import report
from raygeo.analyses.forgetting.known import known
from raygeo.analyses.forgetting.workload import KL, Forgetting, ForgettingSettings, Known
from raygeo.analyses.inputs import AnalysisInputs
from raygeo.analyses.registry import schemas
from raygeo.data.passages import read_passages
from raygeo.errors import DataError
from raygeo.models.loading import load_tokenizer
from raygeo.models.run import Run
from raygeo.records import RunRecord
from raygeo.tables import BASE, to_arrow
from raygeo.training.settings import TrainingSettings

PASSAGES = "a b c d 7\nb b\n\n8 a\r\n\r\n   \n\n#### 7 a b c d a b c d\n"


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def runs(student, tmp_path):
    return [Run(BASE, "key-base", None), save_run(tmp_path, "r1", noise(student, 1))]


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "old.txt"
    file.write_bytes(PASSAGES.encode())
    return str(file)


def aggregated(workload, retained=()):
    return workload.aggregate({"retained": to_arrow("retained", retained, workload.tables["retained"])})


def test_texts_that_became_less_likely_were_forgotten(student, runs, texts):
    settings = ForgettingSettings(texts=texts, passage_tokens=6, bootstrap=100)
    workload = Forgetting(settings, runs, student, Known({}, {KL: {"r1": 0.5}}))
    retained = compute_all(workload)["retained"]
    tokenizer, sums = load_tokenizer(student), {}
    for name, delta in ((BASE, {}), ("r1", noise(student, 1))):
        model = Qwen3ForCausalLM.from_pretrained(student).double().eval()
        with torch.no_grad():
            for parameter, change in delta.items():
                model.get_parameter(parameter).add_(change)
            sums[name] = []
            for passage in ("a b c d 7\nb b", "8 a", "#### 7 a b c d a b c d"):
                ids = torch.tensor([tokenizer(passage)["input_ids"][:6]])
                sums[name].append(float(cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")))
    for row in retained:
        np.testing.assert_allclose(row["sums"], sums[row["run"]], rtol=1e-5)
        assert row["text_tokens"] == [5, 1, 5]
    [row] = aggregated(workload, retained)["forgetting"]
    assert row["drop"] == pytest.approx((sum(sums["r1"]) - sum(sums[BASE])) / 11, rel=1e-4)
    assert row["drop"] == pytest.approx(row["value"] - row["base"])
    assert row["kl"] == 0.5
    assert row["low"] <= row["drop"] <= row["high"]


def test_files_that_hold_no_passages_are_refused(tmp_path, student, runs):
    file = tmp_path / "bad.txt"
    file.write_bytes(b"\n \n")
    with pytest.raises(DataError, match="holds no text"):
        read_passages(str(file), 3)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_passages(str(file), 3)
    with pytest.raises(DataError, match="there is no file"):
        read_passages(str(tmp_path / "none.txt"), 3)
    with pytest.raises(DataError, match=r"shift: retention .* or a text file"):
        Forgetting(ForgettingSettings(), runs, student, Known({}, {}))


def inputs(configurations=6, seeds=2, shift="retention"):
    """What earlier tables say of runs that forget 0.4 kl of 50 problems."""
    rng = np.random.default_rng(0)
    names = {f"sft-lr{c}-s{s}": (c, s) for c in range(configurations) for s in range(seeds)}
    kl = {name: 0.1 * (1 + c) + 0.01 * s for name, (c, s) in names.items()}
    answers = [
        {"run": run, "benchmark": benchmark, "problem_id": f"p{i}", "sample": k, "correct": i >= round(40 * moved)}
        for run, moved in {BASE: 0.0, **kl}.items()
        for benchmark in ("old", "new")
        for i in rng.permutation(100).tolist()
        for k in range(2)
    ]
    divergences = [
        {"run_a": BASE, "run_b": run, "quantity": quantity, "value": value}
        for run, moved in kl.items()
        for quantity, value in (("kl_ab", moved), ("kl_ba", 7.0))
    ]
    divergences.append({"run_a": "sft-lr0-s0", "run_b": "sft-lr1-s0", "quantity": "kl_ab", "value": 9.0})
    deltas = [{"run": run, "scope": "global", "norm": rng.uniform(), "effective_rank": 3.0} for run in kl]
    made = {
        "benchmarks": [{"benchmark": "old", "shift": shift, "problems": 100}, {"benchmark": "new", "shift": "none"}],
        "answers": answers,
        "divergences": divergences,
        "deltas": [*deltas, {"run": "sft-lr0-s0", "scope": "module", "norm": 99.0}],
    }
    records = {
        name: RunRecord(
            name, name, "finished", {"type": "sft"},
            TrainingSettings(lr=10.0 ** (c - 9), seed=s).model_dump(mode="json"),
        )
        for name, (c, s) in names.items()
    }  # fmt: skip
    runs = [Run(name, name, None) for name in (BASE, *names)]
    tables = {name: to_arrow(name, made.get(name, []), columns) for name, columns in schemas().items()}
    return AnalysisInputs("base", runs, "sft-lr0-s0", records, tables.__getitem__, dict), kl


def test_drops_of_accuracy_are_of_retention_benchmarks_alone_and_follow_the_divergence():
    of, kl = inputs()
    workload = Forgetting(ForgettingSettings(bootstrap=200), of.runs, "base", known(of))
    assert workload.tasks() == []
    found = aggregated(workload)
    drops = {row["run"]: row for row in found["forgetting"]}
    assert {row["source"] for row in found["forgetting"]} == {"old"}
    for run, moved in kl.items():
        share = round(40 * moved) / 100
        assert drops[run]["drop"] == pytest.approx(share)
        assert (drops[run]["base"], drops[run]["value"]) == (1, pytest.approx(1 - share))
        assert drops[run]["kl"] == moved
    laws = {row["predictor"]: row for row in found["forgetting_laws"]}
    assert (laws[KL]["runs"], laws[KL]["configurations"]) == (12, 6)
    assert laws[KL]["held_out_r2"] > 0.99
    assert laws["norm of the delta"]["behind_low"] > 0
    assert laws["effective rank"]["reason"] == "the same for all runs"
    assert laws["share of weights changed"]["reason"] == "not known of every run"
    assert laws["share of weights changed"].get("r2") is None
    assert laws["learning rate"]["r2"] is not None


def test_several_benchmarks_are_pooled_problem_by_problem():
    of, _ = inputs()
    given = known(of)
    both = replace(given, right={"old": given.right["old"], "few": {r: v[:10] for r, v in given.right["old"].items()}})
    found = aggregated(Forgetting(ForgettingSettings(bootstrap=100), of.runs, "base", both))["forgetting"]
    drop = {(row["run"], row["source"]): row["drop"] for row in found}
    run = "sft-lr3-s1"
    assert drop[run, "all benchmarks"] == pytest.approx((100 * drop[run, "old"] + 10 * drop[run, "few"]) / 110)
    view = view_of(runs=finished(run), forgetting=found)
    assert (run, "forgetting", drop[run, "all benchmarks"]) in list(report.metrics(view))
    assert "all retention benchmarks" in [row[1] for row in sheet_of(report.drops, view).rows]


def test_a_study_without_retention_benchmarks_has_nothing_to_forget():
    of, _ = inputs(shift="ood")
    assert known(of).right == {}


def law(predictor, held_out=(0.9, 0.8, 0.95), behind=None, **more):
    row = {"source": "old", "predictor": predictor, "runs": 12, "configurations": 6, "reason": ""}
    for name, values in (("held_out_r2", held_out), ("behind", behind), ("a", (1.0, 0.5, 1.5)), ("b", (0.1, 0, 1))):
        if values is not None:
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return row | more


@pytest.mark.parametrize(
    ("laws", "said"),
    [
        ([law(KL, (0.5, None, None))], "is not known: 12 runs of 6 configurations are too few"),
        ([law(KL, (0.9, -0.1, 0.95))], "is not shown (held-out R² 0.90, 95 % interval [−0.10, 0.95]"),
        ([law(KL)], "than the mean of other configurations does (held-out R² 0.90, 95 % interval [0.80, 0.95]"),
        ([law(KL), law("rank", behind=(0.5, 0.2, 0.7))], "configurations); better than rank does."),
        ([law(KL), law("norm", behind=(0.5, -0.1, 0.7))], "configurations); not told apart from norm."),
        ([law(KL), law("lr", behind=(-0.1, -0.2, -0.05))], "configurations); worse than lr does."),
        ([law(KL), law("lr", behind=(0.9, None, None))], "configurations)."),
    ],
)
def test_no_sentence_is_stronger_than_its_interval(laws, said):
    [sentence] = report.claim(view_of(forgetting_laws=laws))
    assert said in sentence


def test_drops_and_laws_stand_on_the_page_in_their_units():
    rows = [
        {"run": "sft", "source": "old", "measure": "accuracy", "base": 0.9, "value": 0.7, "drop": 0.2, "low": 0.1}
        | {"high": 0.3, "kl": 0.4, "n": 100},
        {"run": "sft", "source": "texts", "measure": "nll", "base": 2.0, "value": 2.5, "drop": 0.5, "low": 0.4}
        | {"high": 0.6, "kl": 0.4, "n": 50},
    ]
    view = view_of(runs=finished("sft"), forgetting=rows, forgetting_laws=[law(KL)])
    sheet = sheet_of(report.drops, view)
    assert row_of(sheet, "sft", "old")["drop"] == ("+20.0", "[+10.0, +30.0]")
    assert row_of(sheet, "sft", "texts")["drop"] == ("0.500", "[0.400, 0.600]")
    metrics = {name: value for _, name, value in report.metrics(view)}
    assert metrics == {"forgetting": 0.2, "forgetting_accuracy": 0.2, "forgetting_nll": 0.5}
    axes = axes_of(report.forgetting, view)
    assert [ax.get_title() for ax in axes] == ["old: drop, points", "texts: rise of the NLL"]
    curve = next(line for line in axes[0].lines if len(line.get_xdata()) == 100)
    np.testing.assert_allclose(curve.get_ydata(), 100 * (curve.get_xdata() + 0.1 * curve.get_xdata() ** 2))
