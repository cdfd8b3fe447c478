"""Why training failed: too little memory, a process that was lost, or an error that would only come again."""

import re
import traceback

import torch
import torch.distributed as dist
from ray.exceptions import RayError

from raygeo.errors import FullStoreError, RaygeoError
from raygeo.memory import lacks_memory
from raygeo.training.coordinator import Failure

_FRAMES = 4
_LOST = (dist.DistError, torch.AcceleratorError, RayError, ConnectionError, TimeoutError)
_COLLECTIVE = re.compile(r"\b(gloo|nccl)\b", re.IGNORECASE)


def diagnose(error: Exception) -> Failure:
    """What an exception that a worker raised in training means.

    An error of Python's or of a library's that has nothing to do with memory, collectives, devices or Ray is final.
    """
    message = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {message}".removesuffix(": ")
    if lacks_memory(error):
        return Failure(reason, out_of_memory=True)
    if isinstance(error, RaygeoError):
        return Failure(reason, final=True, full=isinstance(error, FullStoreError))
    if isinstance(error, _LOST) or (isinstance(error, RuntimeError) and _COLLECTIVE.search(message)):
        return Failure(reason)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({frame.filename}:{frame.lineno} in {frame.name})" for frame in last)
    return Failure(reason + where, "".join(traceback.format_exception(error, limit=-_FRAMES)).strip(), final=True)
