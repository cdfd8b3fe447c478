"""Products with the Hessian and its spectrum: raygeo against hessian-eigenthings, PyHessian and curvlinops.

Each competitor is used as its documentation shows, on the same student, texts and batches, all with SDPA's plain
kernel, the fastest that has a second derivative. The exact answer is written out here, in fp64 and in one piece.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.race import Competitor, Result, Turnstile, race
from raygeo.data.probes import Probe
from raygeo.geometry.curvature.draws import rademacher
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.quadrature import gauss_quadrature
from raygeo.models.batches import Batch, TokenSequence
from raygeo.toy.architecture import Architecture, build_model
from raygeo.toy.word_problems import word_tokenizer

OURS = "raygeo"
PEERS = {
    "hessian-eigenthings": "hessian_eigenthings",
    "PyHessian": "pyhessian",
    "curvlinops": "curvlinops",
}
STANDARD = Architecture()
SMALL = Architecture(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64)


@dataclass(frozen=True)
class Case:
    """A student with random weights and random texts of unlike length; ``parameters`` is the space, all if None."""

    name: str
    architecture: Architecture = STANDARD
    parameters: tuple[str, ...] | None = None
    texts: int = 16
    completions: tuple[int, int] = (4, 60)
    batch_size: int = 4
    columns: int = 8
    top_k: int = 10
    lanczos_steps: int = 60
    probes: int = 4
    probe_steps: int = 20
    vocabulary: int | None = None
    """Number of tokens; by default the word problems' 68."""
    peers: str | None = None
    """Folder to import peers from that are installed nowhere else."""


PRODUCTS = Case("products")
VOCABULARY = Case("vocabulary", vocabulary=16_384, columns=4)
SPECTRUM = Case("spectrum", SMALL, ("model.layers.0.self_attn.k_proj.weight",))


class Bench:
    """The case, built: student, batches, vectors, and the exact products in fp64."""

    def __init__(self, case: Case):
        if case.peers is not None:
            sys.path.append(case.peers)
        self.case = case
        tokenizer = word_tokenizer()
        self.model: Any = build_model(case.architecture, tokenizer, 0).eval()
        if case.vocabulary is not None:
            torch.manual_seed(0)
            self.model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
        rng = np.random.default_rng(0)
        prompts = rng.integers(8, 30, case.texts)
        lengths = np.geomspace(*case.completions, case.texts).astype(int)
        texts = [
            TokenSequence(rng.integers(3, case.vocabulary or len(tokenizer), p + c), int(p))
            for p, c in zip(prompts, lengths, strict=True)
        ]
        self.batches = Probe("bench", texts).batches(int(tokenizer.pad_token_id), case.batch_size)
        (self.whole,) = Probe("bench", texts).batches(int(tokenizer.pad_token_id), case.texts)
        own = dict(self.model.named_parameters())
        self.names = list(own) if case.parameters is None else list(case.parameters)
        for name, parameter in own.items():
            parameter.requires_grad_(name in self.names)
        self.values = [own[name] for name in self.names]
        self.n = sum(value.numel() for value in self.values)
        self.vectors = torch.randn(self.n, case.columns, generator=torch.Generator().manual_seed(0))

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector [n] as tensors shaped as the parameters."""
        parts = vector.split([value.numel() for value in self.values])
        return [part.view_as(value) for part, value in zip(parts, self.values, strict=True)]

    def exact(self, vectors: Tensor) -> Tensor:
        """The Hessian of the token mean over all texts times ``vectors`` [n, k], in fp64."""
        self.model.double()
        with sdpa_kernel(SDPBackend.MATH):
            loss = F.cross_entropy(flat_logits(self.model, self.whole), targets(self.whole).flatten())
            gradient = torch.autograd.grad(loss, self.values, create_graph=True)
        products = []
        for column in vectors.T.double():
            found = torch.autograd.grad(gradient, self.values, self.split(column), retain_graph=True)
            products.append(torch.cat([part.flatten() for part in found]))
        self.model.float()
        return torch.stack(products, 1)


def targets(batch: Batch) -> Tensor:
    """Tokens of completions, -100 elsewhere: [B, T]."""
    return torch.where(batch.mask, batch.input_ids[:, 1:], -100)


def flat_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits at every position but the last: [B T, V]."""
    return model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].flatten(0, 1)


def batch_mean(model: nn.Module, batch: Batch) -> Tensor:
    """What peers are given as the loss of a batch: the mean over its completion tokens, []."""
    return F.cross_entropy(flat_logits(model, batch), targets(batch).flatten())


class Logits(nn.Module):
    """A student as peers want it: token ids to logits [B, V, T]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Logits at every position but the last."""
        return self.model(input_ids=ids, use_cache=False).logits[:, :-1].mT


Product = Callable[[Tensor], Tensor]
"""[n, k] to [n, k]."""


