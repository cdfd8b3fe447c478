import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from raygeo.errors import DataError, DeltaError
from raygeo.geometry.connectivity.paths import Paths, PathsSettings, barrier, barrier_intervals, excess
from raygeo.geometry.probes import Probe, nll
from raygeo.students.delta import ADAPTER_FILE, save_full_delta
from raygeo.students.encoding import Sequence
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.tables import BASE, to_arrow

GRID = np.linspace(0, 1, 11)
WORDS = ["<pad>", "<eos>", "?", "####", "7", "8", "a", "b", "c", "d"]
EOS, ASK, MARK, SEVEN, EIGHT = 1, 2, 3, 4, 5
V = len(WORDS)


def test_a_double_well_has_its_closed_form_barrier():
    # L = (1 - (2a - 1)^2)^2 + 0.3 a: wells at both ends, the hump of height 1 in the middle over a tilted chord.
    found = barrier(GRID, (1 - (2 * GRID - 1) ** 2) ** 2 + 0.3 * GRID)
    assert found.chord == pytest.approx(1, abs=1e-12)
    assert found.chord_alpha == 0.5
    assert found.mean == pytest.approx(1 + 0.3 * 0.5 - 0.15, abs=1e-12)
    assert found.mean_alpha == 0.5


@pytest.mark.parametrize("curvature", [-4.0, 2.0])
def test_quadratic_paths(curvature):
    # Along a line a quadratic exceeds its chord by -curvature/2 * a (1 - a).
    losses = 1 + 0.7 * GRID + curvature / 2 * GRID**2
    np.testing.assert_allclose(excess(GRID, losses).chord, -curvature / 2 * GRID * (1 - GRID), atol=1e-12)
    found = barrier(GRID, losses)
    assert found.chord == pytest.approx(max(0, -curvature / 8), abs=1e-12)
    assert found.chord_alpha == (0.5 if curvature < 0 else 0)
    assert found.mean == pytest.approx(losses.max() - (losses[0] + losses[-1]) / 2, abs=1e-12)


def test_a_straight_path_has_no_chord_barrier_but_half_the_gap_over_the_mean():
    found = barrier(GRID, 0.1 + 0.6 * GRID)
    assert (found.chord, found.chord_alpha) == (0, 0)
    assert found.mean == pytest.approx(0.3)
    assert found.mean_alpha == 1


@pytest.mark.parametrize("alphas", [[0, 1, 0.5], [0.1, 1], [0, 0.9], [0.0], [0, 0.5, 0.5, 1]])
def test_grids_without_both_ends_are_refused(alphas):
    with pytest.raises(ValueError, match="alphas"):
        barrier(alphas, np.zeros(len(alphas)))


def test_losses_that_are_not_finite_are_refused():
    with pytest.raises(DeltaError, match=r"alpha = \[0\.5\]"):
        barrier([0, 0.5, 1], [1, np.nan, 1])
    with pytest.raises(ValueError, match="losses for"):
        barrier([0, 0.5, 1], [1, 1])


def noisy_path(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums [3, N] over counts [N]: token means 1, 2 and 1.4, so the chord barrier is 0.8 and the mean barrier 0.8."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(5, 40, size=n).astype(float)
    shared = rng.normal(0, 0.3, size=n)
    return (
        np.array([0, 0.5, 1]),
        (np.array([[1], [2], [1.4]]) + shared + rng.normal(0, 0.2, size=(3, n))) * counts,
        counts,
    )


def test_bootstrap_is_reproducible_and_follows_its_seed():
    path = noisy_path(50, 0)
    first = barrier_intervals(*path, resamples=500, seed=3)
    assert first == barrier_intervals(*path, resamples=500, seed=3)
    assert first != barrier_intervals(*path, resamples=500, seed=4)


def test_bootstrap_agrees_with_scipy():
    alphas, sums, counts = noisy_path(40, 1)
    found = barrier_intervals(alphas, sums, counts, resamples=20_000, seed=0)
    options = {"vectorized": False, "n_resamples": 4000, "method": "percentile"}
    for kind in ("chord", "mean"):

        def height(rows: np.ndarray, kind: str = kind) -> float:
            return getattr(barrier(alphas, sums[:, rows].sum(1) / counts[rows].sum()), kind)

        resampled = stats.bootstrap((np.arange(40),), height, rng=np.random.default_rng(7), **options)
        expected = resampled.confidence_interval
        assert getattr(found, kind) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_bootstrap_is_paired_over_alphas():
    # A difficulty shared by all alphas cancels in the barrier; were alphas resampled apart, the interval would be wide.
    _, _, counts = noisy_path(60, 2)
    difficulty = np.random.default_rng(5).normal(0, 10, size=60)
    sums = (np.array([[1], [2], [1]]) + difficulty) * counts
    chord = barrier_intervals([0, 0.5, 1], sums, counts, resamples=500, seed=0).chord
    assert chord == pytest.approx((1, 1), abs=1e-9)


def test_bootstrap_covers_the_true_barrier():
    covered = 0
    for seed in range(200):
        low, high = barrier_intervals(*noisy_path(60, seed), resamples=300, seed=0).chord
        covered += low <= 0.8 <= high
    assert 176 <= covered <= 199


def save_tokenizer(folder) -> None:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def config(**changes) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
        **changes,
    )


