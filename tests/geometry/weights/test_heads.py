"""Parts of deltas that belong to attention heads."""

from types import SimpleNamespace

import pytest
import torch
from curvature_cases import make_probe
from delta_cases import full_run, gaussian, lora_run, low_rank
from tiny import save_tiny_student, tiny_gpt2, tiny_qwen
from transformers import AutoModelForCausalLM

from raygeo.analyses.heads.workload import Heads, HeadSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import StudentError
from raygeo.geometry.weights.heads import (
    Head,
    Layout,
    evenness,
    head_norms,
    line_energies,
    only,
    side_of,
    without,
)
from raygeo.models.delta import Dense
from raygeo.models.run import Run
from raygeo.tables import BASE, to_arrow

STEM = "model.layers.{}.self_attn"


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def layout_of(**changes):
    model = tiny_qwen(**changes)
    return Layout.of(model.config, shapes(model))


def changed(bias=False):
    """A delta of the first layer's attention, with q and o in factors: 4 query heads, 2 of keys and values."""
    stem = STEM.format(0)
    delta = {
        f"{stem}.q_proj.weight": low_rank(32, 32, 3, seed=1),
        f"{stem}.k_proj.weight": Dense(gaussian(16, 32, seed=2)),
        f"{stem}.v_proj.weight": Dense(gaussian(16, 32, seed=3)),
        f"{stem}.o_proj.weight": low_rank(32, 32, 3, seed=4),
        "model.norm.weight": Dense(gaussian(32, seed=5)),
    }
    return delta | ({f"{stem}.k_proj.bias": Dense(gaussian(16, seed=6))} if bias else {})


def test_norms_are_those_of_dense_slices_and_every_weight_is_of_one_head():
    layout, delta = layout_of(attention_bias=True), changed(bias=True)
    norms = head_norms(layout, delta)
    stem = STEM.format(0)
    assert list(norms) == [Head(stem, 0, "query", i) for i in range(4)] + [
        Head(stem, 0, "key-value", i) for i in range(2)
    ]
    dense = {name: entry.dense(torch.float64) for name, entry in delta.items()}
    q, k, v, o = (dense[f"{stem}.{what}_proj.weight"] for what in "qkvo")
    bias = dense[f"{stem}.k_proj.bias"]
    for head, found in norms.items():
        rows = slice(8 * head.number, 8 * head.number + 8)
        expected = {"q_proj": q[rows].norm(), "o_proj": o[:, rows].norm()}
        if head.kind == "key-value":
            keys = (k[rows].square().sum() + bias[rows].square().sum()).sqrt()
            expected = {"k_proj": keys, "v_proj": v[rows].norm()}
        assert found == pytest.approx({name: float(x) for name, x in expected.items()}, rel=1e-6)
    total = sum(norm**2 for of in norms.values() for norm in of.values())
    assert total == pytest.approx(sum(float(x.square().sum()) for x in (q, k, v, o, bias)), rel=1e-6)


def test_without_grouped_queries_a_head_owns_all_four_matrices():
    layout = layout_of(num_key_value_heads=4)
    assert [head.kind for head in layout.heads([f"{STEM.format(1)}.v_proj.weight"])] == ["head"] * 4
    assert set(layout.places(Head(STEM.format(1), 1, "head", 3))) == {
        f"{STEM.format(1)}.{what}_proj.weight" for what in "qkvo"
    }
    assert layout.heads(["model.layers.0.mlp.up_proj.weight"]) == []


@pytest.mark.parametrize("elements", [40, 1 << 22])
def test_a_part_and_the_rest_are_the_delta(elements):
    layout, delta = layout_of(), changed()
    for head in layout.heads(delta):
        places = layout.places(head)
        part, rest = only(delta, places), without(delta, places)
        assert set(part) == set(rest) == set(places)
        for name, at in places.items():
            side, whole = side_of(name), delta[name].dense()
            expected = torch.zeros_like(whole).index_copy(side, at, whole.index_select(side, at))
            for entry, wanted in ((part[name], expected), (rest[name], whole - expected)):
                torch.testing.assert_close(entry.dense(), wanted)
                if isinstance(entry, Dense):
                    for dim in (0, 1):
                        torch.testing.assert_close(torch.cat(list(entry.blocks(elements, dim)), dim), wanted)
                torch.testing.assert_close(line_energies(entry, side).float(), wanted.square().sum(1 - side))


def test_the_null_takes_as_many_lines_without_regard_to_heads():
    layout, delta = layout_of(), changed()
    head = layout.heads(delta)[1]
    draws = [layout.random_places(head, torch.Generator().manual_seed(seed)) for seed in range(60)]
    for name in layout.places(head):
        lines = torch.stack([draw[name] for draw in draws])
        assert all(len(set(row.tolist())) == 8 for row in lines)
        assert set(lines.flatten().tolist()) == set(range(32))
    # One head that has everything stands out; dealt at random its rows are spread over all heads.
    stem = STEM.format(0)
    one = {f"{stem}.q_proj.weight": Dense(torch.cat([gaussian(8, 32, seed=1), torch.zeros(24, 32)]))}

    def even(generator=None):
        return evenness([of.get("q_proj", 0.0) for of in head_norms(layout, one, generator).values()])

    assert even() == pytest.approx(1 / 4)
    assert sum(even(torch.Generator().manual_seed(seed)) for seed in range(20)) / 20 > 0.6
    assert evenness([2.0, 2.0, 2.0]) == pytest.approx(1)


