"""What the analysis needs, before it is run."""

import torch

from raygeo.analyses.coherence.workload import CoherenceSettings
from raygeo.footprint.need import Need, Scale


def cost(settings: CoherenceSettings, scale: Scale) -> list[Need]:
    """A gradient an example, again for each part that the weights are cut into; all losses' examples at the base."""
    scale = scale.exactly()
    model, texts = scale.model, scale.rollouts.first(settings.examples)
    student = scale.student(torch.float32, checkpointing=settings.gradient_checkpointing)
    one = student.gradient(scale.rows_per_example, texts.longest)
    rows = settings.examples * scale.losses
    held = min(settings.held_gradients, rows * model.touched)
    parts = -(-model.touched * rows // held)
    passes = parts * scale.losses + scale.trained * -(-model.touched * settings.examples // held)
    device = scale.resident() | {
        "an example with its graph": one.peak,
        "held gradients": held * model.dtype.itemsize,
        "one flat gradient": model.touched * model.dtype.itemsize,
    }
    work = scale.gradients(texts, passes * scale.rows_per_example)
    fewer = tuple(f"geometry.coherence.held_gradients={settings.held_gradients >> k}" for k in (2, 4, 6))
    remedies = (*fewer, "geometry.coherence.gradient_checkpointing=true")
    return [Need("geometry.coherence", scale.runs, work, device, rate="coherence", remedies=remedies)]
