"""What is extrapolated in depth where the head does more than a few blocks do, and products a block at a time."""

from dataclasses import replace

import pytest
import torch
from footprint_cases import SHAPE, allocated, random_batch, real_model
from transformers import Qwen3Config

from benchmarks.decoder import QWEN3_4B
from raygeo.footprint.model import DryModel
from raygeo.geometry.curvature.draws import random_signs
from raygeo.geometry.curvature.operators import Hessian
from raygeo.losses.registry import LOSSES
from raygeo.models.lora import LoraSettings

pytestmark = [pytest.mark.slow, pytest.mark.long]


def deep(**changes):
    return Qwen3Config(**(SHAPE.to_dict() | {"num_hidden_layers": 11, "layer_types": None} | changes))


def followed_and_whole(config, dtype, lora, **form):
    line, whole = DryModel(config, dtype, lora, **form), DryModel(config, dtype, lora, **form)
    whole.shallow = []
    assert line.shallow
    return line, whole


def test_a_head_of_many_tiles():
    config = replace(QWEN3_4B, num_hidden_layers=11).config()
    models = followed_and_whole(config, torch.bfloat16, LoraSettings(r=32), checkpointing=True)
    line, whole = (model.training(LOSSES["sft"](), 1, 4096, accumulating=True) for model in models)
    assert line.peak == pytest.approx(whole.peak, rel=0.02)


def test_products_by_layer():
    line, whole = (
        model.product(1, 64, keep_graphs=False, by_layer=True)
        for model in followed_and_whole(deep(), torch.float32, None)
    )
    assert line.peak == pytest.approx(whole.peak, rel=0.05)
    assert line.flops == whole.flops
    model, batch = real_model(), random_batch(2, 48)
    operator = Hessian(model, [batch], keep_graphs=False, by_layer=True)
    vector = random_signs(operator, "lanczos", range(1))
    measured = allocated(lambda: operator.matmat(vector)) + vector.nbytes
    assert DryModel(SHAPE).product(2, 48, keep_graphs=False, by_layer=True).peak == pytest.approx(measured, rel=0.15)