def test_attention_whose_heads_cannot_be_told_apart_is_refused():
    model = tiny_gpt2()
    with pytest.raises(StudentError, match=r"gpt2 model has no q_proj, k_proj, v_proj and o_proj"):
        Layout.of(model.config, shapes(model))
    model = tiny_qwen()
    wrong = shapes(model) | {f"{STEM.format(1)}.q_proj.weight": (64, 32)}
    with pytest.raises(StudentError, match=r"\[64, 32\], and 4 heads of 8"):
        Layout.of(model.config, wrong)
    text = SimpleNamespace(num_attention_heads=[2, 4], head_dim=8)
    several = SimpleNamespace(model_type="openelm", get_text_config=lambda: text)
    with pytest.raises(StudentError, match="openelm model does not give one number of heads"):
        Layout.of(several, shapes(model))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    base = save_tiny_student(folder / "base")
    make_probe([(2, 5), (3, 2), (1, 7), (2, 2)], 20).save(folder / "probe.npz")
    model = AutoModelForCausalLM.from_pretrained(base)
    delta = {name: 0.05 * gaussian(*p.shape, seed=i) for i, (name, p) in enumerate(model.named_parameters())}
    stem = STEM.format(1)
    lora = {
        f"{stem}.{what}": low_rank(n, m, 2, seed=n, scale=0.1)
        for what, n, m in (("q_proj", 32, 32), ("v_proj", 16, 32))
    }
    mlp = {"model.layers.0.mlp.up_proj": low_rank(64, 32, 2, seed=9)}
    runs = [full_run(folder, "full", delta), lora_run(folder, "lora", lora), lora_run(folder, "mlp", mlp)]
    return base, folder / "probe.npz", [Run(BASE, BASE, None), *runs]


def rows_of(case, **settings):
    base, probe, runs = case
    workload = Heads(HeadSettings(bootstrap=100, **settings), runs, base, probe)
    state, found = workload.setup(), {}
    for task in workload.tasks():
        for table, rows in workload.compute(state, task.payload).items():
            to_arrow(table, rows, workload.tables[table])
            found.setdefault(table, []).extend(rows)
    return found


def test_effects_are_those_of_weights_set_back_by_hand(case):
    base, probe, runs = case
    found = rows_of(case, largest=1, random=1)
    assert {row["run"] for row in found["heads"]} == {"full", "lora"}, "the third leaves attention alone"
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    own = dict(model.named_parameters())
    kept = {name: value.detach().clone() for name, value in own.items()}
    batches = Probe.load(probe).batches(0, 4)
    for run in runs[1:3]:
        delta = {name: entry.dense() for name, entry in run.open().items()}

        def loss(change):
            with torch.no_grad():
                for name, value in own.items():
                    value.copy_(kept[name] + change.get(name, torch.zeros_like(value)))
            return nll(model, batches)

        rows = [row for row in found["head_effects"] if row["run"] == run.name]
        assert [row["chosen"] for row in rows][:2] == ["largest", "random"]
        for row in rows[:2]:
            kinds = {"query": ("q_proj", "o_proj"), "key-value": ("k_proj", "v_proj")}[row["kind"]]
            part, at = {}, slice(8 * row["head"], 8 * row["head"] + 8)
            for what in kinds:
                name = f"{row['module']}.{what}.weight"
                if name in delta:
                    part[name] = torch.zeros_like(delta[name])
                    where = (slice(None), at) if what == "o_proj" else at
                    part[name][where] = delta[name][where]
            rest = delta | {name: delta[name] - x for name, x in part.items()}
            assert row["norm"] == pytest.approx(float(sum(x.square().sum() for x in part.values()).sqrt()), rel=1e-5)
            assert row["removed"] == pytest.approx(loss(rest) - loss(delta), abs=2e-6)
            assert row["added"] == pytest.approx(loss({}) - loss(part), abs=2e-6)
            assert row["gain"] == pytest.approx(loss({}) - loss(delta), abs=2e-6)
            for what in ("removed", "added"):
                assert row[f"{what}_low"] <= row[what] <= row[f"{what}_high"]
        assert all(row["head"] is None for row in rows if row["chosen"] == "control")


def test_of_one_text_there_is_no_interval(case, tmp_path):
    base, _, runs = case
    make_probe([(2, 5)], 20).save(tmp_path / "one.npz")
    [row, *_] = rows_of((base, tmp_path / "one.npz", runs), largest=1, random=0)["head_effects"]
    assert [row[f"{what}_{end}"] for what in ("removed", "added") for end in ("low", "high")] == [None] * 4


def test_the_largest_and_random_others_are_measured_with_controls_of_their_modules(case):
    found = rows_of(case, largest=3, random=2, controls=2)
    norms = {(r["run"], r["module"], r["kind"], r["head"]): r["norm"] for r in found["heads"]}
    full = [row for row in found["head_effects"] if row["run"] == "full"]
    heads = [row for row in full if row["chosen"] != "control"]
    places = [(row["module"], row["kind"], row["head"]) for row in heads]
    assert len(set(places)) == 5
    top = sorted((norm for (run, *_), norm in norms.items() if run == "full"), reverse=True)[:3]
    assert [row["norm"] for row in heads[:3]] == pytest.approx(top, rel=1e-6)
    controls = [(row["module"], row["kind"], row["draw"]) for row in full if row["chosen"] == "control"]
    assert controls == [(*of, draw) for of in dict.fromkeys(place[:2] for place in places) for draw in (0, 1)]
    assert rows_of(case, largest=3, random=2, controls=2) == found
    assert rows_of(case, largest=0, random=2, head_seed=1)["head_effects"] != full
