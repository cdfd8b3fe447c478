"""What a study of one student asks of one card, in steps that are each taken in a process of its own
(``benchmarks.gpu``).
"""

import math
import os
import time
import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.decoder import QWEN3_4B, TINY, Decoder
from raygeo.data.probes import Probe, nll
from raygeo.data.tokens import RolloutTokens
from raygeo.footprint.devices import DEVICES, Device
from raygeo.footprint.model import DryModel
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.geometry.curvature import long
from raygeo.geometry.curvature.difference_operator import DifferenceHessian
from raygeo.geometry.curvature.draws import Layout, random_signs
from raygeo.geometry.curvature.gradient_difference import GradientDifference
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues, fewest_vectors
from raygeo.geometry.curvature.landscape import ModelLandscape
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.spaces import spaces_of_weights
from raygeo.losses import SFT
from raygeo.models.batches import Batch, TokenSequence
from raygeo.models.delta import Dense, Entry, LowRank, spans
from raygeo.models.lora import LoraSettings
from raygeo.models.mix import MixedWeights
from raygeo.pipeline.budget.stages import training_memory
from raygeo.store import Store
from raygeo.tables import to_arrow
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.base import ResidentBase
from raygeo.training.data import open_data
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec, TrainingSettings

BEGUN, FOUND, ENDED = "begun", "found", "ended"
PACKAGES = ("torch", "transformers", "deepspeed", "peft", "flash-attn")


@dataclass(frozen=True)
class Size:
    """How large everything is.

    ``row`` is the length of training and evaluation rows, ``packed`` the tokens of a micro-batch where attention takes
    rows' bounds, ``short`` a length at which exact products and differences both fit, ``spectrum`` that of the
    spectrum's text; ``decoded`` the tokens written behind prompts of ``prompt`` tokens.
    """

    decoder: Decoder
    device: str
    r: int = 32
    rows: int = 8
    row: int = 4096
    packed: int = 16_384
    steps: int = 100
    prompt: int = 256
    decoded: int = 48
    batches: tuple[int, ...] = (1, 16, 64, 256)
    forward_rows: int = 4
    short: int = 1024
    spectrum: int = 512
    max_basis: int = 10
    max_steps: int = 60


FULL = Size(QWEN3_4B, "cuda")
SMALL = Size(
    TINY, "cpu", r=4, rows=4, row=24, packed=48, steps=4, prompt=6, decoded=4, batches=(1, 4), forward_rows=2,
    short=16, spectrum=12, max_steps=16,
)  # fmt: skip


class Figures:
    """Prints every figure as soon as it is known, and hands it to the process that started this one."""

    def __init__(self, pipe: Connection, limit: float):
        self._pipe, self._until = pipe, time.monotonic() + limit

    def __call__(self, name: str, value: Any, unit: str = "") -> None:
        """Tell one."""
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"  {name}: {shown} {unit}".rstrip(), flush=True)
        self._pipe.send((FOUND, name, value))

    @property
    def left(self) -> float:
        """Seconds that the step still has."""
        return self._until - time.monotonic()


# -- steps --------------------------------------------------------------------------------------------------------


def machine(size: Size, figures: Figures) -> None:
    """What is measured on."""
    if size.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        figures("card", card.name)
        figures("memory_bytes", card.total_memory)
        figures("cuda", torch.version.cuda)
        known = _known_card(card.name)
        figures("peak_bf16_flops", None if known is None else known.flops["bf16"], "a second, by its data sheet")
    else:
        figures("card", None)
    for package in PACKAGES:
        figures(package, _version(package))


