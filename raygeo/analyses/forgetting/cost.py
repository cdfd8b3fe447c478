"""What the analysis needs, before it is run."""

from raygeo.analyses.forgetting.workload import ForgettingSettings
from raygeo.footprint.need import Need, Scale, Texts


def cost(settings: ForgettingSettings, scale: Scale) -> list[Need]:
    """A pass over the texts, were all passages as long as may be; benchmarks are answered by the evaluation."""
    if settings.texts is None:
        return []
    texts = Texts(settings.passages, float(settings.passage_tokens), settings.passage_tokens)
    return [scale.along("forgetting", scale.runs, 1, texts, settings)]
