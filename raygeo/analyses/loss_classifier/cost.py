"""What the analysis needs, before it is run."""

from raygeo.analyses.loss_classifier.workload import LossClassifier, LossClassifierSettings
from raygeo.footprint.need import Need, Scale, Work


def cost(settings: LossClassifierSettings, scale: Scale) -> list[Need]:
    """Inner products of runs for every labeling and kind of features; no delta is read."""
    work = Work(3.0 * 4 * settings.permutations * scale.trained**2 * scale.losses, "fp64")
    return [Need("geometry.loss_classifier", 1, work, on="cpu", rate=LossClassifier.name)]
