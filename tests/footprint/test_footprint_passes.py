"""What is counted on shapes is what torch's allocator gives out when the same passes run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from footprint_cases import SHAPE, allocated, random_batch, real_model
from transformers import DynamicCache, LlamaConfig, Qwen3Config

from raygeo.analyses.curvature.cost import vectors_held
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.footprint.counter import counting
from raygeo.footprint.model import DryModel
from raygeo.geometry.curvature.draws import random_signs
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.trace import hutch_plus_plus
from raygeo.geometry.representation.features import hidden_states
from raygeo.losses.batches import MicroBatch, micro_loss
from raygeo.losses.registry import LOSSES
from raygeo.models.cached import next_logits
from raygeo.models.likelihood import Likelihood, token_logprobs
from raygeo.models.lora import LoraSettings, attach_lora

CLOSE = 0.15


def close(counted: int, measured: int) -> None:
    assert counted == pytest.approx(measured, rel=CLOSE), f"counted {counted / 2**20:.2f}, was {measured / 2**20:.2f}"


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("dtype", "lora"),
    [(torch.float32, None), (torch.float32, LoraSettings()), (torch.bfloat16, None), (torch.bfloat16, LoraSettings())],
    ids=["full fp32", "lora fp32", "full bf16", "lora bf16"],
)
def test_a_training_pass(dtype, lora, rows):
    loss = LOSSES["sft"]()
    model = real_model(dtype=dtype)
    model = model if lora is None else attach_lora(model, lora, 0)
    batch = random_batch(rows, 96)
    micro = MicroBatch(batch, {}, {"mask": batch.mask, "weights": torch.ones(rows), "reference_logprobs": None})
    measured = allocated(lambda: micro_loss(Likelihood(model), loss, micro, None).total.backward())
    close(DryModel(SHAPE, dtype, lora).training(loss, rows, 96, accumulating=False).peak, measured)


def test_passes_without_gradients():
    model, dry = real_model(), DryModel(SHAPE)
    batch = random_batch(4, 128)
    with torch.no_grad():
        close(dry.scoring(4, 128).peak, allocated(lambda: token_logprobs(model, batch)))
    close(dry.states(4, 128).peak, allocated(lambda: hidden_states(model, batch)))


def test_generation_and_its_cache():
    model, dry = real_model(), DryModel(SHAPE)
    ids = torch.randint(0, SHAPE.vocab_size, (8, 128))
    mask, cache = torch.ones_like(ids), DynamicCache(config=model.config)
    positions = torch.arange(128).expand(8, -1)
    with torch.inference_mode():
        close(dry.prefill(8, 128).peak, allocated(lambda: next_logits(model, ids, mask, positions, cache)))
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        mask, positions = torch.ones(8, 129, dtype=torch.long), torch.full((8, 1), 128)
        step = allocated(lambda: next_logits(model, ids[:, :1], mask, positions, cache))
    counted = dry.decoding(8, 128)
    assert counted.kept == held
    close(counted.peak, held + step)


@pytest.mark.slow
def test_products_of_the_hessian_and_the_vectors_of_lanczos():
    model, dry, batch = real_model(), DryModel(SHAPE), random_batch(2, 48)
    operator = Hessian(model, [batch])
    start = random_signs(operator, "lanczos", range(1))
    counted = dry.product(2, 48)
    close(counted.peak, allocated(lambda: operator.matmat(start)) + start.nbytes)
    settings = CurvatureSettings(max_steps=6, trace_probes=2, top_k=2, tolerance=1e-9)

    def spectrum() -> None:
        fresh = Hessian(model, [batch])
        found = extreme_eigenvalues(fresh.matmat, start, 2, max_steps=settings.max_steps, tolerance=1e-9)
        probes = random_signs(fresh, "trace", range(settings.trace_probes))
        hutch_plus_plus(fresh.matmat, found.basis, found.basis_trace, probes)

    close(counted.peak + vectors_held(settings) * start.nbytes, allocated(spectrum) + start.nbytes)


def test_a_gradient():
    model, dry = real_model(), DryModel(SHAPE)
    batch, values = random_batch(2, 96), list(model.parameters())
    close(
        dry.gradient(2, 96).peak,
        allocated(lambda: torch.autograd.grad(-token_logprobs(model, batch).sum(), values)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "dpo", "asft", "ift"])
def test_deep_models_are_followed_through_shallower_ones(name):
    config = Qwen3Config(**(SHAPE.to_dict() | {"num_hidden_layers": 12, "layer_types": None}))
    deep, whole = DryModel(config, torch.float32, LoraSettings()), DryModel(config, torch.float32, LoraSettings())
    assert [model.layers for model in deep.shallow] == [3, 5]
    whole.shallow = []
    loss = LOSSES[name]()
    line, truth = (model.training(loss, 2, 48, accumulating=True) for model in (deep, whole))
    assert (line.kept, line.flops) == (truth.kept, truth.flops)
    assert line.peak == pytest.approx(truth.peak, rel=0.01)


def test_blocks_that_differ_are_all_counted():
    kinds = ["full_attention", "sliding_attention"] * 6
    shape = {"num_hidden_layers": 12, "layer_types": kinds, "use_sliding_window": True, "sliding_window": 16}
    assert DryModel(Qwen3Config(**(SHAPE.to_dict() | shape))).shallow == []


def test_operations_are_those_of_products_and_attention():
    width, heads, size, inner, vocabulary, tokens = 64, 4, 16, 128, 500, 32
    config = LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocabulary, tie_word_embeddings=False,
    )  # fmt: skip
    block = 4 * width * heads * size + 3 * width * inner
    attention = 2 * heads * tokens * tokens * size
    products = 2 * (2 * (tokens * block + attention) + (tokens - 1) * width * vocabulary)
    assert DryModel(config).scoring(1, tokens).flops == products


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storages_are_counted_once_and_while_they_live(device):
    known = torch.zeros(10, device=device)
    with counting([known]) as counter:
        view = known.view(2, 5)
        first = view + 1
        assert counter.live == 40
        second = first.T.contiguous()
        del first
        assert (counter.live, counter.peak) == (40, 80)
        del second
        assert counter.live == 0


SCRIPT = """
import torch
from footprint_cases import random_batch, real_model
from transformers import Qwen3Config
from raygeo.models.likelihood import Likelihood

config = Qwen3Config(hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8,
    num_key_value_heads=4, head_dim=32, vocab_size=4000)

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

torch.set_num_threads(1)
model = real_model(config)
step = lambda rows, tokens: Likelihood(model)(random_batch(rows, tokens, 4000))["logprobs"].sum().backward()
step(1, 8)
model.zero_grad(set_to_none=True)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
step(4, 256)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a process cannot be reset here"
)
def test_a_process_grows_by_what_is_counted():
    config = Qwen3Config(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        head_dim=32, vocab_size=4000,
    )  # fmt: skip
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    close(DryModel(config).training(LOSSES["sft"](), 4, 256, accumulating=False).peak, int(run.stdout))
