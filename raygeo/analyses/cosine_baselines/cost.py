"""What the analysis needs, before it is run."""

from raygeo.analyses.cosine_baselines.workload import CosineBaselines, CosineBaselineSettings
from raygeo.footprint.need import Need, Scale, Work


def cost(settings: CosineBaselineSettings, scale: Scale) -> list[Need]:
    """Tests that permute labels of all pairs of runs; the deltas are not read again."""
    pairs = scale.trained * (scale.trained - 1) // 2
    work = Work(10.0 * pairs * settings.permutations, "fp64")
    return [Need("geometry.cosine_baselines", 1, work, on="cpu", rate=CosineBaselines.name)]
