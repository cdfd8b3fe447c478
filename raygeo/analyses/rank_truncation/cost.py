"""What the analysis needs, before it is run."""

from dataclasses import replace

from raygeo.analyses.rank_truncation.workload import RankTruncationSettings
from raygeo.footprint.matrices import matrices
from raygeo.footprint.need import Need, Scale, Work


def cost(settings: RankTruncationSettings, scale: Scale) -> list[Need]:
    """Three passes a rank and two more, answers at every rank, base and run; and the singular directions.

    Those of a dense matrix [m, n], m >= n, take its Gram matrix, 2 m n^2 operations, and 9 n^3 for its eigenvectors
    (Golub & Van Loan, Matrix Computations, section 8.3), in fp64 on the device of the passes, counted as two of fp32
    each; those of factors hardly anything. Leading and random ones are held in the machine's memory.
    """
    ranks, most = len(settings.ranks), max(settings.ranks)
    shapes = [sorted(shape) for shape in matrices(scale).values()]
    points = 2 + 3 * ranks
    need = scale.along("rank_truncation", scale.trained, points, scale.solutions, settings, answered=2 + ranks)
    held = 2 * sum((m + n) * 4 * min(most, scale.rank or n, n) for n, m in shapes)
    need = replace(need, host={"singular and random directions": held})
    if scale.rank is not None:
        return [need]
    flops = sum(2.0 * m * n * n + 9.0 * n**3 for n, m in shapes) * scale.trained
    gram = max((3 * 8 * n * n + 2 * 8 * (m + n) * most for n, m in shapes), default=0)
    device = {**need.device, "a Gram matrix and its vectors": gram}
    return [replace(need, work=need.work + Work(2 * flops), device=device)]
