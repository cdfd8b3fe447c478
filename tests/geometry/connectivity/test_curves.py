import math

import numpy as np
import pytest
import torch
from connectivity_cases import EOS, MARK, SEVEN, V, compute_all, noise, save_probe, save_run
from delta_cases import low_rank, save_lora
from tiny import save_words, ten_words
from torch import nn
from transformers import Qwen3ForCausalLM

from raygeo.analyses.curves.workload import Curves, CurvesSettings
from raygeo.data.probes import Probe, nll
from raygeo.errors import ConfigError, DataError, DeltaError
from raygeo.geometry.connectivity import curves
from raygeo.geometry.connectivity.barriers import barrier
from raygeo.geometry.connectivity.curves import (
    bump,
    curve_mixture,
    free_tensors,
    gradients,
    new_bend,
    pull_back,
    train_bend,
)
from raygeo.geometry.connectivity.mixtures import Entries
from raygeo.models.batches import TokenSequence
from raygeo.models.delta import Dense, LowRank
from raygeo.models.mix import MixedWeights
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run

QUICK = {"steps": 3, "points": 5, "bootstrap": 100, "batch_size": 4}


class Held(nn.Module):
    """A model of one fp64 weight."""

    def __init__(self, shape):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("shape", ["bezier", "chain"])
def test_curves_are_the_textbook_ones_and_end_exactly(shape):
    generator = torch.Generator().manual_seed(0)
    model = Held((5, 4))
    base = model.w.detach().clone()
    a, b, x = (Entries({"w": Dense(torch.randn(5, 4, generator=generator))}) for _ in range(3))
    weights = MixedWeights(model, ["w"])
    first, last, bend = (base + entries["w"].value.double() for entries in (a, b, x))
    bend = (first + last) / 2 + x["w"].value.double()
    for t in (0.0, 0.2, 0.5, 0.8, 1.0):
        if shape == "bezier":
            expected = (1 - t) ** 2 * first + 2 * t * (1 - t) * bend + t**2 * last
        else:
            expected = (1 - 2 * t) * first + 2 * t * bend if t <= 0.5 else (2 - 2 * t) * bend + (2 * t - 1) * last
        with weights.mixed(curve_mixture(shape, t, a, b, x)):
            torch.testing.assert_close(model.w.detach(), expected, rtol=0, atol=1e-14)
            if t in (0, 1):
                assert torch.equal(model.w.detach(), first if t == 0 else last)
    assert torch.equal(model.w.detach(), base)


def test_a_bend_starts_at_the_midpoint_with_the_larger_rank_where_both_are_factors():
    a = Entries({"q": low_rank(6, 5, 2, seed=1), "v": Dense(torch.ones(3, 5))})
    b = Entries({"q": low_rank(6, 5, 3, seed=2), "v": low_rank(3, 5, 2, seed=3), "o": low_rank(2, 2, 1, seed=4)})
    bend = new_bend(a, b, rms=0.5, seed=0)
    assert {name: type(entry) for name, entry in bend.items()} == {"q": LowRank, "v": Dense, "o": LowRank}
    assert (tuple(bend["q"].a.shape), tuple(bend["o"].a.shape)) == ((3, 5), (1, 2))
    assert all(not entry.dense().any() for entry in bend.values())
    large = new_bend(Entries({"q": low_rank(200, 300, 8, seed=1)}), None, rms=0.5, seed=0)["q"]
    large.b.normal_(generator=torch.Generator().manual_seed(1))
    assert large.dense().square().mean().sqrt().item() == pytest.approx(0.5, rel=0.1)


