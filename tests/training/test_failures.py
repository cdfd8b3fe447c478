"""Which errors of a worker end a run, and which let it try again."""

import errno

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError

from raygeo.errors import DataError, FullStoreError
from raygeo.training.failures import diagnose

pytestmark = pytest.mark.cluster


def raised(error):
    try:
        raise error
    except Exception as caught:
        return diagnose(caught)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ZeroDivisionError("by zero"), OSError(22, "bad"), KeyError("a")]
)
def test_an_ordinary_error_is_final_and_says_where_it_arose(error):
    failure = raised(error)
    assert (failure.final, failure.out_of_memory) == (True, False)
    assert failure.reason.startswith(f"{type(error).__name__}: {error} ({__file__}:")
    assert failure.reason.endswith("in raised)")
    assert failure.detail.startswith("Traceback")
    assert failure.detail.endswith(f"{type(error).__name__}: {error}")


def test_an_error_for_the_user_needs_no_traceback():
    failure = raised(DataError("no rows"))
    assert (failure.reason, failure.detail, failure.final) == ("DataError: no rows", "", True)


def test_a_full_disk_is_final_for_all_runs():
    failure = raised(FullStoreError("/store cannot be written"))
    assert (failure.final, failure.full) == (True, True)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_lack_of_memory_is_neither_final_nor_a_loss(error):
    failure = raised(error)
    assert (failure.final, failure.out_of_memory) == (False, True)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
        dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError("timed out"),
        RayActorError(),
    ],
)  # fmt: skip
def test_what_the_loss_of_another_process_looks_like_is_not_final(error):
    failure = raised(error)
    assert (failure.final, failure.out_of_memory) == (False, False)
