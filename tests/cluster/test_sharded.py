import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from student_cases import TINY

from raygeo.cluster.sharded import ShardedOperator
from raygeo.errors import ClusterError, StudentError
from raygeo.geometry.curvature.draws import rademacher
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.operators import Hessian
from raygeo.geometry.curvature.shares import balanced_shares, operator_shares
from raygeo.students.architecture import build_model
from raygeo.students.delta import save_full_delta
from raygeo.students.loading import load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.students.word_problems import word_tokenizer

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student, a run of it, a probe of five batches of unlike sizes, and the operator in one process."""
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = word_tokenizer()
    shape = TINY.model_copy(update={"layers": 1, "hidden": 16, "intermediate": 16})
    for part in (build_model(shape, tokenizer, 0), tokenizer):
        part.save_pretrained(folder / "student")
    delta = 0.1 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    save_full_delta(folder / "delta", {NAME: delta})
    run = Run("r", "k", str(folder / "delta"))
    probe = make_probe([(2, 1), (3, 9), (1, 2), (2, 30), (4, 1)], 60)
    probe.save(folder / "probe.npz")
    model, _ = load_student(folder / "student")
    MixedWeights(model, [NAME]).set(run.mixture())
    whole = Hessian(model, probe.batches(tokenizer.pad_token_id, 1), [NAME])
    return folder, run, whole


def shares(made, parameters=(NAME,), count=2):
    folder, run, _ = made
    return operator_shares(
        Hessian, folder / "student", run, folder / "probe.npz",
        parameters=parameters, batch_size=1, keep_graphs=True, count=count,
    )  # fmt: skip


def test_two_actors_give_the_numbers_of_one_process(made, ray_session):
    whole = made[2]
    vectors = rademacher(whole.n, 2, torch.Generator().manual_seed(0))
    start = rademacher(whole.n, 1, torch.Generator().manual_seed(1))
    with ShardedOperator(shares(made)) as sharded:
        assert (sharded.n, sharded.tokens, sharded.name, sharded.dtype) == (256, 43, "hessian", torch.float32)
        assert sharded.nll == pytest.approx(whole.nll, rel=1e-12)
        for found, expected in (
            (sharded.matmat(vectors), whole.matmat(vectors)),
            (sharded.gradient(), whole.gradient()),
        ):
            assert (found - expected).norm() <= 1e-6 * expected.norm()
        assert torch.equal(sharded.matmat(vectors), sharded.matmat(vectors))
        one, two = (
            extreme_eigenvalues(operator.matmat, start, 2, max_steps=30, tolerance=1e-3).top
            for operator in (sharded, whole)
        )
    assert one == pytest.approx(two, rel=1e-5)
    assert two[0] > 1e-3


def test_errors_of_a_term_reach_the_user(made, ray_session):
    with pytest.raises(StudentError, match="no parameters"):
        ShardedOperator(shares(made, parameters=("unknown",)))


def test_more_actors_than_fit_are_refused(made, ray_session):
    with pytest.raises(ClusterError, match="an operator in terms asks for 3"):
        ShardedOperator(shares(made, count=3))


def test_no_share_is_empty(made):
    assert len(shares(made, count=99)) == 5


def test_shares_hold_every_index_once_and_nearly_equal_sizes():
    sizes = np.random.default_rng(0).integers(20, 400, 40).tolist()
    found = balanced_shares(sizes, 6)
    assert sorted(index for share in found for index in share) == list(range(40))
    totals = [sum(sizes[i] for i in share) for share in found]
    assert max(totals) <= 1.05 * sum(sizes) / 6
    assert balanced_shares([7, 7, 6, 6, 5, 5, 4, 4, 4], 3) == [[0, 4, 6], [1, 5, 7], [2, 3, 8]]
