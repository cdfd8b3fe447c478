"""Compiled layers: torch.compile of each of a model's layers in place of the whole model ("regional compilation")."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn

from raygeo.errors import StudentError
from raygeo.models.activations import layers_of
from raygeo.models.loading import model_shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BACKEND = "inductor"
SETTING = "torch_compile"


def compile_layers(model: nn.Module) -> None:
    """Have torch compile each of the model's layers when it is first called, for tokens of any number.

    Layers that are alike share a program, so that compiling takes as long as one of them does. Names of modules and
    parameters stay. What this process has compiled before is forgotten: torch keeps few programs of one layer.

    Raises:
        StudentError: the family is not made of layers.
    """
    torch.compiler.reset()
    for layer in layers_of(model, SETTING):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=BACKEND)


def interpret_layers(model: nn.Module) -> None:
    """Undo ``compile_layers``."""
    for layer in model.modules():
        if hasattr(layer.__dict__.get("forward"), "_torchdynamo_orig_callable"):
            del layer.forward


def check_compilation(config: PreTrainedConfig) -> None:
    """Refuse a student of ``config`` that is not made of layers; no weights are needed.

    Raises:
        StudentError: as ``compile_layers``.
    """
    layers_of(model_shape(config), SETTING)


def check_compiler(gpu: bool) -> None:
    """Refuse a machine on which torch cannot compile: for a GPU it takes Triton, and a C compiler; else a C++ compiler.

    Raises:
        StudentError: naming what is missing.
    """
    variable, known = ("CC", ("gcc", "clang")) if gpu else ("CXX", ("g++", "clang++"))
    lacking = None
    if gpu and find_spec("triton") is None:
        lacking = "Triton (pip install triton)"
    elif not any(map(shutil.which, (os.environ.get(variable) or known[0], *known))):
        lacking = f"{'C' if gpu else 'C++'} compiler ({' or '.join(known)})"
    if lacking is not None:
        raise StudentError(f"{SETTING}: this worker's machine has no {lacking}; install it there, or leave it out.")