@pytest.fixture(scope="module")
def bigram(tmp_path_factory):
    """A student whose blocks are silent and whose embeddings are one-hot: logits are one row of the unembedding."""
    model = Qwen3ForCausalLM(config(tie_word_embeddings=False, rms_norm_eps=1e-12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_() if parameter.ndim == 2 else parameter.fill_(1)
        model.model.embed_tokens.weight[:, :V] = torch.eye(V)
    folder = tmp_path_factory.mktemp("bigram")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def table(entries: dict[tuple[int, int], float]) -> torch.Tensor:
    """Unembedding that adds ``entries[previous, next]`` to the logits; the norm scales a one-hot vector by sqrt(16)."""
    weight = torch.zeros(V, 16)
    for (previous, following), logit in entries.items():
        weight[following, previous] = logit / 4
    return weight


def save_run(folder, name: str, tensors: dict[str, torch.Tensor]) -> Run:
    save_full_delta(folder / name, tensors)
    return Run(name, f"key-{name}", str(folder / name))


def answering(folder, name: str, digit: int, strength: float) -> Run:
    steps = {(ASK, MARK): 9.0, (MARK, digit): strength, (digit, EOS): 9.0}
    return save_run(folder, name, {"lm_head.weight": table(steps)})


def answers(*digits: int) -> Probe:
    return Probe("gold", [Sequence(np.array([6 + i % 4, ASK, MARK, d, EOS]), 3) for i, d in enumerate(digits)])


def compute(workload: Paths, index: int = 0) -> tuple[list[dict], list[dict]]:
    rows = workload.compute(workload.setup(), workload.tasks()[index].payload)
    for name, found in rows.items():
        assert to_arrow(name, found).num_rows == len(found)
    return rows["paths"], rows["barriers"]


def logsumexp(*logits: float) -> float:
    return math.log(sum(map(math.exp, logits)) + V - len(logits))


def test_loss_along_a_path_has_its_closed_form(bigram, tmp_path):
    answers(SEVEN, SEVEN, EIGHT).save(tmp_path / "gold.npz")
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    workload = Paths(PathsSettings(points=5), runs, bigram, {"gold": str(tmp_path / "gold.npz")})
    paths, (found,) = compute(workload)
    assert [row["alpha"] for row in paths] == [0, 0.25, 0.5, 0.75, 1]
    losses = []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        seven, eight, end7, end8 = 3 * (1 - alpha), 2 * alpha, 9 * (1 - alpha), 9 * alpha
        say7 = logsumexp(seven, eight) - seven + logsumexp(end7) - end7
        say8 = logsumexp(seven, eight) - eight + logsumexp(end8) - end8
        losses.append((2 * say7 + say8) / 6)
    assert [row["loss"] for row in paths] == pytest.approx(losses, rel=1e-5)
    assert {(row["metric"], row["probe"], row["n"], row.get("accuracy")) for row in paths} == {("nll", "gold", 3, None)}
    # The loss is convex in the unembedding, so the path stays under its chord.
    assert (found["chord"], found["chord_alpha"], found["chord_low"], found["chord_high"]) == (0, 0, 0, 0)
    assert found["mean"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2, rel=1e-5)


def test_two_wells_joined_over_a_hill(bigram, tmp_path):
    # Flipping the sign of both the final norm and the unembedding changes nothing; half way both vanish.
    answers(SEVEN, SEVEN).save(tmp_path / "gold.npz")
    steps = {(MARK, SEVEN): 5.0, (SEVEN, EOS): 5.0}
    runs = [
        save_run(tmp_path, "plain", {"lm_head.weight": table(steps)}),
        save_run(tmp_path, "flipped", {"lm_head.weight": -table(steps), "model.norm.weight": torch.full((16,), -2.0)}),
    ]
    paths, (found,) = compute(Paths(PathsSettings(), runs, bigram, {"gold": str(tmp_path / "gold.npz")}))
    well = logsumexp(5.0) - 5
    assert [paths[0]["loss"], paths[-1]["loss"]] == pytest.approx([well, well], rel=1e-5)
    assert (found["chord_alpha"], found["mean_alpha"]) == (0.5, 0.5)
    height = pytest.approx(math.log(V) - well, rel=1e-5)
    assert [found[key] for key in ("chord", "mean", "chord_low", "chord_high")] == [height] * 4


def test_accuracy_along_a_path(bigram, tmp_path):
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    problems = [(f"{word} ?", gold) for word, gold in zip("abcd", "7778", strict=True)]
    settings = PathsSettings(points=3, max_new_tokens=6, generation_batch_size=3)
    paths, (found,) = compute(Paths(settings, runs, bigram, {}, problems))
    # "7" wins while 3 (1 - alpha) > 2 alpha, that is below 0.6.
    accuracies = {row["alpha"]: row["accuracy"] for row in paths}
    assert accuracies == {0: 0.75, 0.25: 0.75, 0.5: 0.75, 0.75: 0.25, 1: 0.25}
    labels = {(row["metric"], row["probe"], row["n"], row.get("loss")) for row in paths}
    assert labels == {("accuracy", "problems", 4, None)}
    assert found["chord"] == pytest.approx(0.75 - (0.25 * 0.25 + 0.75 * 0.75))
    assert (found["chord_alpha"], found["mean"], found["mean_alpha"]) == (0.75, 0.25, 0.75)
    assert 0 <= found["chord_low"] <= found["chord"] <= found["chord_high"]


def test_only_the_first_problems_are_asked_and_none_turns_accuracy_off(bigram, tmp_path):
    runs = [answering(tmp_path, "seven", SEVEN, 3.0), answering(tmp_path, "eight", EIGHT, 2.0)]
    problems = [("a ?", "7"), ("b ?", "8"), ("c ?", "8")]
    settings = PathsSettings(accuracy_problems=1, max_new_tokens=4)
    assert {row["n"] for row in compute(Paths(settings, runs, bigram, {}, problems))[0]} == {1}
    assert compute(Paths(PathsSettings(accuracy_problems=0), runs, bigram, {}, problems)) == ([], [])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config(tie_word_embeddings=True, initializer_range=0.3))
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def probe_file(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, size=(13, 2))
    sequences = [Sequence(rng.integers(2, V, size=p + c), int(p)) for p, c in lengths]
    Probe("texts", sequences).save(tmp_path / "texts.npz")
    return str(tmp_path / "texts.npz")


def noise(folder, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = Qwen3ForCausalLM.from_pretrained(folder)
    return {n: 0.2 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


@pytest.fixture
def runs(student, tmp_path):
    return [save_run(tmp_path, f"r{s}", noise(student, s)) for s in (1, 2)] + [Run(BASE, "key-base", None)]


def test_paths_equal_dense_interpolation(student, probe_file, runs, tmp_path):
    settings = PathsSettings(points=5, batch_size=4)
    workload = Paths(settings, runs, student, {"texts": probe_file})
    pairs = [tuple(run.name for run in task.payload) for task in workload.tasks()]
    assert pairs == [("base", "r1"), ("base", "r2"), ("r1", "r2")]
    state = workload.setup()
    kept = {name: value.clone() for name, value in state.weights.model.named_parameters()}
    model = Qwen3ForCausalLM.from_pretrained(student).eval()
    deltas = {"base": {}, "r1": noise(student, 1), "r2": noise(student, 2)}
    batches = Probe.load(probe_file).batches(0, 16)
    for task in workload.tasks():
        a, b = task.payload
        for row in workload.compute(state, task.payload)["paths"]:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    first, second = (deltas[run.name].get(name, torch.zeros(())) for run in (a, b))
                    parameter.copy_(kept[name] + (1 - row["alpha"]) * first + row["alpha"] * second)
            assert row["loss"] == pytest.approx(nll(model, batches), rel=1e-6)
    for name, value in state.weights.model.named_parameters():
        assert torch.equal(value, kept[name]), "compute must put the base weights back"


def test_mixture_is_the_dense_interpolation(student, runs):
    model = Qwen3ForCausalLM.from_pretrained(student)
    kept = {name: value.detach().clone() for name, value in model.named_parameters()}
    first, second = noise(student, 1), noise(student, 2)
    weights = MixedWeights(model, kept)
    for alpha in (0.0, 0.3, 1.0):
        with weights.mixed([*runs[0].mixture(1 - alpha), *runs[1].mixture(alpha)]):
            for name, value in model.named_parameters():
                expected = kept[name].double() + (1 - alpha) * first[name].double() + alpha * second[name].double()
                torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)


def test_low_rank_and_full_deltas_give_the_same_path(student, probe_file, runs, tmp_path):
    generator = torch.Generator().manual_seed(9)
    shapes = {"q_proj": (16, 16), "v_proj": (8, 16), "o_proj": (16, 16)}
    factors, dense = {}, {}
    for module, (out, into) in shapes.items():
        a, b = (torch.randn(s, generator=generator) for s in ((3, into), (out, 3)))
        name = f"model.layers.0.self_attn.{module}"
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        dense[f"{name}.weight"] = 0.5 * b @ a
    (tmp_path / "lora").mkdir()
    save_file(factors, tmp_path / "lora" / ADAPTER_FILE)
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 1.5}))
    (paths_lora, (barrier_lora,)), (paths_full, (barrier_full,)) = (
        compute(Paths(PathsSettings(points=5), [runs[0], run], student, {"texts": probe_file}))
        for run in (Run("lora", "key-lora", str(tmp_path / "lora")), save_run(tmp_path, "full", dense))
    )
    assert [r["loss"] for r in paths_lora] == pytest.approx([r["loss"] for r in paths_full], rel=1e-6)
    assert barrier_lora["mean_high"] == pytest.approx(barrier_full["mean_high"], rel=1e-5)
    assert len({round(r["loss"], 4) for r in paths_lora}) == 5


