"""What the analysis needs, before it is run."""

from raygeo.analyses.subspace_locking.workload import SubspaceLockingSettings
from raygeo.footprint.matrices import matrices, weights_needed
from raygeo.footprint.need import Need, Scale

_BLOCK = 1 << 22


def cost(settings: SubspaceLockingSettings, scale: Scale) -> list[Need]:
    """Decomposes every chosen matrix of every kept delta: the factors of LoRA, or whole matrices.

    Held are six of each factor, or a matrix of which the shorter side is at most 512 with its vectors, of others the
    Gram matrix of that side, its eigenvectors and a block of the matrix.
    """
    shapes = [shape for name, shape in matrices(scale).items() if settings.chooses(name)]
    held = {
        "a delta's factors or Gram matrix, and vectors": max((_values(s, scale.rank) * 8 for s in shapes), default=0)
    }
    kept = scale.snapshots + 1
    return [
        weights_needed(
            "subspace_locking", scale, scale.trained, decompositions=kept, chosen=settings.chooses, host=held
        )
    ]


def _values(shape: tuple[int, int], rank: int | None) -> int:
    """Numbers in fp64 that one decomposition holds."""
    if rank is not None:
        return 6 * sum(shape) * rank
    short, whole = min(shape), shape[0] * shape[1]
    return 4 * whole if short <= 512 else 3 * short * short + 2 * min(whole, _BLOCK)
