"""How lack of memory shows, on a device or on the CPU, and what is done about it first."""

import errno
import gc

import torch

from raygeo.errors import RaygeoError

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    told = isinstance(error, RuntimeError) and not isinstance(error, RaygeoError)
    return told and any(sign in str(error) for sign in _SIGNS)


def free_memory() -> None:
    """Give back what an attempt that failed has left. Call it outside the handler, whose frames hold the attempt."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
