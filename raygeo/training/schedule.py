"""The learning-rate schedule as a pure function."""

import math

from raygeo.training.settings import TrainingSettings


def lr_factor(settings: TrainingSettings, steps: int, step: int) -> float:
    """Share of the peak learning rate at ``step`` (0-based) of ``steps``.

    Rises linearly over the first ``round(warmup_ratio * steps)`` steps, then falls to ``final_lr`` at the last step;
    the setting ``schedule_steps`` stands in for ``steps``.
    """
    steps = settings.schedule_steps or steps
    warmup = round(settings.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    match settings.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            fall = 1.0 - progress
        case "cosine":
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.final_lr + (1.0 - settings.final_lr) * fall
