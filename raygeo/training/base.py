"""The base of a worker's runs: it stays in memory from one run to the next where none of them changes it."""

import gc
from typing import Any

import torch
from torch import nn

from raygeo.models.activations import hold_activations
from raygeo.models.compilation import interpret_layers
from raygeo.models.loading import load_student
from raygeo.store import AnyPath


class ResidentBase:
    """The base that a worker has loaded, while its runs train adapters on it.

    What is trained lies beside the base, so the next run finds every bit of it as it was loaded.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._loaded: tuple[str, torch.dtype, str | None] | None = None

    def load(self, student: AnyPath, dtype: torch.dtype, attention: str | None, *, stays: bool) -> Any:
        """The student in ``dtype`` with this attention: the one that is here, or else loaded; it is kept if it
        ``stays`` as it is in the run to come. One that is of no use now is let go before.
        """
        wanted = (str(student), dtype, attention)
        if stays and self._loaded == wanted and self._model is not None:
            return self._model
        self.drop()
        model, _ = load_student(student, dtype=dtype, attention=attention)
        if stays:
            self._model, self._loaded = model, wanted
        return model

    def drop(self) -> None:
        """Let go of the base: a run to come loads it again."""
        self._model, self._loaded = None, None
        gc.collect()

    def release(self, model: Any) -> None:
        """Take the adapters off the base again after a run; ``model`` is what was trained."""
        if self._model is None:
            return
        hold_activations(self._model)
        interpret_layers(self._model)
        base = model.unload()
        assert base is self._model