def training(size: Size, figures: Figures) -> None:
    """LoRA on a bf16 base, checkpointed, rows packed, through raygeo's engine and loop in a process group of one."""
    from raygeo.training.engine import build_engine, import_deepspeed
    from raygeo.training.loop import Hooks, TrainingState, optimise

    cuda, decoder = size.device == "cuda", size.decoder
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import_deepspeed().init_distributed("nccl" if cuda else "gloo", verbose=False)
    attention = _attention(cuda)
    packed = size.packed if "flash" in attention else size.row
    figures("attention", attention)
    settings = TrainingSettings(
        lr=1e-5, steps=size.steps, batch_size=size.rows, micro_batch_size=size.rows, micro_batch_tokens=packed,
        padding_free=True, gradient_checkpointing=True, attn_implementation=attention, precision="bf16",
        lora=LoraSettings(r=size.r, lora_alpha=2 * size.r), gpus=int(cuda), snapshots=0,
    )  # fmt: skip
    spec = RunSpec(name="sft", loss=SFT(), training=settings)
    shape = DryModel(decoder.config(), torch.bfloat16, settings.lora, checkpointing=True, attention=attention)
    planned = training_memory(shape, spec.loss, settings, size.row, cuda)
    for what, held in planned.items():
        figures(f"planned_{what}", held, "bytes")
    figures("planned_bytes", sum(planned.values()), "bytes")
    with TemporaryDirectory() as folder:
        inputs, store = _rollouts(Path(folder), size)
        data = open_data(spec.loss, store, inputs)
        engine, _ = build_engine(spec, len(data.examples), inputs.student, Built(size, attention))
        began: list[float] = []

        def command() -> Any:
            """Note when a step begins; the last one before the time is over is the last."""
            began.append(time.perf_counter())
            if cuda and len(began) == 2:
                torch.cuda.reset_peak_memory_stats()  # of whole steps, AdamW's moments being there
            longest = max(np.diff(began), default=0.0)
            return "stop" if figures.left < 2 * longest + 5 else None

        hooks = Hooks(lambda step, metrics: None, lambda state: None, lambda step, last: None, command)
        state = optimise(engine, spec, data, TrainingState(), hooks)
        began.append(time.perf_counter())
    seconds = np.diff(began)[1:]  # the first step makes kernels and moments
    losses = [row["value"] for row in state.curves if row["metric"] == "objective"]
    if not len(seconds) or not all(map(math.isfinite, losses)):
        raise RuntimeError(f"{len(losses)} steps were taken in the time there was, with objectives {losses}")
    lengths = data.tokens.lengths.tolist()
    predicted = int(data.tokens.completion_lengths.sum())
    step = float(median(seconds))
    figures("steps", len(losses))
    figures("tokens_a_step", sum(lengths))
    figures("seconds_a_step", step)
    figures("objective_first", losses[0], "nats")
    figures("objective_last", losses[-1], "nats")
    figures("tokens_a_second", sum(lengths) / step)
    flops = decoder.lora_training(lengths, predicted, size.r)
    _rate(figures, "of 4N and 3 x attention: forward, and gradients of activations", "", flops / step)
    flops = decoder.full_training(lengths, predicted)
    _rate(figures, "of 6N and 3 x attention, as if every weight were trained", "_6n", flops / step)
    if cuda:
        peak = torch.cuda.max_memory_allocated()
        figures("peak_bytes", peak, "bytes")
        figures("peak_over_planned", peak / sum(planned.values()))


def evaluation(size: Size, figures: Figures) -> None:
    """Greedy decoding by the local engine, and the likelihood of given texts, in bf16."""
    model, decoder = _student(size, torch.bfloat16), size.decoder
    probe = _probe(size, [size.row] * size.forward_rows, 1)
    for rows in sorted({1, size.forward_rows}):
        batches = [batch.to(size.device) for batch in probe.batches(0, rows)]
        nll(model, batches)
        _, seconds = _timed(size, partial(nll, model, batches))
        lengths = [len(text) for text in probe.sequences]
        figures(f"nll_tokens_a_second_{rows}", sum(lengths) / seconds)
        _rate(figures, "of 2N and attention", f"_nll_{rows}", decoder.forward(lengths, probe.tokens) / seconds)
    engine = LocalEngine(model, PlainRenderer(word_tokenizer()), max(size.batches))
    engine.generate(Request(_prompts(size, 1), 2))
    for rows in size.batches:
        if figures.left < 20 and size.device == "cuda":
            figures(f"decoded_tokens_a_second_{rows}", None)
            continue
        prompts = _prompts(size, rows)
        _, first = _timed(size, partial(engine.generate, Request(prompts, 1)))
        written, whole = _timed(size, partial(engine.generate, Request(prompts, size.decoded)))
        tokens = sum(completions[0].tokens for completions in written) - rows
        figures(f"decoded_tokens_a_second_{rows}", tokens / max(whole - first, 1e-9))
        figures(f"first_tokens_after_seconds_{rows}", first, "s")