def test_ends_are_evaluated_once_an_actor(student, probe_file, runs, monkeypatch):
    import raygeo.geometry.connectivity.paths as module

    calls = []
    inner = module.sequence_nlls
    monkeypatch.setattr(module, "sequence_nlls", lambda *args: calls.append(1) or inner(*args))
    workload = Paths(PathsSettings(points=4), runs, student, {"one": probe_file, "two": probe_file})
    state = workload.setup()
    rows = [workload.compute(state, task.payload)["paths"] for task in workload.tasks()]
    assert len(calls) == 2 * (3 + 3 * 2), "two probes, three ends, three pairs with two inner points"
    fresh = workload.setup()
    assert rows[2] == workload.compute(fresh, workload.tasks()[2].payload)["paths"]


def test_pairs_and_keys(student, probe_file, runs):
    def tasks(**settings):
        return Paths(PathsSettings(**settings), runs, student, {"texts": probe_file}, [("a ?", "7")]).tasks()

    def pairs(**settings):
        return [tuple(run.name for run in task.payload) for task in tasks(**settings)]

    assert pairs(pairs="base") == [("base", "r1"), ("base", "r2")]
    assert pairs(include_base=False) == [("r1", "r2")]
    keys = [task.key for task in tasks()]
    assert len(set(keys)) == 3
    assert keys == [task.key for task in tasks()]
    assert not set(keys) & {task.key for task in tasks(seed=1)}
    retrained = [runs[0], Run("r2", "other", runs[1].delta), runs[2]]
    again = Paths(PathsSettings(), retrained, student, {"texts": probe_file}, [("a ?", "7")]).tasks()
    assert [task.key == key for task, key in zip(again, keys, strict=True)] == [True, False, False]


def test_a_diverged_end_and_a_reserved_name_are_refused(student, probe_file, runs, tmp_path):
    bad = save_run(tmp_path, "bad", {"model.norm.weight": torch.full((16,), math.nan)})
    with pytest.raises(DeltaError, match="not finite"):
        compute(Paths(PathsSettings(points=3), [runs[0], bad], student, {"texts": probe_file}))
    with pytest.raises(DataError, match="'problems'"):
        Paths(PathsSettings(), runs, student, {"problems": probe_file})
