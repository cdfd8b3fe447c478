"""A trained run as a student of its own: the base with the run's delta added, a complete model folder again."""

import torch

from raygeo.errors import DeltaError
from raygeo.models.delta import open_delta
from raygeo.models.loading import load_student
from raygeo.store import AnyPath


@torch.no_grad()
def merge_run(base: AnyPath, delta: AnyPath, folder: AnyPath, *later: AnyPath) -> None:
    """Write base + delta into ``folder`` as a Hugging Face model with its tokenizer: fp32 weights in safetensors.

    The sum is taken in fp32; deltas of ``later`` trainings, each from where the one before it ended, are added in
    order, to the same bits as if each had been merged by itself. The model is held once; a delta is read, and a LoRA
    product multiplied out, one parameter at a time.

    Raises:
        StudentError: the base cannot be loaded.
        DeltaError: ``delta`` is not a delta, or does not fit the base.
    """
    model, tokenizer = load_student(base, dtype=torch.float32)
    parameters = dict(model.named_parameters())
    for added in (delta, *later):
        for name, entry in open_delta(str(added)).items():
            if name not in parameters or entry.shape != tuple(parameters[name].shape):
                raise DeltaError(
                    f"{added} holds {name} {list(entry.shape)}, which {base} lacks or has in another shape; "
                    "it was trained from another model."
                )
            parameters[name].add_(entry.dense())
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
