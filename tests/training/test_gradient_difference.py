"""Products of a student under ZeRO-3 on one and on two gloo ranks, against second derivatives of the whole model."""

import logging
import os
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from curvature_cases import make_probe
from process_cases import run_in_group
from student_cases import TINY
from transformers.utils.logging import disable_progress_bar

from raygeo.errors import StudentError
from raygeo.geometry.curvature.operators import Hessian
from raygeo.students.architecture import build_model
from raygeo.students.loading import load_student
from raygeo.students.word_problems import word_tokenizer
from raygeo.training.engine import import_deepspeed, rank, world
from raygeo.training.gradient_difference import SCALES, GradientDifference, build_gradient_engine, top_eigenvalues

PROBE = make_probe([(2, 1), (3, 9), (1, 2), (2, 12), (4, 5)], 60, seed=2)  # three batches of at most two
SHAPE = TINY.model_copy(update={"layers": 1, "hidden": 16, "intermediate": 32})
SOME = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
K = 1


def gathered(operator, vector):
    """A sharded vector, whole, in the order of the parameters."""
    parts = [torch.empty_like(vector) for _ in range(world())]
    dist.all_gather(parts, vector)
    columns = zip(*(part.split(operator._sizes) for part in parts), strict=True)
    return torch.cat([
        torch.cat(column)[: p.ds_numel] for column, p in zip(columns, operator.parameters.values(), strict=True)
    ])  # fmt: skip


def work(rank_, ranks, folder):
    os.environ |= {"LOCAL_RANK": str(rank_), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    file = f"file://{folder}/rendezvous-{ranks}"
    dist.init_process_group("gloo", file, timedelta(minutes=5), world_size=ranks, rank=rank_)
    import_deepspeed().init_distributed("gloo", verbose=False)
    engine = build_gradient_engine(f"{folder}/student")
    operator = GradientDifference(engine, PROBE.batches(0, 2))
    before = [p.ds_tensor.clone() for p in operator.parameters.values()]
    found = {"gradient": gathered(operator, operator.gradient())}
    for name, subset, scales in (("all", None, SCALES[:3]), ("some", SOME, SCALES)):
        part = GradientDifference(engine, PROBE.batches(0, 2), subset)
        vector = part.rademacher(5)
        scan = part.scan(vector, scales)
        found[name] = gathered(part, vector), gathered(part, scan.product), scan.error
        assert vector.numel() <= part.n / ranks + len(part.parameters)
    found["top"] = top_eigenvalues(part, K, max_steps=12, tolerance=1e-2)
    assert all(torch.equal(p.ds_tensor, kept) for p, kept in zip(operator.parameters.values(), before, strict=True))
    assert torch.equal(gathered(operator, operator.gradient()), found["gradient"])
    with pytest.raises(StudentError, match="fits no parameter"):
        operator.flatten({"model.norm.weight": torch.ones(3)})
    if rank() == 0:
        torch.save(found, f"{folder}/found-{ranks}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero3")
    tokenizer = word_tokenizer()
    for part in (build_model(SHAPE, tokenizer, 0), tokenizer):
        part.save_pretrained(folder / "student")
    for ranks in (1, 2):
        run_in_group(work, ranks, str(folder))
    return {ranks: torch.load(folder / f"found-{ranks}.pt", weights_only=False) for ranks in (1, 2)}, folder / "student"


@pytest.fixture(scope="module")
def exact(found):
    """The Hessian of the whole student in fp64, on one batch."""
    model, _ = load_student(found[1], dtype=torch.float64)
    return lambda names=None: Hessian(model, PROBE.batches(0, 5), names)


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradient_is_that_of_the_whole_token_mean(found, exact, ranks):
    assert distance(found[0][ranks]["gradient"], exact().gradient()) < 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("space", ["all", "some"])
def test_products_are_those_of_second_derivatives(found, exact, ranks, space):
    vector, product, error = found[0][ranks][space]
    expected = exact(None if space == "all" else SOME).matmat(vector.double()[:, None])[:, 0]
    actual = distance(product, expected)
    assert actual < 2e-3
    assert actual < error < 2e-2


def test_vectors_do_not_depend_on_the_number_of_ranks(found):
    one, two = (found[0][ranks]["all"][0] for ranks in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("ranks", [1, 2])
def test_top_eigenvalues_are_those_of_the_whole_student(found, exact, ranks):
    matrix = exact(SOME)
    expected = np.linalg.eigvalsh(matrix.matmat(torch.eye(matrix.n, dtype=torch.float64)).numpy())[::-1][:K]
    values, residuals = found[0][ranks]["top"]
    assert values == pytest.approx(expected, rel=1e-3)
    assert (abs(values - expected) <= residuals).all()
    assert (residuals <= 1e-2 * values).all()
