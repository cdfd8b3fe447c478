import numpy as np
import pytest
import torch
from spectrum_cases import OUTLIERS, signs, symmetric

from raygeo.errors import StoreError
from raygeo.geometry.curvature.journal import journaled
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.quadrature import gauss_quadrature
from raygeo.geometry.curvature.trace import hutch_plus_plus
from raygeo.pipeline.journal import StoreJournal
from raygeo.store import Store

MATRIX = symmetric(OUTLIERS, dtype=torch.float32)


def starts(k, seed=0):
    return signs(200, k, seed, torch.float32)


def extremes(matmat):
    found = extreme_eigenvalues(matmat, starts(2), 3, max_steps=12, tolerance=1e-4)
    trace = hutch_plus_plus(matmat, found.basis, found.basis_trace, starts(4, 1))
    return [found.top, found.top_residuals, found.vectors.numpy(), found.bottom, np.array(trace)]


def density(matmat):
    return [part for rule in gauss_quadrature(matmat, starts(1), 10) for part in rule]


class Killed(Exception):
    pass


def dying(products):
    """A product that works so often, and counts how often it did."""

    def matmat(vectors):
        if matmat.made == products:
            raise Killed
        matmat.made += 1
        return (MATRIX @ vectors).T.contiguous().T

    matmat.made = 0
    return matmat


@pytest.mark.parametrize(("solve", "products"), [(extremes, 13), (density, 10)])
@pytest.mark.parametrize("lives", [[0, 1], [1], [2], [1, 1, 1], [2, 3, 4]])
def test_what_was_interrupted_ends_with_the_bits_of_what_was_not(tmp_path, solve, products, lives):
    store = Store(tmp_path)
    untouched = dying(products)
    expected = solve(journaled(StoreJournal(store, "untouched"))(untouched))
    done = 0
    for life in lives:
        if done + life >= untouched.made:
            break
        with pytest.raises(Killed):
            solve(journaled(StoreJournal(store, "killed"))(dying(life)))
        done += life
    last = dying(products)
    found = solve(journaled(StoreJournal(store, "killed"))(last))
    assert last.made == untouched.made - done  # nothing was computed twice
    for a, b in zip(found, expected, strict=True):
        assert a.tobytes() == b.tobytes()


def test_half_written_products_and_cleared_ones_are_not_there(tmp_path):
    journal = StoreJournal(Store(tmp_path), "unit")
    journal.write(0, torch.arange(6.0).view(2, 3))
    (tmp_path / "journals" / "unit" / "000001.safetensors.ab.tmp").write_bytes(b"half")
    assert torch.equal(journal.read(0), torch.arange(6.0).view(2, 3))
    assert journal.read(1) is None
    journal.clear()
    journal.clear()
    assert journal.read(0) is None
    assert not list((tmp_path / "journals").iterdir())


def test_damaged_and_foreign_products_are_refused(tmp_path):
    journal = StoreJournal(Store(tmp_path), "unit")
    (tmp_path / "journals" / "unit").mkdir(parents=True)
    (tmp_path / "journals" / "unit" / "000000.safetensors").write_bytes(b"rubbish")
    with pytest.raises(StoreError, match="damaged"):
        journal.read(0)
    journal.write(0, torch.zeros(1, 7))
    with pytest.raises(StoreError, match=r"\[7, 1\], not \[200, 1\]"):
        journaled(journal)(MATRIX.matmul)(starts(1))