def ours(bench: Bench) -> Product:
    """One retained graph a batch, for all columns and products."""
    return Hessian(bench.model, bench.batches, bench.names).matmat


def ours_without_graphs(bench: Bench) -> Product:
    """Graphs built for each block, as where memory does not hold all."""
    return Hessian(bench.model, bench.batches, bench.names, keep_graphs=False).matmat


def gradients(bench: Bench) -> Product:
    """As many gradients as columns: what a product is measured by."""
    operator = Hessian(bench.model, bench.batches, bench.names)
    return lambda vectors: torch.stack([operator.gradient() for _ in vectors.T], 1)


def eigenthings_operator(bench: Bench) -> Any:
    from hessian_eigenthings import HessianOperator

    return HessianOperator(bench.model, bench.batches, batch_mean, param_filter=lambda name, _: name in bench.names)


def eigenthings(bench: Bench) -> Product:
    operator = eigenthings_operator(bench)
    return lambda vectors: torch.stack([operator.matvec(column.contiguous()) for column in vectors.T], 1)


def pyhessian_operator(bench: Bench) -> Any:
    from pyhessian import hessian

    pairs = [(batch.input_ids, targets(batch)) for batch in bench.batches]
    return hessian(Logits(bench.model), nn.CrossEntropyLoss(), dataloader=pairs, cuda=False)


def pyhessian(bench: Bench) -> Product:
    operator = pyhessian_operator(bench)

    def product(vectors: Tensor) -> Tensor:
        found = [operator.dataloader_hv_product(bench.split(column.contiguous()))[1] for column in vectors.T]
        return torch.stack([torch.cat([part.detach().flatten() for part in parts]) for parts in found], 1)

    return product


class WrittenOutSiLU(nn.Module):
    """SiLU as forward-mode differentiation, which curvlinops uses, can take it: torch's own has no such derivative."""

    def forward(self, x: Tensor) -> Tensor:
        """X sigmoid(x)."""
        return x * torch.sigmoid(x)


def curvlinops_operator(bench: Bench) -> Any:
    from curvlinops import HessianLinearOperator

    for layer in bench.model.model.layers:
        layer.mlp.act_fn = WrittenOutSiLU()
    pairs = [(batch.input_ids, targets(batch)) for batch in bench.batches]
    model = Logits(bench.model)
    return HessianLinearOperator(model, nn.CrossEntropyLoss(), bench.values, pairs, check_deterministic=False)


def curvlinops(bench: Bench) -> Product:
    operator = curvlinops_operator(bench)
    return lambda vectors: operator @ vectors


def multiply(case: Case, make: Callable[[Bench], Product], steps: int, turnstile: Turnstile) -> dict[str, Any]:
    """Competitor: ``steps`` steps of one product with a block each; tells its error against the exact products."""
    bench = Bench(case)
    expected = bench.exact(bench.vectors)
    with sdpa_kernel(SDPBackend.MATH):
        product = make(bench)
        for _ in range(steps):
            turnstile()
            found = product(bench.vectors)
        turnstile.finish()
    error = float((found.double() - expected).norm() / expected.norm())
    return {"error": None if make is gradients else error, "parameters": bench.n}


Analysis = tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]] | None]
"""Top eigenvalues in descending order, and nodes and weights of each random vector's quadrature, where there is one."""


def our_spectrum(bench: Bench) -> Analysis:
    case, operator = bench.case, Hessian(bench.model, bench.batches, bench.names)
    generator = torch.Generator().manual_seed(0)
    start, probes = (rademacher(operator.n, k, generator) for k in (1, case.probes))
    found = extreme_eigenvalues(operator.matmat, start, case.top_k, max_steps=case.lanczos_steps, tolerance=1e-3)
    rule, _ = gauss_quadrature(operator.matmat, probes, case.probe_steps)
    return found.top, [(rule.nodes, row) for row in rule.weights]


def eigenthings_spectrum(bench: Bench) -> Analysis:
    from hessian_eigenthings import lanczos
    from hessian_eigenthings.algorithms.spectral_density import spectral_density

    case, operator = bench.case, eigenthings_operator(bench)
    top = lanczos(operator, k=case.top_k, max_iter=case.lanczos_steps, which="LA", reorthogonalize=True, seed=0)
    density = spectral_density(operator, num_runs=case.probes, lanczos_steps=case.probe_steps, seed=0)
    parts = zip(density.raw_eigenvalues.numpy(), density.raw_weights.numpy(), strict=True)
    return np.sort(top.eigenvalues.numpy())[::-1], [(x[w > 0], w[w > 0]) for x, w in parts]


