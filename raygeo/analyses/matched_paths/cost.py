"""What the analysis needs, before it is run."""

from raygeo.analyses.matched_paths.workload import MatchedPathsSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: MatchedPathsSettings, scale: Scale) -> list[Need]:
    """A path a pair of trained runs: a pass over the probes at every point, answers at some."""
    points = settings.points + 2 * settings.beyond + settings.refine
    pairs = scale.trained * (scale.trained - 1) // 2
    answered = settings.accuracy_points - 2
    return [scale.along("matched_paths", pairs, points, scale.likelihood, settings, answered=answered)]