def test_gradients_of_free_tensors_are_those_of_autograd():
    entry = low_rank(6, 5, 2, seed=1)
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    factors = [tensor.clone().requires_grad_() for tensor in free_tensors(entry)]
    product = entry.scale * factors[0] @ factors[1]
    expected = torch.autograd.grad((weight * torch.sin(product)).sum(), factors)
    found = pull_back(entry, weight * torch.cos(entry.dense()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert pull_back(Dense(weight), weight) == [weight]


def test_gradients_are_handed_over_and_freed():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)
    x = torch.ones(2, 3)
    expected = torch.autograd.grad(model(x).sum(), model[0].weight)[0]
    got = {}
    with torch.no_grad(), gradients(model, {"0.weight"}, lambda name, g: got.setdefault(name, g.clone())):
        model(x).sum().backward()
    assert list(got) == ["0.weight"]
    torch.testing.assert_close(got["0.weight"], expected)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    model(x).sum().backward()
    assert list(got) == ["0.weight"], "no hook is left behind"


def quadratic_bend(target: float, shape: str) -> float:
    """The x that minimises E_t (w(t) x - target)^2: target E[w] / E[w^2], in closed form."""
    return target * {"bezier": (1 / 3) / (2 / 15), "chain": (1 / 2) / (1 / 3)}[shape]


@pytest.mark.parametrize("shape", ["bezier", "chain"])
def test_training_finds_the_bend_of_a_quadratic_loss_in_closed_form(shape, student, probe_file, tmp_path, monkeypatch):
    # The loss depends on the first entry of one weight alone, whose line stays at its base value w0: its minimum over x
    # has a closed form, of which 400 draws of t leave a few per cent of noise. The other entries feel no force.
    name = "model.norm.weight"
    ends = [{name: torch.nn.functional.one_hot(torch.tensor(i), 16).float()} for i in (5, 6)]
    pair = [save_run(tmp_path, f"e{i}", end) for i, end in enumerate(ends)]
    target = 0.4

    def logprobs(model, batch):
        away = dict(model.named_parameters())[name][0] - 1 - target
        return -(away**2) * batch.mask.float()

    monkeypatch.setattr(curves, "token_logprobs", logprobs)
    options = {"batch_size": 16, "seed": 0}
    texts, deltas = Probe.load(probe_file).sequences[0::2], [run.open() for run in pair]
    resident = ResidentStudent.load(student, pair)
    bend = train_bend(resident, texts, *deltas, apart=math.sqrt(2), shape=shape, steps=400, lr=0.05, **options)
    found = bend[name].value
    assert found[0].item() == pytest.approx(quadratic_bend(target, shape), rel=0.08)
    assert not found[1:].any()
    assert bump(shape, 0.5) == {"bezier": 0.5, "chain": 1.0}[shape]


def test_curve_and_line_are_measured_on_the_other_half_at_the_same_points(student, probe_file, runs):
    settings = CurvesSettings(pairs=(("r1", "r2"),), **QUICK)
    workload = Curves(settings, runs, student, probe_file, {})
    found = compute_all(workload)
    state = workload.setup()
    bend, relative = workload.train(state, *runs[:2])
    other = Probe("half", Probe.load(probe_file).sequences[1::2])
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    kept = {name: value.clone() for name, value in model.named_parameters()}
    first, second = noise(student, 1), noise(student, 2)
    for row in found["curve_paths"]:
        t, height = row["t"], 0 if row["shape"] == "line" else 2 * row["t"] * (1 - row["t"])
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(kept[name] + (1 - t) * first[name] + t * second[name] + height * bend[name].dense())
        assert row["nll"] == pytest.approx(nll(model, other.batches(0, 16)), rel=1e-6)
        assert row["n"] == 6
    line, curve = found["curve_barriers"]
    assert [row["shape"] for row in (line, curve)] == ["line", "bezier"]
    losses = {kind: [r["nll"] for r in found["curve_paths"] if r["shape"] == kind] for kind in ("line", "bezier")}
    assert (line["max_nll"], curve["max_nll"]) == (max(losses["line"]), max(losses["bezier"]))
    assert curve["chord"] == barrier(np.linspace(0, 1, 5), losses["bezier"]).chord
    assert curve["below"] == pytest.approx(max(losses["line"]) - max(losses["bezier"]), abs=1e-12)
    assert curve["below_low"] <= curve["below_high"]
    size = math.sqrt(sum(entry.dense().double().square().sum().item() for entry in bend.values()))
    assert curve["bend"] == relative == pytest.approx(size / math.sqrt(_distance2(student)), rel=1e-6)
    assert "below" not in line


def _distance2(student) -> float:
    first, second = noise(student, 1), noise(student, 2)
    return sum((first[name].double() - second[name].double()).square().sum().item() for name in first)


@pytest.fixture
def wells(tmp_path):
    """Two runs of one function: the second has the signs of the final norm and the unembedding flipped.

    Tokens have a second dimension each that neither run uses, through which a curve can go round the hill between them.
    """
    model = ten_words(tie_word_embeddings=False, rms_norm_eps=1e-12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.ndim == 2 else parameter.fill_(1)
        model.model.embed_tokens.weight[:, :V] = torch.eye(V)
        model.model.embed_tokens.weight[MARK, 13] = model.model.embed_tokens.weight[SEVEN, 14] = 1
    model.save_pretrained(tmp_path / "base")
    save_words(tmp_path / "base")
    head = torch.zeros(V, 16)
    head[SEVEN, MARK] = head[EOS, SEVEN] = 5 / math.sqrt(8)
    texts = [TokenSequence(np.array([6 + i % 4, MARK, SEVEN, EOS]), 2) for i in range(8)]
    Probe("gold", texts).save(tmp_path / "gold.npz")
    runs = [
        save_run(tmp_path, "plain", {"lm_head.weight": head}),
        save_run(tmp_path, "flipped", {"lm_head.weight": -head, "model.norm.weight": -2 * (torch.arange(16) < V)}),
    ]
    return tmp_path / "base", runs, str(tmp_path / "gold.npz")


def test_two_wells_that_a_line_does_not_join_are_joined_by_a_curve(wells):
    base, runs, probe = wells
    settings = CurvesSettings(pairs="all", steps=150, lr=0.1, points=11, bootstrap=200, batch_size=4)
    line, curve = compute_all(Curves(settings, runs, base, probe, {}))["curve_barriers"]
    well = math.log(math.exp(5) + V - 1) - 5
    assert line["chord"] == pytest.approx(math.log(V) - well, rel=1e-5)
    assert curve["chord"] < 0.1 * line["chord"]
    assert 0.9 * line["chord"] < curve["below_low"] <= curve["below"] <= curve["below_high"]


def test_low_rank_runs_get_a_low_rank_bend_and_training_lowers_the_loss(student, probe_file, tmp_path, runs):
    names = [f"model.layers.0.self_attn.{m}" for m in ("q_proj", "o_proj")]
    pair = []
    for seed in (1, 2):
        folder = save_lora(tmp_path / f"l{seed}", {n: low_rank(16, 16, 3, seed + i, 0.3) for i, n in enumerate(names)})
        pair.append(Run(f"l{seed}", f"key-l{seed}", str(folder)))
    workload = Curves(CurvesSettings(pairs="all", **QUICK | {"steps": 40}), pair, student, probe_file, {})
    state = workload.setup()
    bend, _ = workload.train(state, *pair)
    assert all(isinstance(entry, LowRank) and len(entry.a) == 3 for entry in bend.values())
    batches = state.train.batches(0, 16)

    def middle(x):
        with state.student.weights.mixed(curve_mixture("bezier", 0.5, pair[0].open(), pair[1].open(), x)):
            return nll(state.student.model, batches)

    assert middle(bend) < middle({}) - 0.01
    again, _ = workload.train(state, *pair)
    assert all(torch.equal(bend[name].dense(), again[name].dense()) for name in bend)


def test_which_pairs_get_a_curve_and_what_their_keys_hold(student, probe_file, runs):
    def tasks(barriers=(), ends=runs, **settings):
        return Curves(CurvesSettings(**settings), ends, student, probe_file, dict(barriers)).tasks()

    def pairs(*args, **settings):
        return [tuple(run.name for run in task.payload) for task in tasks(*args, **settings)]

    assert pairs() == []
    found = {("base", "r1"): 0.02, ("base", "r2"): 0.01, ("r1", "r2"): 0.5}
    assert pairs(found) == [("base", "r1"), ("r1", "r2")]
    assert pairs(found, threshold=0.1) == [("r1", "r2")]
    assert pairs(pairs="all") == [("base", "r1"), ("base", "r2"), ("r1", "r2")]
    assert pairs(pairs=(("r2", "r1"),)) == [("r2", "r1")]
    assert tasks(found, threshold=0.1)[0].key == tasks(pairs="all")[2].key
    assert tasks(pairs="all", steps=7)[2].key != tasks(pairs="all")[2].key
    retrained = [runs[0], Run("r2", "other", runs[1].delta), runs[2]]
    changed = [a.key != b.key for a, b in zip(tasks(pairs="all"), tasks(pairs="all", ends=retrained), strict=True)]
    assert changed == [False, True, True]
    with pytest.raises(ConfigError, match=r"geometry\.curves\.pairs \['r1', 'r3'\].*'r3'.*r1, r2"):
        tasks(pairs=(("r1", "r3"),))


def test_what_cannot_be_trained_is_refused(student, tmp_path, probe_file, runs):
    same = [runs[0], Run("copy", "key-copy", runs[0].delta)]
    with pytest.raises(DeltaError, match="same weights"):
        compute_all(Curves(CurvesSettings(pairs="all", **QUICK), same, student, probe_file, {}))
    bad = [runs[0], save_run(tmp_path, "bad", {"model.norm.weight": torch.full((16,), 1e38)})]
    with pytest.raises(DeltaError, match="at step 1"):
        compute_all(Curves(CurvesSettings(pairs="all", **QUICK), bad, student, probe_file, {}))
    one = save_probe(tmp_path / "one.npz", texts=1)
    with pytest.raises(DataError, match="cannot be halved"):
        Curves(CurvesSettings(pairs="all"), runs, student, one, {}).setup()
