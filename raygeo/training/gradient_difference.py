"""Hessian-vector products of a student sharded by ZeRO-3, from differences of gradients.

A product needs two gradients and no second derivative, so it works for whatever model DeepSpeed can train. Vectors are
sharded as the weights are: each rank holds its partition of every parameter, and inner products are sums over ranks.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from raygeo.errors import StudentError, WorkloadError
from raygeo.store import AnyPath
from raygeo.students.encoding import Batch
from raygeo.students.likelihood import Likelihood
from raygeo.students.loading import load_student
from raygeo.training.engine import deepspeed_config, import_deepspeed, no_dropout, rank, world
from raygeo.training.settings import TrainingSettings

SCALES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Lengths of a step that are tried, as shares of the length of the weights."""


def build_gradient_engine(student: AnyPath, *, offload: bool = False) -> Any:
    """Load the student in fp32, partitioned by ZeRO-3 while loading, with an optimiser that is never stepped.

    No parameter stays whole on a rank between passes. Needs an initialised process group.
    """
    from transformers.integrations import HfDeepSpeedConfig

    deepspeed = import_deepspeed()
    config = deepspeed_config(TrainingSettings(precision="fp32", zero_stage=3, micro_batch=1, offload=offload), 1)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    alive = HfDeepSpeedConfig(config)  # noqa: F841 (weights are partitioned while loading as long as it lives)
    model, _ = load_student(student)
    no_dropout(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine, *_ = deepspeed.initialize(model=Likelihood(model), optimizer=optimizer, config=config)
    return engine


@dataclass(frozen=True)
class Scan:
    """A product [m] with the length of step it was made with, as a share of the length of the weights.

    ``error`` is the largest distance between the products of three neighbouring lengths, the chosen one in their
    middle, over the length of the product; ``distances`` are those of all neighbouring pairs, in the order of the
    lengths: they fall while rounding rules and rise where the third derivative does.
    """

    product: Tensor
    scale: float
    error: float
    distances: list[float]


class GradientDifference:
    """Products H v = [g(w + e v) - g(w - e v)] / 2e with the Hessian of the token-mean NLL of ``batches``, in fp32.

    g is taken through the engine, over all batches and ranks, and divided once by the number of completion tokens. The
    truncation error is e^2 / 6 times a third derivative of g along v, the rounding error about that of g over e, hence
    the choice of e by ``scan``. A vector is the concatenation of this rank's partitions of the parameters, [m] fp32,
    whose padding is zero. All methods are collective; weights come back bit for bit.

    Args:
        engine: what ``build_gradient_engine`` returned.
        batches: the whole probe, the same on every rank.
        parameters: names as in ``named_parameters()`` of the student; all by default.

    Attributes: ``n``, the number of scalars over all ranks; ``tokens``, the number of completion tokens; ``scale``, the
    length of a step of ``matvec`` as a share of that of the weights (of ``parameters``).

    Raises:
        StudentError: the engine is not ZeRO-3 in fp32, keeps parameters whole, or lacks a parameter.
    """

    def __init__(self, engine: Any, batches: Seq[Batch], parameters: Seq[str] | None = None, scale: float = 1e-3):
        own = {name: p for name, p in engine.module.student.named_parameters() if p.requires_grad}
        names = list(own) if parameters is None else list(dict.fromkeys(parameters))
        missing = [name for name in names if name not in own]
        if missing or not names:
            raise StudentError(f"the model has no parameters {missing[:3]} that are trained; name some of its own.")
        self.parameters = {name: own[name] for name in names}
        for name, p in self.parameters.items():
            if not hasattr(p, "ds_tensor") or p.ds_persist or p.ds_tensor.dtype != torch.float32:
                raise StudentError(f"{name} is not an fp32 partition; make the engine with build_gradient_engine.")
        self.engine = engine
        self.scale = scale
        self.n = sum(p.ds_numel for p in self.parameters.values())
        self.tokens = sum(batch.tokens for batch in batches)
        self._batches = batches
        self._sizes = [p.ds_tensor.numel() for p in self.parameters.values()]
        self._mask = self.shard(torch.ones(p.ds_shape) for p in self.parameters.values())

    def shard(self, tensors: Iterable[Tensor]) -> Tensor:
        """Take this rank's part [m] of a vector given as a tensor for each parameter, each made when it is needed."""
        parts = []
        for p, value, size in zip(self.parameters.values(), tensors, self._sizes, strict=True):
            mine = value.flatten()[rank() * size : (rank() + 1) * size].to(p.ds_tensor.device, torch.float32)
            parts.append(torch.nn.functional.pad(mine, (0, size - len(mine))))
        return torch.cat(parts)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Take this rank's part [m] of a vector given as tensors named as parameters; those without a tensor are zero.

        Raises:
            StudentError: a tensor belongs to no parameter, or has another shape.
        """
        for name, value in tensors.items():
            if name not in self.parameters or tuple(value.shape) != tuple(self.parameters[name].ds_shape):
                raise StudentError(
                    f"{name} {list(value.shape)} fits no parameter of this operator; add it, or mend it."
                )
        return self.shard(
            tensors[name] if name in tensors else torch.zeros(p.ds_shape) for name, p in self.parameters.items()
        )

    def rademacher(self, seed: int) -> Tensor:
        """Random signs [m], the same vector on any number of ranks."""
        generator = torch.Generator().manual_seed(seed)
        return self.shard(
            2.0 * torch.randint(0, 2, tuple(p.ds_shape), generator=generator) - 1 for p in self.parameters.values()
        )

    def dots(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products of ``rows`` [j, m] with ``vector`` [m] over all ranks: [j] fp64."""
        total = torch.stack([(row.double() * vector).sum() for row in rows])
        if dist.is_initialized():
            dist.all_reduce(total)
        return total

    def norm(self, vector: Tensor) -> float:
        """Length of a vector [m] over all ranks."""
        return float(self.dots(vector[None], vector).sqrt())

    def gradient(self) -> Tensor:
        """Gradient of the scalar at the engine's weights: [m].

        Raises:
            WorkloadError: it is not finite.
        """
        from deepspeed.utils import safe_get_local_grad

        self.engine.train()
        self.engine.optimizer.zero_grad()
        for index in range(0, len(self._batches), world()):
            place = index + rank()
            batch = self._batches[min(place, len(self._batches) - 1)].to(self.engine.device)
            share = float(place < len(self._batches))  # a rank without a batch takes part with weight zero
            loss = -self.engine(batch)["logprobs"].sum() * (share / self.tokens)
            self.engine.backward(loss * world(), scale_wrt_gas=False)
        parts = [safe_get_local_grad(p).flatten() for p in self.parameters.values()]
        gradient = torch.where(self._mask > 0, torch.cat(parts), 0.0)  # DeepSpeed leaves padding as it was
        if not np.isfinite(self.norm(gradient)):
            raise WorkloadError("the gradient of the probe's likelihood is not finite; the run diverged, leave it out.")
        return gradient

    def matvec(self, vector: Tensor) -> Tensor:
        """Product with ``vector`` [m], by steps of ``scale`` times the length of the weights: [m]."""
        return self._product(vector, self.scale)

    def scan(self, vector: Tensor, scales: Seq[float] = SCALES) -> Scan:
        """Product with ``vector`` [m] where it depends least on the length of step, and how much it does there.

        Two gradients for each of ``scales``, which ascend, at least three.
        """
        products = [self._product(vector, scale) for scale in scales]
        near = [self.norm(b - a) for a, b in pairwise(products)]
        wide = [self.norm(b - a) for a, b in zip(products, products[2:], strict=False)]
        spreads = [max(near[i], near[i + 1], wide[i]) for i in range(len(wide))]
        best = int(np.argmin(spreads))
        product = products[best + 1]
        length = max(self.norm(product), torch.finfo(torch.float32).tiny)
        return Scan(product, scales[best + 1], spreads[best] / length, [distance / length for distance in near])

    @torch.no_grad()
    def _product(self, vector: Tensor, scale: float) -> Tensor:
        kept = [p.ds_tensor.clone() for p in self.parameters.values()]
        weights = torch.cat([part.flatten() for part in kept]) * self._mask
        step = scale * self.norm(weights) / self.norm(vector)
        try:
            ends = [self._gradient_at(kept, vector, sign * step) for sign in (1.0, -1.0)]
        finally:
            self._write(kept)
        return (ends[0] - ends[1]) / (2 * step)

    def _gradient_at(self, kept: list[Tensor], vector: Tensor, step: float) -> Tensor:
        self._write([part + step * v.view_as(part) for part, v in zip(kept, vector.split(self._sizes), strict=True)])
        with torch.enable_grad():
            return self.gradient()

    def _write(self, parts: list[Tensor]) -> None:
        self.engine.optimizer.parameter_offload.partition_all_parameters()  # forget whole copies of the old weights
        for p, part in zip(self.parameters.values(), parts, strict=True):
            p.ds_tensor.data.copy_(part)


def top_eigenvalues(
    operator: GradientDifference, k: int, *, max_steps: int, tolerance: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest eigenvalues, in descending order, and their residuals, [k] fp64 each.

    Lanczos with full re-orthogonalisation, done twice, on sharded vectors, until each Ritz residual is at most
    ``tolerance`` times its eigenvalue or after ``max_steps`` products (Golub & Van Loan, Matrix Computations, section
    10.1). Each rank holds its partition of the basis. Along sharp directions a shorter step is right than along random
    ones; so values and residuals are taken at last from a ``scan`` along each Ritz vector y: y' H y, and
    ||H y - (y' H y) y|| plus what H y depends on the step. Within it of each value lies an eigenvalue.
    """
    start = operator.rademacher(seed)
    basis = (start / operator.norm(start))[None]
    alphas: list[float] = []
    betas: list[float] = []
    while True:
        image = operator.matvec(basis[-1])
        alphas.append(float(operator.dots(basis[-1:], image)))
        for _ in range(2):
            image = image - (operator.dots(basis, image).to(basis.dtype)[:, None] * basis).sum(0)
        betas.append(operator.norm(image))
        values, coefficients = eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
        residuals = betas[-1] * np.abs(coefficients[-1])
        converged = len(values) >= k and bool((residuals[-k:] <= tolerance * np.abs(values[-k:])).all())
        exhausted = betas[-1] <= 100 * torch.finfo(basis.dtype).eps * np.abs(values).max()
        if converged or exhausted or len(alphas) >= min(max_steps, operator.n):
            break
        basis = torch.cat([basis, (image / betas[-1])[None]])
    found = []
    for combination in coefficients.T[: -k - 1 : -1]:
        vector = torch.as_tensor(combination.copy()).to(basis) @ basis
        scan = operator.scan(vector)
        value = float(operator.dots(vector[None], scan.product))
        rest = operator.norm(scan.product - value * vector)
        found.append((value, rest + scan.error * operator.norm(scan.product)))
    found.sort(reverse=True)
    return np.array([value for value, _ in found]), np.array([residual for _, residual in found])
