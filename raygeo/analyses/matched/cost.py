"""What the analysis needs, before it is run."""

from dataclasses import replace

from raygeo.analyses.matched.workload import MatchedSettings
from raygeo.footprint.need import Need, Scale
from raygeo.geometry.representation.predictions import CHUNK_LOGITS

_SEARCHED = 4
"""Passes that the search for a divergence takes, about: it is nearly straight in its square root."""


def cost(settings: MatchedSettings, scale: Scale) -> list[Need]:
    """At three points of every run a pass over the probe to evaluate, with answers, and one for the divergence, and as
    many as the search takes; at the base an evaluation. What the base predicts is held.
    """
    model, texts = scale.model, scale.solutions
    need = scale.along("matched", scale.runs, 3 + 2 + _SEARCHED, texts, settings, answered=3.0)
    size, vocabulary = model.dtype.itemsize, int(model.text.vocab_size)
    rows = min(settings.batch_size, texts.count)
    device = {
        **need.device,
        "states and head of the base": round(texts.count * texts.mean + vocabulary) * model.width * size,
        "logits that are compared": 8 * 4 * min(CHUNK_LOGITS, rows * texts.longest * vocabulary),
    }
    return [replace(need, device=device)]
