import numpy as np
import pytest
import torch
from connectivity_cases import compute_all, exam, noise, save_probe, save_run, save_student
from peft import LoraConfig, get_peft_model
from tiny import tiny_gpt2
from transformers import Qwen3ForCausalLM
from view_cases import axes_of, finished, row_of, sheet_of, view_of

from raygeo.analyses.compressibility import report
from raygeo.analyses.compressibility.compressed import Compressed, Whole, compressible
from raygeo.analyses.compressibility.workload import Compressibility, CompressibilitySettings
from raygeo.data.probes import Probe
from raygeo.geometry.connectivity.measures import ProbeNLL
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.tables import BASE


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_student(tmp_path_factory.mktemp("student"), layers=2)


@pytest.fixture
def probe_file(tmp_path):
    return save_probe(tmp_path / "texts.npz")


@pytest.fixture
def runs(student, tmp_path):
    return [Run(BASE, "key-base", None), save_run(tmp_path, "r1", noise(student, 1))]


def dense_nll(student, delta, compress, alone, probe_file):
    """Token-mean NLL of a model of its own in fp64 whose block matrices, or their changes, ``compress`` has changed."""
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    own = dict(model.named_parameters())
    chosen = [name for name, value in own.items() if ".layers." in name and value.ndim == 2]
    before = {n: (delta[n] if alone else own[n].detach() + delta.get(n, 0)) for n in chosen}
    after = compress(before)
    with torch.no_grad():
        for name, value in own.items():
            if name in after:
                value.copy_(value + after[name] if alone else after[name])
            elif name in delta:
                value.add_(delta[name])
    model.double()
    total = tokens = 0.0
    for text in Probe.load(probe_file).sequences:
        with torch.no_grad():
            logprobs = model(torch.from_numpy(text.ids)[None]).logits[0].log_softmax(-1)
        for place in range(text.prompt_length, len(text)):
            total -= float(logprobs[place - 1, text.ids[place]])
            tokens += 1
    return total / tokens


def pruned(share, scope):
    """By sorting all entries, or those of each tensor."""

    def compress(tensors):
        parts = [tensors] if scope == "global" else [{name: value} for name, value in tensors.items()]
        found = {}
        for part in parts:
            sizes = np.sort(np.concatenate([value.abs().flatten().numpy() for value in part.values()]))
            cut = sizes[int(share * len(sizes))]
            found |= {name: value * (value.abs() >= cut) for name, value in part.items()}
        return found

    return compress


def rounded(bits):
    def compress(tensors):
        most = 2 ** (bits - 1) - 1
        return {
            name: torch.fake_quantize_per_channel_affine(
                value, value.abs().amax(1) / most, torch.zeros(len(value), dtype=torch.int32), 0, -most, most
            )
            for name, value in tensors.items()
        }

    return compress


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_compressed_runs_are_dense_models_whose_weights_are_put_back(student, runs, probe_file, scope):
    settings = CompressibilitySettings(sparsities=(0.6,), bits=(8, 3), scope=scope, bootstrap=100)
    rows = compute_all(Compressibility(settings, runs, student, probe_file, None))["compressibility"]
    ways = {("pruned", 0.6): pruned(0.6, scope)}
    ways |= {("none", None): dict}
    ways |= {("rounded", float(bits)): rounded(bits) for bits in (8, 3)}
    delta = noise(student, 1)
    for row in rows:
        given, alone = ({} if row["run"] == BASE else delta), row["target"] == "delta"
        compress = ways[row["method"], row.get("level")]
        assert row["nll"] == pytest.approx(dense_nll(student, given, compress, alone, probe_file), rel=2e-5), row
    assert len(rows) == 4 + 8
    assert {row["target"] for row in rows if row["run"] == BASE} == {"model"}
    starts = {(row["run"], row["target"]): row["nll"] for row in rows if row["method"] == "none"}
    for row in rows:
        assert row["rise"] == pytest.approx(row["nll"] - starts[row["run"], row["target"]], abs=1e-9)
        assert row["rise_low"] <= row["rise"] <= row["rise_high"]
    assert all(row["zeros"] == pytest.approx(row["level"], abs=0.01) for row in rows if row["method"] == "pruned")


def test_accuracy_is_measured_where_problems_are_asked(student, runs, probe_file):
    asked = exam(student, [("? a", "7"), ("? b", "8")])
    settings = CompressibilitySettings(sparsities=(0.5,), bits=(), accuracy_problems=2, max_new_tokens=2, bootstrap=100)
    rows = compute_all(Compressibility(settings, runs[:1], student, probe_file, asked))["compressibility"]
    assert [row["problems"] for row in rows] == [2, 2]


