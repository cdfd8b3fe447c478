from dataclasses import replace
from functools import partial
from math import prod

import pytest
from footprint_cases import SHAPE

from raygeo.analyses.registry import analyses
from raygeo.footprint.model import DryModel
from raygeo.footprint.need import Need, Scale, Texts
from raygeo.models.lora import LoraSettings

LORA = LoraSettings(r=4)


@pytest.fixture(scope="module")
def scale():
    texts = Texts(16, 20.0, 30)
    student = partial(DryModel, SHAPE, lora=LORA, merged=True)
    probes = {"solutions": texts, "answer": texts}
    return Scale(student(), 3, 3, 4, probes, texts, texts, texts, 0, student, 6)


def need(name: str, scale: Scale, **options) -> Need:
    analysis = analyses()[name]
    [found] = analysis.cost(analysis.settings(**options), scale)
    return found


def test_compression_keeps_a_copy_of_all_blocks_and_takes_a_pass_a_point(scale):
    found = need("compressibility", scale, sparsities=(0.5,), bits=(4,))
    every = DryModel(SHAPE).shapes
    blocks = sum(prod(shape) for name, shape in every.items() if ".layers." in name and len(shape) > 1)
    assert found.device["base copy of what is compressed"] == 4 * blocks
    passes = 3 * (1 + 2 * 2) + (1 + 2)
    assert found.work.flops == pytest.approx(
        (scale.scoring(scale.solutions, passes) + scale.mixing(passes)).flops + 20 * blocks * passes
    )


def test_tuning_all_weights_holds_five_copies_and_adapters_one(scale):
    full, low = need("tunability", scale, rank=None), need("tunability", scale, rank=4)
    size = 4 * scale.model.parameters
    held = sum(full.device[part] for part in ("weights", "base copy of what deltas touch", "gradients and moments"))
    assert held == 5 * size
    assert low.device["adapters, gradients and moments"] < size
    lighter = need("tunability", scale, gradient_checkpointing=True)
    graph = "a micro-batch with its graph"
    assert lighter.device[graph] < need("tunability", scale).device[graph]
    assert not any("checkpointing" in remedy for remedy in lighter.remedies)
    twice = need("tunability", scale, seeds=(0, 1))
    assert (twice.units, twice.work.flops) == (8, pytest.approx(2 * need("tunability", scale).work.flops))


def test_answers_are_drawn_of_every_run_and_texts_read_once(scale):
    few, many = need("diversity", scale, samples=2), need("diversity", scale, samples=8)
    assert few.work.traffic < many.work.traffic
    analysis = analyses()["forgetting"]
    assert analysis.cost(analysis.settings(), scale) == []
    texts = need("forgetting", scale, texts="old.txt", passages=8, passage_tokens=16)
    assert texts.work.flops == pytest.approx((scale.scoring(Texts(8, 16.0, 16), 4) + scale.mixing(4)).flops)


def test_kept_deltas_are_held_as_factors_and_blocks_and_the_embedding_is_left_out(scale):
    full = replace(scale, model=DryModel(SHAPE), rank=None, snapshots=3)
    shapes = [shape for shape in scale.model.shapes.values() if len(shape) == 2]
    widest = max(sum(shape) for shape in shapes)
    for name in ("subspace_locking", "rank_one"):
        low = sum(need(name, replace(scale, snapshots=3)).host.values())
        assert 4 * widest * 8 <= low <= 8 * (8 * widest * 16 + 3 * 16 * 16), "factors of rank 4 of four deltas"
    assert sum(need("rank_one", full).host.values()) == 3 * 2**22 * 8
    one = need("subspace_locking", full, modules=("*.0.self_attn.q_proj",))
    every = need("subspace_locking", full)
    assert 0 < one.work.flops < every.work.flops < need("norms", full).work.flops * 4
    large = DryModel(SHAPE.__class__(**SHAPE.to_dict() | {"vocab_size": 100_000}))
    assert need("subspace_locking", replace(full, model=large)).host == every.host


@pytest.mark.parametrize("name", ["intruders", "layer_alpha"])
def test_the_random_delta_of_a_full_one_takes_its_singular_values(scale, name):
    low, full = need(name, scale), need(name, replace(scale, rank=None))
    assert full.work.flops == pytest.approx(low.work.flops * 10 / 7), "1 + 3 and 1 + 2 of three runs"


def test_runs_at_equal_distance_hold_what_the_base_predicts_and_answer_three_times(scale):
    found, asked = need("matched", scale), need("matched", scale, accuracy_problems=8, max_new_tokens=16)
    shape = DryModel(SHAPE)
    held = 4 * shape.width * (16 * 20 + shape.text.vocab_size)
    assert found.device["states and head of the base"] == held
    assert found.work.flops == pytest.approx((scale.scoring(scale.solutions, 36) + scale.mixing(36)).flops)
    assert asked.work.flops == pytest.approx(found.work.flops + scale.answers(scale.problems.first(8), 16, 8, 12).flops)
    half = need("matched", scale, batch_size=8)
    assert half.device["logits that are compared"] * 2 == found.device["logits that are compared"]
