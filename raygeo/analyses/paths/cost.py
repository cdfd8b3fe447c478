"""What the analysis needs, before it is run."""

from raygeo.analyses.paths.workload import PathsSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: PathsSettings, scale: Scale) -> list[Need]:
    """A path a pair: a pass over the probes at every point, answers at some."""
    points = settings.points + 2 * settings.beyond + settings.refine
    pairs = scale.chosen_pairs(settings.pairs)
    answered = settings.accuracy_points - 2
    return [scale.along("paths", pairs, points, scale.likelihood, settings, answered=answered)]
