"""What the analysis needs, before it is run."""

import torch

from raygeo.analyses.coherence.at_base import CoherenceAtBase
from raygeo.analyses.coherence.workload import Coherence, CoherenceSettings
from raygeo.footprint.need import DIVIDED, Need, Scale
from raygeo.geometry.representation.coherence import cut
from raygeo.geometry.representation.projection import WORKING_BYTES


def cost(settings: CoherenceSettings, scale: Scale) -> list[Need]:
    """A gradient an example: of all losses at the base, and of each run's own at its weights.

    They are computed again for each part that the weights are cut into; projected, each is computed once.
    """
    scale = scale.exactly()
    model, texts = scale.model, scale.rollouts.first(settings.examples)
    student = scale.student(torch.float32, checkpointing=settings.gradient_checkpointing)
    size = model.dtype.itemsize
    common = scale.resident() | {
        "an example with its graph": student.gradient(scale.rows_per_example, texts.longest).peak,
        "one flat gradient": model.touched * size,
    }
    fewer = tuple(f"geometry.coherence.held_gradients={settings.held_gradients >> k}" for k in (2, 4, 6))
    projected = () if settings.projections else ("geometry.coherence.projections=65536",)
    remedies = (*fewer, "geometry.coherence.gradient_checkpointing=true", *projected, *DIVIDED)

    def need(what: str, units: int, rows: int, passes: int, rate: str) -> Need:
        held = {"projecting": WORKING_BYTES}
        if settings.projections is None:
            held = {"held gradients": min(settings.held_gradients, rows * model.touched) * size}
        work = scale.gradients(texts, passes * scale.rows_per_example)
        return Need(what, units, work, common | held, rate=rate, remedies=remedies)

    losses, runs = scale.losses, scale.trained
    parts, again = (
        1 if settings.projections else len(cut(rows, model.touched, settings.held_gradients))
        for rows in (losses * settings.examples, settings.examples)
    )
    units = losses if settings.projections else parts
    return [
        need("geometry.coherence, base", units, losses * settings.examples, losses * parts, CoherenceAtBase.name),
        need("geometry.coherence, runs", runs, settings.examples, runs * again, Coherence.name),
    ]
