import logging

import pytest
import torch

from raygeo.errors import StudentError
from raygeo.memory import lacks_memory
from raygeo.models.fitting import fitted, in_batches


def squares(most: int, seen: list[int], error=lambda: torch.OutOfMemoryError("CUDA out of memory")):
    """Squares batches of at most ``most`` items, noting sizes; larger ones raise."""

    def run(batch):
        seen.append(len(batch))
        if len(batch) > most:
            raise error()
        return [item**2 for item in batch]

    return run


def test_batches_halve_until_they_fit_stay_so_and_say_it(caplog):
    seen: list[int] = []
    with caplog.at_level(logging.WARNING):
        found = in_batches(squares(3, seen), list(range(10)), 10, what="squares", key=("test", 1))
    assert found == [i**2 for i in range(10)]
    assert seen == [10, 5, 3, 3, 3, 1]
    assert fitted(("test", 1)) == 3
    assert "no memory for a batch of 5; halved to 3" in caplog.text
    seen.clear()
    assert in_batches(squares(3, seen), [1, 2, 3, 4], 8, what="squares", key=("test", 1)) == [1, 4, 9, 16]
    assert seen == [3, 1]
    seen.clear()
    in_batches(squares(9, seen), [1] * 8, 8, what="squares", key=("test", 2))
    assert seen == [8]


def test_memory_that_torch_really_lacks_on_the_cpu_is_recognised():
    def run(batch):
        return [torch.empty(2**60 if len(batch) > 1 else 1).shape[0] for _ in batch]

    assert in_batches(run, [1, 2, 3], 3, what="huge tensors", key=("test", 3)) == [1, 1, 1]


def test_one_item_without_memory_and_other_errors_are_raised():
    with pytest.raises(StudentError, match="squares: there is no memory for a batch of one"):
        in_batches(squares(0, []), [1, 2], 2, what="squares", key=("test", 4))
    with pytest.raises(ZeroDivisionError):
        in_batches(squares(0, [], lambda: ZeroDivisionError()), [1, 2], 2, what="squares", key=("test", 5))
    assert fitted(("test", 5)) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_says_that_memory_is_lacking(error, expected):
    assert lacks_memory(error) is expected
