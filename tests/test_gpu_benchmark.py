"""The proof on one GPU runs whole on a CPU, with a tiny model; what it finds there that needs no GPU is right."""

import json
import math
import os
import time

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.one_card import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "found.json"
    ended = CliRunner().invoke(gpu.app, ["--tiny", "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    return {name: step["figures"] for name, step in json.loads(out.read_text())["steps"].items()}


def test_every_step_is_taken_and_tells_its_figures(found):
    assert list(found) == ["machine", "training", "evaluation", "products", "exactness", "spectrum"]
    training, decoder = found["training"], SMALL.decoder
    assert training["steps"] == SMALL.steps
    assert training["tokens_a_step"] == SMALL.rows * SMALL.row
    assert training["objective_first"] == pytest.approx(math.log(decoder.vocab_size), abs=0.1)
    planned = [value for name, value in training.items() if name.startswith("planned_")]
    assert 2 * training["planned_bytes"] == sum(planned)
    assert training["planned_gradients"] == 4 * decoder.adapters(SMALL.r)
    assert all(found["evaluation"][f"decoded_tokens_a_second_{rows}"] > 0 for rows in SMALL.batches)


def test_products_by_differences_are_close_to_exact_ones(found):
    assert found["products"]["weights_in_space"] == SMALL.decoder.projections
    for length in (SMALL.short, SMALL.row):
        assert 0 < found["products"][f"difference_error_{length}"] < 2e-3


def test_bf16_with_deltas_is_as_exact_as_rounding_allows(found):
    exactness = found["exactness"]
    assert 1 / 512 < exactness["weights_error_full_bf16"] <= 1 / 256
    assert exactness["weights_error_full_fp32"] <= 2.0**-24
    assert exactness["weights_error_lora_fp32"] < 1e-6
    assert exactness["restored_lora"] is exactness["restored_full"] is True


def test_the_spectrum_comes_with_residuals(found):
    top, residuals = found["spectrum"]["top"], found["spectrum"]["residuals"]
    assert len(top) == len(residuals) == 5
    assert sorted(top, reverse=True) == top
    assert residuals[0] < 0.01 * top[0]


def failing(size, figures):
    figures("before", 1)
    raise MemoryError("no room")


def dying(size, figures):
    figures("before", 2)
    os._exit(3)


def hanging(size, figures):
    figures("before", 3)
    time.sleep(600)


@pytest.mark.parametrize(
    ("step", "limit", "said"),
    [(failing, 60, "MemoryError: no room"), (dying, 60, "ended with code 3"), (hanging, 1, "longer than 1 s")],
)
def test_a_step_that_fails_dies_or_hangs_is_told_with_what_it_found(step, limit, said):
    taken = gpu.take(gpu.processes(), step, SMALL, limit)
    assert said in taken["error"]
    assert list(taken["figures"]) == ["before"]


def test_without_a_device_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = CliRunner().invoke(gpu.app, [])
    assert ended.exit_code == 1
    assert ended.output.startswith("There is no CUDA device here")
    assert ended.output.count("\n") == 1