def test_layers_that_are_held_transposed_are_compressed_by_output_channel():
    model = tiny_gpt2()
    names = compressible(model)
    assert all(".h." in name for name in names)
    name = next(n for n in names if "c_fc" in n)
    weight = model.get_parameter(name).detach()
    seen = {}

    def keep(of, value):
        seen[of] = value
        return 2 * value

    whole = Whole(model, None)
    [change] = [Compressed(whole, keep, alone=False)[name].dense()]
    torch.testing.assert_close(seen[name], weight.T)
    torch.testing.assert_close(change, weight)


def test_adapters_beside_layers_of_sixteen_bits_are_merged_before_they_are_compressed(student, probe_file, tmp_path):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    tuned = get_peft_model(Qwen3ForCausalLM.from_pretrained(student, dtype=torch.bfloat16), config)
    for name, value in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    tuned.save_pretrained(tmp_path / "lora")
    run = Run("lora", "key-lora", str(tmp_path / "lora"), loading=Loading(dtype="bf16"))
    settings = CompressibilitySettings(sparsities=(0.5,), bits=(), bootstrap=100)
    rows = compute_all(Compressibility(settings, [run], student, probe_file, None))["compressibility"]
    model = Qwen3ForCausalLM.from_pretrained(student, dtype=torch.bfloat16).eval()
    own, delta = dict(model.named_parameters()), run.open()
    weights = {n: v.detach().float() for n, v in own.items() if ".layers." in n and v.ndim == 2}
    weights = {n: v + delta[n].dense() if n in delta else v for n, v in weights.items()}
    probe = ProbeNLL(Probe.load(probe_file), 16, 0)
    for row, compress in zip(rows, (dict, pruned(0.5, "global")), strict=False):
        with torch.no_grad():
            for name, value in compress(weights).items():
                own[name].copy_(value)
        assert row["nll"] == pytest.approx(probe.mean(model), rel=1e-3)
    assert [(row["target"], row["method"]) for row in rows] == [
        ("model", "none"), ("model", "pruned"), ("delta", "none"), ("delta", "pruned"),
    ]  # fmt: skip
    assert rows[1]["zeros"] == pytest.approx(0.5, abs=0.01)


def rows_of(run, target="model", half=0.3, four=0.1):
    common = {"run": run, "target": target, "n": 5, "tokens": 90}
    points = (("none", None, 0.0), ("pruned", 0.1, 0.0), ("pruned", 0.5, half), ("pruned", 0.9, 9.0))
    points += (("rounded", 8.0, 0.0), ("rounded", 4.0, four))
    return [
        common
        | {"method": method, "level": level, "nll": 1 + rise, "rise": rise, "rise_low": rise - 0.1}
        | {"rise_high": rise + 0.1, "zeros": 0.1, "lost": 0.2}
        for method, level, rise in points
    ]


def test_more_compressible_is_higher_and_the_base_stands_beside():
    table = rows_of(BASE, half=0.2) + rows_of("sft") + rows_of("sft", "delta", 0.02, 0.04) + rows_of("dpo", half=0.9)
    view = view_of(runs=finished("sft", "dpo"), compressibility=table)
    found = {(run, name): value for run, name, value in report.metrics(view)}
    assert found["sft", "compressibility"] == pytest.approx(-(0.3 + 0.1) / 2)
    assert found["sft", "delta_compressibility"] == pytest.approx(-0.03)
    assert found["sft", "compressibility_over_base"] == pytest.approx(-0.05)
    assert found["sft", "compressibility"] > found["dpo", "compressibility"]
    assert found["dpo", "delta_compressibility"] is None
    assert [ax.get_title() for ax in axes_of(report.compressibility, view)] == [
        "all weights, pruned", "all weights, rounded", "the delta alone, pruned", "the delta alone, rounded",
    ]  # fmt: skip
    assert row_of(sheet_of(report.points, view), "sft", "all weights", "50 % pruned")["rise"] == (
        "0.300",
        "[0.200, 0.400]",
    )
    assert "50 % pruned and 4 bits" in report.limits(view)[0]
    lost = view_of(compressibility=[*table, table[-1] | {"rise": None}])
    assert report.limits(lost)[1] == "At 1 point the NLL was not finite; it is left out."
