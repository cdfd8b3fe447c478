"""A trained run as a student of its own: the base with the run's delta added, a complete model again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from raygeo.errors import DeltaError
from raygeo.models.delta import open_delta
from raygeo.models.loading import load_student
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def add_deltas(model: PreTrainedModel, base: AnyPath, *deltas: AnyPath) -> PreTrainedModel:
    """Add deltas to the weights of ``model``, which was loaded from ``base``, in order, and return it.

    Each sum is taken in the dtype of ``model``. A delta is read, and a LoRA product multiplied out, one parameter at a
    time.

    Raises:
        DeltaError: one is not a delta, or does not fit the base.
    """
    parameters = dict(model.named_parameters())
    for added in deltas:
        for name, entry in open_delta(added, base).items():
            if name not in parameters or entry.shape != tuple(parameters[name].shape):
                raise DeltaError(
                    f"{added} holds {name} {list(entry.shape)}, which {base} lacks or has in another shape; "
                    "it was trained from another model."
                )
            parameters[name].add_(entry.dense())
    return model


def merge_run(base: AnyPath, delta: AnyPath, folder: AnyPath, *later: AnyPath) -> None:
    """Write base + delta into ``folder`` as a Hugging Face model with its tokenizer: fp32 weights in safetensors.

    The sum is taken in fp32; deltas of ``later`` trainings, each from where the one before it ended, are added in
    order, to the same bits as if each had been merged by itself. The model is held once.

    Raises:
        StudentError: the base cannot be loaded.
        DeltaError: as ``add_deltas``.
    """
    model, tokenizer = load_student(base, dtype=torch.float32)
    add_deltas(model, base, delta, *later).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
