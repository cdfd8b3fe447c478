"""Geometry of deltas from LoRA factors against that of dense matrices, and CKA against a plain implementation."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from raygeo.geometry.representation.cka import align
from raygeo.geometry.representation.kernels import gram
from raygeo.geometry.weights import linalg
from raygeo.geometry.weights.subspaces import angles_between, leading_subspaces
from raygeo.models.delta import LowRank

QWEN3_4B_ATTENTION = {"q_proj": (4096, 2560), "k_proj": (1024, 2560), "v_proj": (1024, 2560), "o_proj": (2560, 4096)}
LAYERS = 36


@dataclass(frozen=True)
class Deltas:
    """Runs with LoRA of ``rank`` on ``layers`` times ``shapes``; ``angles`` principal angles are found of all pairs."""

    shapes: dict[str, tuple[int, int]]
    layers: int = LAYERS
    runs: int = 7
    rank: int = 32
    angles: int = 16


QWEN3_4B = Deltas(QWEN3_4B_ATTENTION)
Found = dict[str, np.ndarray]


def clocks(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, CPU seconds and result of ``work``."""
    began = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - began[0], time.process_time() - began[1], result


def factored(entries: list[LowRank], k: int) -> Found:
    """Inner products, singular values and principal angles of all pairs, by raygeo."""
    spaces = [leading_subspaces(entry, k) for entry in entries]
    return {
        "gram": linalg.gram(entries).numpy(),
        "singular_values": np.stack([linalg.singular_values(entry).numpy() for entry in entries]),
        "angles": np.stack([
            angles_between(a[side].basis, b[side].basis) for a, b in combinations(spaces, 2) for side in a
        ]),
    }  # fmt: skip


def dense(entries: list[LowRank], k: int, rank: int) -> Found:
    """The same from matrices that are multiplied out, as one would write it."""
    matrices = [entry.dense() for entry in entries]
    flat = torch.stack([matrix.flatten() for matrix in matrices])
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    bases = [{"left": u[:, :k], "right": vh[:k].T} for u, _, vh in parts]
    angles = []
    for a, b in combinations(bases, 2):
        for side in a:
            cosines = torch.linalg.svdvals(a[side].T @ b[side]).clamp(max=1.0)
            angles.append(torch.rad2deg(torch.arccos(cosines)))
    return {
        "gram": (flat @ flat.T).double().numpy(),
        "singular_values": torch.stack([s[:rank] for _, s, _ in parts]).double().numpy(),
        "angles": torch.stack(angles).double().numpy(),
    }


def compare_deltas(case: Deltas, rounds: int) -> dict[str, Any]:
    """Time all modules factored, and one module of each size dense, which is charged once for every module of it.

    A matrix and its transpose count as one size: their singular value decompositions take equal work.
    """
    modules = [shape for _ in range(case.layers) for shape in case.shapes.values()]
    given = {shape: _entries(shape, case) for shape in modules}
    kinds = Counter((min(shape), max(shape)) for shape in modules)
    timed = {kind: next(shape for shape in given if sorted(shape) == list(kind)) for kind in kinds}
    turns, expected = [], {}
    for _ in range(rounds):
        ours = clocks(lambda: [factored(given[shape], case.angles) for shape in modules])
        plain = [0.0, 0.0]
        for kind, count in kinds.items():
            wall, cpu, expected[kind] = clocks(partial(dense, given[timed[kind]], case.angles, case.rank))
            plain = [plain[0] + count * wall, plain[1] + count * cpu]
        turns.append((ours, plain))
    found = {kind: factored(given[shape], case.angles) for kind, shape in timed.items()}
    return {
        "what": f"deltas, {len(modules)} modules, r {case.rank}, {case.runs} runs",
        "dense": ", ".join(f"{a} x {b} timed, charged {kinds[a, b]} times" for a, b in kinds),
        "error": {
            name: max(
                float(np.abs(found[kind][name] - expected[kind][name]).max() / np.abs(expected[kind][name]).max())
                for kind in kinds
            )
            for name in ("gram", "singular_values", "angles")
        },
        **_ratios(turns),
    }


@dataclass(frozen=True)
class Features:
    """Features of ``runs`` models: ``layers`` times [texts, width]."""

    runs: int = 8
    layers: int = 4
    texts: int = 256
    width: int = 2560


def compare_cka(case: Features, rounds: int) -> dict[str, Any]:
    """CKA of all pairs of runs at all layers: kernels made once a run against features multiplied for each pair.

    raygeo's time includes the unbiased minibatch estimate and its interval; only the biased value is compared.
    """
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(case.layers, case.texts, case.width, generator=generator)
    features = [common + torch.randn(common.shape, generator=generator) for _ in range(case.runs)]
    halves = list(torch.arange(case.texts).chunk(4))

    def ours() -> list[float]:
        kernels = [gram(run) for run in features]
        return [found.biased or 0.0 for a, b in combinations(kernels, 2) for found in align(a, b, halves)]

    def plain() -> list[float]:
        return [linear_cka(x, y) for a, b in combinations(features, 2) for x, y in zip(a, b, strict=True)]

    turns = [(clocks(ours), clocks(plain)) for _ in range(rounds)]
    mine, theirs = (np.array(found[2]) for found in turns[-1])
    pairs = case.runs * (case.runs - 1) // 2
    return {
        "what": f"CKA, {pairs} pairs, {case.layers} layers, {case.texts} texts, width {case.width}",
        "dense": "products of features in fp64 for each pair",
        "error": {"cka": float(np.abs(mine - theirs).max())},
        **_ratios(turns),
    }


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA in feature space (Kornblith et al. 2019, equation 4) in fp64."""
    x, y = (f.double() - f.double().mean(0) for f in (x, y))
    return float((x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def _entries(shape: tuple[int, int], case: Deltas) -> list[LowRank]:
    generator = torch.Generator().manual_seed(0)
    return [
        LowRank(
            torch.randn(shape[0], case.rank, generator=generator),
            torch.randn(case.rank, shape[1], generator=generator),
            2.0,
        )
        for _ in range(case.runs)
    ]


def _ratios(turns: list[tuple[Any, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for index, clock in enumerate(("seconds", "cpu_seconds")):
        mine, theirs = [ours[index] for ours, _ in turns], [plain[index] for _, plain in turns]
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        row[clock] = {
            "raygeo": median(mine),
            "plain": median(theirs),
            "ratio": median(ratios),
            "ratio_least": min(ratios),
            "ratio_greatest": max(ratios),
        }
    return row


def table(row: dict[str, Any]) -> Table:
    """A comparison as a table for people."""
    shown = Table("what", "plain", title="geometry against plain implementations, CPU seconds")
    for name in ("raygeo", "plain", "CPU: raygeo is", "wall: raygeo is", "greatest difference"):
        shown.add_column(name, justify="right")
    cpu, wall = row["cpu_seconds"], row["seconds"]
    ratios = [f"{c['ratio']:,.1f}x [{c['ratio_least']:,.1f}, {c['ratio_greatest']:,.1f}]" for c in (cpu, wall)]
    differences = ", ".join(f"{name} {value:.0e}" for name, value in row["error"].items())
    shown.add_row(row["what"], row["dense"], f"{cpu['raygeo']:.2f}", f"{cpu['plain']:.2f}", *ratios, differences)
    return shown