def products(size: Size, figures: Figures) -> None:
    """Hessian-vector products over the attention weights, in gradients, and what differences of gradients are off by.

    In fp32, along one random vector. A gradient is taken a layer at a time, as products are.
    """
    model = _student(size, torch.float32)
    names = _attention_weights(model)
    batches = _probe(size, [size.short], 2).batches(0, 1)
    scale = DifferenceHessian(model, batches, names).scale
    figures("difference_scale", scale, "of the length of the weights, by ten gradients at the shorter length")
    for length in (size.short, size.row):
        batches = _probe(size, [length], 2).batches(0, 1)
        exact = Hessian(model, batches, names, keep_graphs=False, by_layer=True)
        direction = random_signs(exact, "product", range(1))
        figures("weights_in_space", exact.n)
        _, gradient = _timed(size, exact.gradient)
        figures(f"gradient_seconds_{length}", gradient, "s")
        if figures.left < 10 * gradient:  # up to 5 for the product, 2 for differences
            figures(f"by_layer_in_gradients_{length}", None, "(no time was left)")
            break
        found, seconds = _timed(size, partial(exact.matmat, direction))
        figures(f"by_layer_in_gradients_{length}", seconds / gradient)
        _peak(size, figures, f"by_layer_peak_bytes_{length}")
        difference = GradientDifference(ModelLandscape(model, batches, names, by_layer=True), scale)
        approximate, seconds = _timed(size, partial(difference.matvec, direction[:, 0]))
        figures(f"difference_in_gradients_{length}", seconds / gradient)
        _peak(size, figures, f"difference_peak_bytes_{length}")
        apart = long.norm(approximate - found[:, 0]) / long.norm(found[:, 0])
        figures(f"difference_error_{length}", apart, "of the exact product's length")
        del found, approximate, exact, difference, direction


def exactness(size: Size, figures: Figures) -> None:
    """A student in bf16 with deltas added in fp32 beside one in fp32, on the card: weights, logits, and restoring."""
    narrow = _student(size, torch.bfloat16)
    wide = deepcopy(narrow).float()
    batch = _probe(size, [size.short], 3).batches(0, 1)[0].to(size.device)
    base = {"narrow": _logits(narrow, batch), "wide": _logits(wide, batch)}
    figures("logits_error_base", _apart(base["narrow"], base["wide"]), "of bf16 against fp32, no delta")
    for kind, delta in (("lora", _lora(size, narrow)), ("full", _full_delta(size, narrow))):
        weights, exact = MixedWeights(narrow, delta), MixedWeights(wide, delta)
        own = dict(narrow.named_parameters())
        before = {name: own[name].detach().clone() for name in delta}
        with weights.mixed([(1.0, delta)]), exact.mixed([(1.0, delta)]):
            figures(f"weights_error_{kind}_fp32", _weights_error(wide, before, delta), "of |w| + |delta|, against fp64")
            if kind == "full":  # those of LoRA are applied beside their layers, whose weights stay
                figures("weights_error_full_bf16", _weights_error(narrow, before, delta), "of the same; bound 1/256")
            moved = {"narrow": _logits(narrow, batch), "wide": _logits(wide, batch)}
        figures(f"logits_error_{kind}", _apart(moved["narrow"], moved["wide"]), "of bf16 against fp32, with the delta")
        change = {name: moved[name] - base[name] for name in moved}
        figures(f"change_error_{kind}", _apart(change["narrow"], change["wide"]), "of what the delta changes of logits")
        whole = all(torch.equal(own[name], before[name]) for name in delta)
        figures(f"restored_{kind}", whole and torch.equal(_logits(narrow, batch), base["narrow"]), "to the last bit")
        del weights, exact, before


