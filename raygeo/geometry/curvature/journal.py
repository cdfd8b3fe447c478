"""Products that survive an interruption: each is kept as soon as it is known, and read when the work resumes.

All solvers here are deterministic functions of the products they ask for, so a computation that resumes from the
products of an interrupted one ends with the same bits as one that was never interrupted, at the cost of repeating the
orthogonalisations alone.
"""

from collections.abc import Callable
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from raygeo.errors import StoreError
from raygeo.geometry.curvature.lanczos import MatMat


class Journal(Protocol):
    """A list of tensors, filled from the front, that outlives the process."""

    def read(self, index: int) -> Tensor | None:
        """The tensor number ``index``, on the CPU, or None if it is not there yet."""

    def write(self, index: int, tensor: Tensor) -> None:
        """Keep a tensor; once this returns, it is there whole."""

    def clear(self) -> None:
        """Forget all tensors."""


Journals = Callable[[str], Journal]
"""From the content key of a unit of work to its journal."""


def journaled(journal: Journal) -> Callable[[MatMat], MatMat]:
    """A wrapper of operators: each product is kept in ``journal`` when it is made, and read if it was made before.

    Products of all operators that are wrapped are numbered in one sequence, in the order they are asked for. The
    journal takes as much disk as a Krylov basis of all products takes memory: a vector of n each.

    A product raises:
        StoreError: the kept one has another shape than what is asked for.
    """
    numbers = count()

    def wrap(matmat: MatMat) -> MatMat:
        def product(vectors: Tensor) -> Tensor:
            index = next(numbers)
            rows = journal.read(index)
            if rows is None:
                # With the strides that a file gives back: the last bits of later matrix products depend on them.
                rows = matmat(vectors).T.clone(memory_format=torch.contiguous_format)
                journal.write(index, rows)
            elif rows.shape != vectors.T.shape:
                raise StoreError(
                    f"product {index} in {journal} has shape {list(rows.T.shape)}, not {list(vectors.shape)}; it "
                    "belongs to another computation. Delete the journal and run the study again."
                )
            return rows.to(vectors).T

        return product

    return wrap
