"""Activation checkpointing: layers whose backward pass computes them again from their inputs (Chen et al. 2016,
arXiv:1604.06174).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from raygeo.errors import StudentError
from raygeo.models.loading import model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


SETTING = "gradient_checkpointing"


def checkpoint_activations(model: nn.Module) -> None:
    """Have each of the model's layers hold its input alone for the backward pass, in evaluation mode too.

    Outputs and gradients are the same to the last bit where the layers' kernels are deterministic. transformers' own
    switch works in training mode only, which would turn on dropout as well.

    Raises:
        StudentError: the family is not made of layers that can be computed again.
    """
    for layer in layers_of(model, SETTING):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def hold_activations(model: nn.Module) -> None:
    """Undo ``checkpoint_activations``; what layers were before, compiled perhaps, they are again."""
    for layer in model.modules():
        again = layer.__dict__.get("forward")
        if isinstance(again, partial) and again.func is checkpoint:
            [before] = again.args
            del layer.forward
            if layer.forward != before:
                layer.forward = before


def check_checkpointing(config: PreTrainedConfig) -> None:
    """Refuse a student of ``config`` whose layers cannot be computed again; no weights are needed.

    Raises:
        StudentError: as ``checkpoint_activations``.
    """
    layers_of(model_shape(config), SETTING)


def layers_of(model: nn.Module, setting: str) -> list[Any]:
    """The model's layers, as transformers marks them.

    Raises:
        StudentError: it marks none, so ``setting`` cannot be had.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise StudentError(
            f"{setting}: {type(model).__name__} is not made of layers that transformers can compute one by one; leave "
            "it out. With a smaller micro_batch_size, or sharded by zero_stage, a run takes less memory."
        )
    return found
