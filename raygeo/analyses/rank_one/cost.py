"""What the analysis needs, before it is run."""

from raygeo.analyses.rank_one.workload import RankOneSettings
from raygeo.footprint.matrices import matrices, weights_needed
from raygeo.footprint.need import Need, Scale

_BLOCK = 1 << 22


def cost(settings: RankOneSettings, scale: Scale) -> list[Need]:
    """Reads every kept delta, and multiplies it with every other of its run.

    Held are the factors of a matrix's kept deltas, stacked, with their inner products; or of full deltas blocks of at
    most 4 M values, all deltas together.
    """
    kept = scale.snapshots + 1
    numbers = 3 * _BLOCK
    if scale.rank is not None:
        rank = kept * scale.rank
        numbers = max((2 * sum(shape) * rank + 3 * rank * rank for shape in matrices(scale).values()), default=0)
    held = {"factors or blocks of kept deltas": numbers * 8}
    return [weights_needed("rank_one", scale, scale.trained, products=kept**2, host=held)]
