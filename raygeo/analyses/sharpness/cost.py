"""What the analysis needs, before it is run."""

import torch

from raygeo.analyses.sharpness.workload import SharpnessSettings
from raygeo.footprint.need import DIVIDED, Need, Scale, halves


def cost(settings: SharpnessSettings, scale: Scale) -> list[Need]:
    """Gradients and passes near every run, and vectors as long as the weights that are moved."""
    scale = scale.exactly()
    model, texts = scale.model, scale.curvature
    student = scale.student(torch.float32, checkpointing=settings.gradient_checkpointing)
    entries = model.touched if settings.space == "delta" else model.parameters
    steps = settings.ascent_steps * len(settings.radii) + len(settings.adaptive_radii)
    noisy = 2 * settings.draws * (len(settings.sigmas) + len(settings.relative_sigmas))
    rows = min(settings.batch_size, texts.count)
    work = scale.gradients(texts, scale.runs * steps) + scale.scoring(texts, scale.runs * (steps + noisy))
    size = model.dtype.itemsize
    device = scale.resident() | {
        "a batch with its graph": student.gradient(rows, texts.longest).peak,
        "weights, offset, gradient and sums": 5 * entries * size,
    }
    smaller = tuple(f"geometry.sharpness.batch_size={less}" for less in halves(rows))
    smaller += ("geometry.sharpness.gradient_checkpointing=true", *DIVIDED)
    return [Need("geometry.sharpness", scale.runs, work, device, rate="sharpness", remedies=smaller)]