def spectrum(size: Size, figures: Figures) -> None:
    """The five largest eigenvalues over the attention weights by Lanczos with a bounded basis, products by layer."""
    k, bottom = 5, 1
    model = _student(size, torch.float32)
    batches = _probe(size, [size.spectrum], 4).batches(0, 1)
    operator = Hessian(model, batches, _attention_weights(model), keep_graphs=False, by_layer=True)
    _timed(size, lambda: operator.matmat(random_signs(operator, "warm", range(1))))
    _, product = _timed(size, lambda: operator.matmat(random_signs(operator, "warm", range(1))))
    figures("weights_in_space", operator.n)
    figures("product_seconds", product, "s")
    basis = max(size.max_basis, fewest_vectors(k, bottom, 1))
    held = 4 * operator.n * (basis + k + bottom)
    place = size.device
    if size.device == "cuda":
        torch.cuda.empty_cache()
    if size.device == "cuda" and held > 0.95 * torch.cuda.mem_get_info()[0]:
        place = "cpu"
    figures("vectors_on", place)
    figures("vectors_bytes", held, "bytes")
    start = random_signs(Layout(operator.n, operator.dtype, torch.device(place)), "lanczos", range(1))
    rows = start.T.expand(basis, -1)
    _, sums = _timed(size, lambda: long.inner(rows, start.T))  # a step takes four passes like this one over the basis
    steps = max(k + bottom, min(size.max_steps, int((figures.left - 10) / (product + 4 * sums))))
    figures("most_steps", steps)

    def matmat(vectors: Tensor) -> Tensor:
        return operator.matmat(vectors.to(operator.device)).to(vectors.device)

    found, seconds = _timed(
        size,
        lambda: extreme_eigenvalues(matmat, start, k, bottom=bottom, max_steps=steps, max_basis=basis),
    )
    figures("seconds", seconds, "s")
    figures("products", found.products)
    figures("converged", found.converged)
    figures("top", found.top.tolist())
    figures("residuals", found.top_residuals.tolist())
    _peak(size, figures, "peak_bytes")


Step = Callable[[Size, Figures], None]
STEPS: dict[str, tuple[Step, int]] = {
    "machine": (machine, 20),
    "training": (training, 120),
    "evaluation": (evaluation, 80),
    "products": (products, 100),
    "exactness": (exactness, 50),
    "spectrum": (spectrum, 100),
}
"""Steps, and the seconds that each may take: less than eight minutes together."""


def work(step: Step, size: Size, limit: float, pipe: Connection) -> None:
    """Take one step in this process: ``pipe`` is told that it has begun, its figures, and its error or None."""
    error = None
    pipe.send((BEGUN, "", None))
    try:
        step(size, Figures(pipe, limit))
    except Exception as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}".partition("\n")[0]
    pipe.send((ENDED, "", error))
    pipe.close()


# -- what steps are made of ---------------------------------------------------------------------------------------


class Built(ResidentBase):
    """A base that is made where it is needed instead of being loaded."""

    def __init__(self, size: Size, attention: str):
        super().__init__()
        self._size, self._attention = size, attention

    def load(self, student: Any, dtype: torch.dtype, attention: str | None, *, stays: bool) -> Any:
        """Build it."""
        return _student(self._size, dtype, self._attention)


