import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, noise, save_run, save_student
from transformers import Qwen3ForCausalLM

from raygeo.analyses.layerwise.workload import ALL, Layerwise, LayerwiseSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import ConfigError, DeltaError
from raygeo.geometry.connectivity.parts import OUTSIDE, part_of
from raygeo.models.delta import layer_index
from raygeo.models.run import Run
from raygeo.tables import BASE


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"), layers=2)


@pytest.fixture
def runs(student, tmp_path):
    partial = {name: value for name, value in noise(student, 2).items() if layer_index(name) != 1}
    return [
        save_run(tmp_path, "whole", noise(student, 1)),
        save_run(tmp_path, "partial", partial),
        Run(BASE, "key-base", None),
    ]


@pytest.mark.parametrize(
    ("kind", "pair"),
    [
        ("block", ("whole", "partial")),
        ("block", ("base", "whole")),
        ("block", ("whole", "base")),
        ("module type", ("whole", "partial")),
    ],
)
def test_parts_are_swapped_one_at_a_time_and_all_of_them_give_the_other_end(kind, pair, student, probe_file, runs):
    settings = LayerwiseSettings(parts=kind, pairs=(pair,), alphas=(0.25, 1.0), bootstrap=100)
    rows = compute_all(Layerwise(settings, runs, student, probe_file, "whole"))["layerwise"]
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    deltas = {run.name: {n: e.dense() for n, e in (run.open() or {}).items()} for run in runs}
    batches = Probe.load(probe_file).batches(0, 16)

    def loss(part, alpha):
        with torch.no_grad():
            for name, value in model.named_parameters():
                share = alpha if part in (ALL, part_of(name, kind)) else 0
                first, second = (deltas[run].get(name, torch.zeros(())) for run in pair)
                value.copy_(kept[name] + (1 - share) * first + share * second)
        return nll(model, batches)

    ends = loss(ALL, 0), loss(ALL, 1)
    for row in rows:
        assert row["nll"] == pytest.approx(loss(row["part"], row["alpha"]), rel=1e-6), row
        assert row["rise"] == pytest.approx(row["nll"] - ends[0], abs=1e-6)
        assert row["rise_low"] <= row["rise"] <= row["rise_high"]
        swapped = loss(row["part"], 1)
        chord = (1 - row["alpha"]) * ends[0] + row["alpha"] * swapped
        assert row["excess"] == pytest.approx(row["nll"] - chord, abs=1e-6)
    whole = next(row for row in rows if (row["part"], row["alpha"]) == (ALL, 1))
    assert (whole["nll"], whole["excess"]) == (pytest.approx(ends[1], rel=1e-6), 0)
    parts = list(dict.fromkeys(row["part"] for row in rows))
    if kind == "block":
        assert parts == ["0", "1", OUTSIDE, ALL]
    else:
        assert {"q_proj", "down_proj", "embed_tokens", "norm"} < set(parts)
        assert parts[-1] == ALL


def test_a_part_without_influence_does_not_rise_and_an_additive_loss_adds_up(student, probe_file, tmp_path):
    # A delta in block 1 alone: swapping block 0 is nothing, block 1 is all.
    only = {name: value for name, value in noise(student, 3).items() if layer_index(name) == 1}
    zero = {name: torch.zeros_like(v) for name, v in noise(student, 3).items() if layer_index(name) == 0}
    runs = [Run(BASE, "key-base", None), save_run(tmp_path, "one", only | zero)]
    settings = LayerwiseSettings(alphas=(1.0,), bootstrap=100)
    rows = {r["part"]: r for r in compute_all(Layerwise(settings, runs, student, probe_file, BASE))["layerwise"]}
    assert (rows["0"]["rise"], rows["0"]["rise_low"], rows["0"]["rise_high"]) == (0, 0, 0)
    assert rows["1"]["rise"] == rows[ALL]["rise"] != 0


def test_parts_have_the_names_of_their_modules():
    assert part_of("model.layers.11.self_attn.q_proj.weight", "block") == "11"
    assert part_of("model.embed_tokens.weight", "block") == OUTSIDE
    assert part_of("model.layers.11.self_attn.q_proj.bias", "module type") == "q_proj"


def test_pairs_keys_and_refusals(student, probe_file, runs, tmp_path):
    def tasks(ends=runs, **settings):
        return Layerwise(LayerwiseSettings(**settings), ends, student, probe_file, "whole").tasks()

    def pairs(**settings):
        return [tuple(run.name for run in task.payload) for task in tasks(**settings)]

    assert pairs() == [("whole", "partial"), ("whole", "base")]
    assert len(pairs(pairs="all")) == 6
    assert tasks(pairs=(("whole", "base"),))[0].key == tasks()[1].key
    assert tasks(parts="module type")[0].key != tasks()[0].key
    with pytest.raises(ConfigError, match="'gone'"):
        tasks(pairs=(("whole", "gone"),))
    with pytest.raises(ConfigError, match="twice"):
        tasks(pairs=(("whole", "whole"),))
    bad = save_run(tmp_path, "bad", {"model.norm.weight": torch.full((16,), np.nan)})
    with pytest.raises(DeltaError, match="not finite"):
        compute_all(Layerwise(LayerwiseSettings(), [runs[0], bad], student, probe_file, "whole"))