def pyhessian_spectrum(bench: Bench) -> Analysis:
    """Eigenvalues of largest size, by power iteration; its density needs ``torch.eig``, which torch has no more."""
    torch.manual_seed(0)
    values, _ = pyhessian_operator(bench).eigenvalues(maxIter=100, tol=1e-3, top_n=bench.case.top_k)
    return np.sort(np.array(values))[::-1], None


def curvlinops_spectrum(bench: Bench) -> Analysis:
    """Eigenvalues by SciPy's ARPACK over its operator."""
    from scipy.sparse.linalg import eigsh

    values = eigsh(curvlinops_operator(bench).to_scipy(), k=bench.case.top_k, which="LA", tol=1e-3)[0]
    return np.sort(values)[::-1], None


def analyse(case: Case, make: Callable[[Bench], Analysis], steps: int, turnstile: Turnstile) -> dict[str, Any]:
    """Competitor: a step is a whole spectrum; tells errors against the dense Hessian's.

    ``error`` is the largest of the top eigenvalues, relative to it; ``density_error`` the mean over random vectors of
    the Wasserstein distance to the exact spectrum, over its range.
    """
    bench = Bench(case)
    exact = np.linalg.eigvalsh(bench.exact(torch.eye(bench.n)).numpy())
    with sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            turnstile()
            values, quadrature = make(bench)
        turnstile.finish()
    top = exact[::-1][: case.top_k]
    reported: dict[str, Any] = {"error": float(np.max(np.abs(values - top) / np.abs(top))), "parameters": bench.n}
    if quadrature is not None:
        distances = [wasserstein_distance(nodes, exact, u_weights=w) for nodes, w in quadrature]
        reported["density_error"] = float(np.mean(distances) / np.ptp(exact))
    return reported


_PRODUCTS = {
    OURS: ours,
    f"{OURS}, graphs not kept": ours_without_graphs,
    "gradient": gradients,
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
    "curvlinops": curvlinops,
}
_SPECTRA = {
    OURS: our_spectrum,
    "hessian-eigenthings": eigenthings_spectrum,
    "PyHessian": pyhessian_spectrum,
    "curvlinops": curvlinops_spectrum,
}


def compare(case: Case, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Race all competitors that can be imported over ``rounds`` turns of one block product, or of one spectrum.

    ``ratio`` is how many times as long as raygeo a competitor takes, in wall and in CPU time, with the least and
    greatest of the rounds.
    """
    spectrum = case.name == SPECTRUM.name
    entries: dict[str, tuple[Competitor, tuple[Any, ...]]] = {}
    for name, make in (_SPECTRA if spectrum else _PRODUCTS).items():
        if name not in PEERS or _importable(PEERS[name], case.peers):
            entries[name] = (analyse if spectrum else multiply, (case, make, rounds + 1))
    results = race(entries, rounds + 1, 1, threads, together=True)
    gradient = next((result for result in results if result.name == "gradient"), None)
    return [_row(case, result, results[0], gradient) for result in results]


def _importable(module: str, folder: str | None) -> bool:
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    return importlib.util.find_spec(module) is not None


def _row(case: Case, result: Result, first: Result, gradient: Result | None) -> dict[str, Any]:
    each = 1 if case.name == SPECTRUM.name else case.columns
    row: dict[str, Any] = {"case": case.name, "competitor": result.name, "rounds": len(result.turns)}
    for clock in ("seconds", "cpu_seconds"):
        mine, theirs = ([getattr(turn, clock) / each for turn in r.turns] for r in (first, result))
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        row[clock] = {
            "median": median(theirs),
            "ratio": median(ratios),
            "ratio_least": min(ratios),
            "ratio_greatest": max(ratios),
        }
        if gradient is not None:
            base = [getattr(turn, clock) / each for turn in gradient.turns]
            row[clock]["gradients"] = median(b / a for a, b in zip(base, theirs, strict=True))
    return row | result.reported


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for people."""
    shown = Table(title="curvature: seconds for a product in a block, or for a spectrum; times raygeo's")
    for name in (
        "case",
        "competitor",
        "CPU s",
        "CPU: times raygeo",
        "wall: times raygeo",
        "gradients",
        "error",
        "density",
        "MB",
    ):
        shown.add_column(name, justify="left" if name in ("case", "competitor") else "right")
    for row in rows:
        wall, cpu = row["seconds"], row["cpu_seconds"]
        ratios = [f"{c['ratio']:.2f}x [{c['ratio_least']:.2f}, {c['ratio_greatest']:.2f}]" for c in (cpu, wall)]
        numbers = [row.get(name) for name in ("error", "density_error")]
        shown.add_row(
            row["case"], row["competitor"], f"{cpu['median']:.3f}", *ratios,
            f"{cpu['gradients']:.2f}" if "gradients" in cpu else "",
            *("" if number is None else f"{number:.1e}" for number in numbers), f"{row['peak_memory_mb']:,.0f}",
        )  # fmt: skip
    return shown