def _student(size: Size, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    with torch.device(size.device):
        return AutoModelForCausalLM.from_config(
            size.decoder.config(), dtype=dtype, attn_implementation=attention
        ).eval()


def _attention(cuda: bool) -> str:
    """Flash attention where it is installed and this card has it, else SDPA."""
    if not cuda:
        return "sdpa"
    if find_spec("flash_attn_interface") is not None and torch.cuda.get_device_capability()[0] == 9:
        return "flash_attention_3"
    return "sdpa" if find_spec("flash_attn") is None else "flash_attention_2"


def _texts(size: Size, lengths: list[int], seed: int) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    return [TokenSequence(rng.integers(3, size.decoder.vocab_size, n), max(1, n // 16)) for n in lengths]


def _probe(size: Size, lengths: list[int], seed: int) -> Probe:
    return Probe("random", _texts(size, lengths, seed))


def _prompts(size: Size, rows: int) -> list[str]:
    """Different prompts of ``size.prompt`` words that the word problems' tokenizer knows."""
    words = sorted(word for word in word_tokenizer().get_vocab() if word.isalpha())
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(words, size.prompt)) for _ in range(rows)]


def _rollouts(folder: Path, size: Size) -> tuple[RunInputs, Store]:
    """Random rollouts on disk, as a study's workers find them."""
    tokens = folder / "tokens"
    tokens.mkdir()
    RolloutTokens.of(_texts(size, [size.row] * size.rows, 0)).save(tokens)
    row = {
        "prompt": "", "completion": "", "gold": "", "sample": 0, "reward": 1.0, "correct": True, "truncated": False,
        "source": "random", "split": "train",
    }  # fmt: skip
    store = Store(folder / "store")
    rows = [row | {"prompt_id": str(number)} for number in range(size.rows)]
    store.write_unit("rollouts", {"rollouts": to_arrow("rollouts", rows)})
    return RunInputs("rollouts", str(folder), "student", str(tokens), 0), store


def _attention_weights(model: Any) -> list[str]:
    return spaces_of_weights("attention", [name for name, _ in model.named_parameters()], [])["attention"]


def _lora(size: Size, model: Any) -> dict[str, Entry]:
    """Factors on the attention weights whose products are about a hundredth of them in size."""
    generator = torch.Generator(size.device).manual_seed(1)
    own = dict(model.named_parameters())

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=size.device)

    found: dict[str, Entry] = {}
    for name in _attention_weights(model):
        out, into = own[name].shape
        found[name] = LowRank(1e-3 * draw(out, size.r), draw(size.r, into) / math.sqrt(into), 2.0)
    return found


def _full_delta(size: Size, model: Any) -> dict[str, Entry]:
    """A difference of every weight, a hundredth of a matrix's in size."""
    generator = torch.Generator(size.device).manual_seed(2)
    return {
        name: Dense(2e-4 * torch.randn(value.shape, generator=generator, device=size.device))
        for name, value in model.named_parameters()
    }


@torch.no_grad()
def _weights_error(model: Any, before: dict[str, Tensor], delta: dict[str, Entry]) -> float:
    """The largest error of a weight against base w and delta d added in fp64, over |w| + |d|."""
    own, worst = dict(model.named_parameters()), 0.0
    for name, base in before.items():
        entry = delta[name]
        whole = entry.dense(torch.float64) if isinstance(entry, LowRank) else entry.value
        for rows in spans(entry.shape, 1 << 24):
            w, d = base[rows].double(), whole[rows].double()
            apart = (own[name][rows].double() - (w + d)).abs() / (w.abs() + d.abs()).clamp(min=1e-30)
            worst = max(worst, float(apart.max()))
    return worst


@torch.no_grad()
def _logits(model: Any, batch: Batch) -> Tensor:
    """Logits of the last 64 tokens: [64, V] fp32."""
    return model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=64).logits[0].float()


def _apart(found: Tensor, exact: Tensor) -> float:
    """The largest difference over the largest size."""
    return float((found - exact).abs().max() / exact.abs().max())


def _timed(size: Size, job: Callable[[], Any]) -> tuple[Any, float]:
    """What ``job`` returns, and its seconds; memory peaks are counted anew."""
    if size.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    found = job()
    if size.device == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - began


def _peak(size: Size, figures: Figures, name: str) -> None:
    if size.device == "cuda":
        figures(name, torch.cuda.max_memory_allocated(), "bytes")


def _rate(figures: Figures, what: str, suffix: str, rate: float) -> None:
    """Operations a second, and their share of the card's peak in bf16 where it is known."""
    figures(f"tflops_a_second{suffix}", rate / 1e12, what)
    if torch.cuda.is_available() and (card := _known_card(torch.cuda.get_device_name())) is not None:
        figures(f"mfu{suffix}", rate / card.flops["bf16"], what)


def _known_card(name: str) -> Device | None:
    """The card whose peak is known by a name like this."""
    words = name.lower().replace(" ", "")
    return next((device for known, device in DEVICES.items() if known.partition("-")[0] in words), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
