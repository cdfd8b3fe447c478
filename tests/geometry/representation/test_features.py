from functools import partial

import delta_cases
import numpy as np
import pytest
import torch

from raygeo.analyses.cka.representations import FeatureSettings, Representations
from raygeo.geometry.representation.cka import minibatches
from raygeo.geometry.representation.features import PLAIN, TREATMENTS, chosen_tokens, hidden_features, text_features
from raygeo.geometry.representation.kernels import Kernels, gram, outliers
from raygeo.models.batches import collate

gaussian = partial(delta_cases.gaussian, dtype=torch.float64)


def test_minibatches_use_every_example_once_and_none_is_small():
    parts = minibatches([1] * 103, 16, seed=1)
    assert sorted(torch.cat(parts).tolist()) == list(range(103))
    assert all(16 <= len(part) <= 18 for part in parts)
    assert [p.tolist() for p in parts] == [p.tolist() for p in minibatches([1] * 103, 16, seed=1)]
    assert [p.tolist() for p in parts] != [p.tolist() for p in minibatches([1] * 103, 16, seed=2)]
    assert len(minibatches([1] * 5, 16, seed=0)) == 1


def test_minibatches_keep_the_rows_of_a_text_together():
    counts = [1, 3, 2, 4, 1, 2, 3, 1, 2]
    parts = minibatches(counts, 4, seed=0)
    text = np.repeat(np.arange(9), counts)
    assert sorted(torch.cat(parts).tolist()) == list(range(sum(counts)))
    assert [len(set(text[part])) for part in parts] == [5, 4]
    assert not set(text[parts[0]]) & set(text[parts[1]])


@pytest.mark.parametrize("pool", ["mean_completion", "last_prompt", "tokens"])
def test_pooled_features_equal_those_of_each_text_alone(student, probe, pool):
    model, _ = student
    tokens = chosen_tokens(probe.sequences, pool, 3, 0)
    mean = pool == "mean_completion"
    pooled = hidden_features(model, collate(probe.sequences, 0), tokens, mean=mean)
    rows = [1 if mean else len(places) for places in tokens]
    assert pooled[PLAIN].shape == pooled["rms_normed"].shape == (3, sum(rows), 32)
    assert max(rows) == {"mean_completion": 1, "last_prompt": 1, "tokens": 3}[pool]
    ends = np.cumsum(rows)
    for s, places, count, end in zip(probe.sequences, tokens, rows, ends, strict=True):
        with torch.no_grad():
            states = model(torch.from_numpy(s.ids)[None], output_hidden_states=True).hidden_states
        for layer, state in enumerate(states):
            normed = state[0] / state[0].square().mean(-1, keepdim=True).sqrt()
            for treatment, values in ((PLAIN, state[0]), ("rms_normed", normed)):
                own = values[places].mean(0, keepdim=True) if mean else values[places]
                found = pooled[treatment][layer, end - count : end]
                torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean_completion", "tokens"])
def test_features_come_in_the_order_of_the_texts_however_they_are_batched(student, probe, pool):
    model, _ = student
    tokens = chosen_tokens(probe.sequences, pool, 2, 5)
    expected = hidden_features(model, collate(probe.sequences, 0), tokens, mean=pool == "mean_completion")
    for options in ({"batch_size": 7}, {"batch_size": 1}, {"batch_size": 24, "pad_id": 9}):
        found = text_features(model, probe.sequences, pool=pool, tokens_per_text=2, seed=5, **options)
        for treatment in (PLAIN, "rms_normed"):
            torch.testing.assert_close(found[treatment], expected[treatment], rtol=1e-4, atol=1e-5)


def test_tokens_are_drawn_from_the_completion_alone_and_by_seed(probe):
    chosen = {
        seed: [places.tolist() for places in chosen_tokens(probe.sequences, "tokens", 4, seed)] for seed in (0, 1)
    }
    for s, places in zip(probe.sequences, chosen[0], strict=True):
        assert len(places) == min(4, s.completion_length)
        assert places == sorted(set(places))
        assert s.prompt_length <= places[0]
        assert places[-1] < len(s)
    assert chosen[0] != chosen[1]


def test_layer_zero_is_the_embeddings_and_the_last_layer_feeds_the_logits(student, probe):
    model, _ = student
    s = probe.sequences[0]
    pooled = hidden_features(model, collate([s], 0), [torch.tensor([s.prompt_length - 1])], mean=False)[PLAIN]
    with torch.no_grad():
        torch.testing.assert_close(pooled[0, 0], model.get_input_embeddings().weight[s.ids[s.prompt_length - 1]])
        logits = model(torch.from_numpy(s.ids)[None]).logits[0, s.prompt_length - 1]
        torch.testing.assert_close(model.lm_head(pooled[-1, 0]), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("treatment", "k"), [("without_1_pc", 1), ("without_3_pcs", 3)])
def test_components_are_removed_as_a_projection_of_the_features_would(treatment, k):
    x = gaussian(2, 12, 6, seed=0) * torch.tensor([9.0, 5, 3, 1, 1, 1]) + 4
    kernels = Kernels.of({PLAIN: x})
    for layer, found in zip(x, kernels.treated(treatment), strict=True):
        centred = layer - layer.mean(0)
        directions = torch.linalg.svd(centred).Vh[:k]
        torch.testing.assert_close(found, gram(centred - centred @ directions.T @ directions), rtol=1e-10, atol=1e-10)


def test_nothing_is_left_of_features_with_few_components():
    x = gaussian(10, 2, seed=1) @ gaussian(2, 7, seed=2)
    kernels = Kernels.of({PLAIN: x[None]})
    assert float(kernels.treated("without_3_pcs").abs().max()) == 0
    assert float(kernels.treated("without_1_pc").abs().max()) > 0


def test_outliers_are_large_dimensions_however_constant():
    x = gaussian(50, 9, seed=3)
    x[:, 2] = 30 + 0.01 * x[:, 2]
    x[:, 5] *= 0.01
    assert outliers(x, 5.0).nonzero().flatten().tolist() == [2]
    assert not outliers(x, 50.0).any()


def test_outliers_are_those_of_the_base_and_are_left_out_of_every_run(student, probe_file, probe, runs, merged):
    settings = FeatureSettings(outlier_factor=1.5, forward_batch_size=7)
    state = Representations.open(settings, runs, student[1], probe_file)
    features = {name: text_features(model, probe.sequences)[PLAIN] for name, model in merged.items()}
    large = outliers(features["base"], 1.5)
    assert 0 < int(large.sum()) < large.numel() / 2
    assert not torch.equal(large, outliers(features["r1"], 1.5)), "the base's must be told from the run's own"
    found = state.kernels(runs[1])
    assert set(found.grams) | {"without_1_pc", "without_3_pcs"} == set(TREATMENTS)
    for layer in range(3):
        kept = features["r1"][layer][:, ~large[layer]]
        torch.testing.assert_close(found.treated("without_outliers")[layer], gram(kept), rtol=1e-4, atol=1e-3)
