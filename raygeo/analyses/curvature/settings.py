"""What can be asked of curvature. Each kind of task has a model of exactly the settings that its numbers depend on."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raygeo.analyses.pairs import PairSettings
from raygeo.geometry.curvature.lanczos import fewest_vectors
from raygeo.geometry.curvature.spaces import Space
from raygeo.settings import Settings

Product = Literal["exact", "by_layer", "gradient_difference"]


def _unchanged(default: Any) -> Callable[[Any], bool]:
    """Leaves an option out of what is hashed where it has its default, so that units made before it are found."""
    return lambda value: value == default


class PlaceSettings(Settings):
    """Of what, and where, curvature is taken."""

    spaces: tuple[Space, ...] = Field(("delta", "span"), min_length=1)
    """``delta``: merged weights that any run's delta touches; ``all``: all weights; ``attention``: merged q, k, v, o;
    ``blocks``: each transformer block by itself; ``lora``: the factors A and B of a LoRA run, a space that depends on
    how its delta is factored and compares with no other; ``span``: the span of all deltas, where the NLL along every
    path is predicted. Figures and summaries show the first; the span only if there is no other."""
    ggn: bool = False
    """Also the generalised Gauss-Newton matrix, the positive semi-definite part of the Hessian."""


class BatchSettings(Settings):
    """How texts are batched."""

    batch_size: int = Field(8, ge=1)
    """Texts in one graph; has no effect on the numbers beyond rounding."""


class ProductSettings(BatchSettings):
    """How products are made."""

    keep_graphs: bool = True
    """Keep the graphs of all batches between products: a third faster, memory grows with the probe."""
    product: Product = Field("exact", exclude_if=_unchanged("exact"))
    """``exact``: the graph of one batch is differentiated twice, and grows with layers and the square of a text's
    length. ``by_layer``: the same, one layer's graph at a time, at about twice the time; for long texts and large
    students. ``gradient_difference``: two gradients a product, by layer and with the attention that the model chooses,
    so nothing is quadratic in a text's length; its error is measured and shown. It gives no ``ggn``."""
    vectors_on: Literal["cpu"] | None = Field(None, exclude_if=_unchanged(None))
    """Hold the vectors of a search, as large as the space each, in the memory of the host; by default they are held
    beside the weights."""


class BlockSettings(ProductSettings):
    """How many products are made at once."""

    block_size: int = Field(1, ge=1)
    """Vectors multiplied together: the block that eigenvalues are sought from, which finds one repeated as often as
    that; the random vectors of one task; products in the span. Without ``keep_graphs`` they share their graphs."""


class RandomSettings(ProductSettings):
    """What random vectors are drawn."""

    seed: int = 0
    """Seed of the random vectors, the same for all runs."""


class PathSettings(BatchSettings):
    """The measured NLL of a path."""

    path_points: int = Field(11, ge=0)
    """Evenly spaced points of every path between runs, both ends included, where the NLL is predicted in the span and
    measured: at least 3, or 0 for none."""

    @field_validator("path_points")
    @classmethod
    def _ends_and_between(cls, points: int) -> int:
        if points in (1, 2):
            raise ValueError("a path takes at least 3 points; 0 leaves all paths out")
        return points


class SpanSettings(PathSettings, BlockSettings):
    """The whole matrix in the span of all deltas."""


class DensitySettings(RandomSettings):
    """The quadrature of the random vectors of one task."""

    slq_steps: int = Field(12, ge=1)
    """Lanczos steps for each random vector, one product each; they set how narrowly the density is resolved."""


class ExtremesSettings(RandomSettings, BlockSettings):
    """Eigenvalues at both ends, and the trace."""

    top_k: int = Field(5, ge=1)
    """Number of largest eigenvalues."""
    bottom_k: int = Field(1, ge=1)
    """Number of smallest eigenvalues."""
    max_basis: int | None = Field(None, ge=5, exclude_if=_unchanged(None))
    """Most vectors that the search for eigenvalues holds, which starts anew from the best of them (thick restarts) and
    takes more steps; by default all of ``max_steps``."""
    max_steps: int = Field(40, ge=1)
    """Most Lanczos steps for the eigenvalues, one product with ``block_size`` vectors each; 15 to 25 usually do."""
    tolerance: float = Field(1e-2, gt=0)
    """Largest residual of an eigenvalue, relative to it."""
    fp64_check: bool = True
    """Multiply the eigenvectors found once more in fp64, so that eigenvalues and their errors are free of the rounding
    of fp32. It takes twice the weights' memory, and one to two products' time for each vector; 30 and more on graphics
    cards without units for fp64, where one may do without."""
    trace_probes: int = Field(8, ge=2)
    """Random vectors for the trace outside the Krylov space of the eigenvalues, one product each."""
    slq_probes: int = Field(4, ge=0)
    """Random vectors for the density, whose errors fall with the square root of their number: at least 2, or 0 for no
    density."""

    @field_validator("slq_probes")
    @classmethod
    def _several(cls, probes: int) -> int:
        if probes == 1:
            raise ValueError("a density takes at least 2 random vectors, to know its error; 0 leaves it out")
        return probes

    @property
    def probe_blocks(self) -> list[range]:
        """The random vectors of the trace that are multiplied together: all of them; but each by itself where vectors
        are held on the host, as a product takes its vectors, and as many results, to the device.
        """
        together = self.trace_probes if self.vectors_on is None else 1
        return [range(first, first + together) for first in range(0, self.trace_probes, together)]


class CurvatureSettings(PairSettings, SpanSettings, DensitySettings, ExtremesSettings, PlaceSettings):
    """What is computed of the curvature of the probe's token-mean NLL, where, and how finely."""

    @model_validator(mode="after")
    def _possible(self) -> "CurvatureSettings":
        if self.ggn and self.product == "gradient_difference":
            raise ValueError("the GGN is no derivative of a gradient: take product: by_layer, or leave ggn out")
        least = fewest_vectors(self.top_k, self.bottom_k, self.block_size)
        if self.max_basis is not None and self.max_basis < least:
            raise ValueError(f"max_basis is {self.max_basis}; top_k, bottom_k and block_size take at least {least}")
        return self

    density_points: int = Field(256, ge=2)
    """Points of the density's grid."""
    density_width: float = Field(0.01, gt=0)
    """Least standard deviation of the density's smoothing, relative to the range of the spectrum; it is no less than
    the mean spacing of ``slq_steps`` nodes between the known eigenvalues of both ends."""
