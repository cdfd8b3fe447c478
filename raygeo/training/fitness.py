"""Whether a student can be trained as its runs ask, known from its configuration before anything is made or loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from raygeo.models.activations import check_checkpointing
from raygeo.models.attention import check_attention
from raygeo.models.compilation import check_compilation
from raygeo.models.lora import check_lora
from raygeo.models.packing import check_packing
from raygeo.models.ulysses import check_sequence_parallel
from raygeo.training.settings import TrainingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_trainable(configuration: Callable[[], PreTrainedConfig], runs: Sequence[TrainingSettings]) -> None:
    """Refuse what a student of this configuration cannot have: adapters, attention, packing, sharing, compiled or
    checkpointed layers.

    ``configuration`` is read only if some run asks for one of them.

    Raises:
        StudentError: naming the setting, and why.
    """
    adapters = {run.lora for run in runs if run.lora is not None}
    attentions = {run.attn_implementation for run in runs if run.attn_implementation is not None}
    sizes = {run.sequence_parallel_size for run in runs} - {1}
    checks: list[Callable[[PreTrainedConfig], None]] = [
        *(partial(check_lora, settings=adapter) for adapter in sorted(adapters, key=repr)),
        *(partial(check_attention, name=name) for name in sorted(attentions)),
        *(partial(check_sequence_parallel, size=size) for size in sorted(sizes)),
        *([check_packing] if any(run.padding_free for run in runs) else []),
        *([check_compilation] if any(run.torch_compile for run in runs) else []),
        *([check_checkpointing] if any(run.gradient_checkpointing for run in runs) else []),
    ]
    if checks:
        config = configuration()
        for check in checks:
            check(config)
