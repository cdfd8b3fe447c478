import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from delta_cases import low_rank, save_lora
from ray import cloudpickle
from tiny import TINY

from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.curvature.span import SpanCurvature
from raygeo.analyses.curvature.workload import CURVATURE
from raygeo.cluster.execution import in_process, run_workload
from raygeo.cluster.fanout import ActorPool
from raygeo.cluster.settings import ActorSettings
from raygeo.cluster.sharded import ShardedOperator
from raygeo.errors import StudentError, WorkloadError
from raygeo.geometry.curvature.draws import rademacher
from raygeo.geometry.curvature.shares import balanced_shares
from raygeo.models.delta import save_full_delta
from raygeo.models.run import Run
from raygeo.tables import BASE
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules

NAME = "model.layers.0.mlp.up_proj.weight"
SPLIT = ActorSettings(cpus=0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, a full and a low-rank delta, and a probe of five batches of unlike sizes."""
    folder = tmp_path_factory.mktemp("sharded")
    tokenizer = word_tokenizer()
    shape = TINY.model_copy(update={"layers": 1, "hidden": 16, "intermediate": 16})
    for part in (build_model(shape, tokenizer, 0), tokenizer):
        part.save_pretrained(folder / "student")
    noise = torch.Generator().manual_seed(0)
    save_full_delta(folder / "full", {NAME: 0.1 * torch.randn(16, 16, generator=noise)})
    save_lora(folder / "lora", {NAME.removesuffix(".weight"): low_rank(16, 16, 2, seed=0, scale=0.01)})
    make_probe([(2, 1), (3, 9), (1, 2), (2, 30), (4, 1)], 60).save(folder / "probe.npz")
    return folder


def make(kind, folder, runs=("full", "lora"), gather=ShardedOperator, **settings):
    found = [Run(BASE, "k", None), *(Run(run, run, str(folder / run)) for run in runs)]
    settings = {"batch_size": 1, "top_k": 2, "trace_probes": 2, "slq_probes": 2, "block_size": 2} | settings
    chosen = CurvatureSettings(max_steps=20, slq_steps=3, tolerance=1e-3, path_points=3, **settings)
    return kind(chosen, found, folder / "student", folder / "probe.npz", gather=gather)


def make_term(kind, index):
    @contextmanager
    def term():
        model = torch.nn.Linear(1, 1)
        model.n, model.tokens, model.name, model.dtype, model.device = 3, 5, kind, torch.float32, torch.device("cpu")
        model.nll = float(index)
        model.matmat, model.gradient = lambda v: (index + 1) * v, lambda: torch.full((3,), 10.0**index)
        model.exact = lambda v: (index + 1) * v.double() / 3
        yield model

    return term


def test_terms_are_summed_and_the_rest_is_the_own_ones(ray_session):
    with make_term("sum", 0)() as own, ShardedOperator(own, [make_term("sum", 1), make_term("sum", 2)], SPLIT) as whole:
        assert (whole.n, whole.tokens, whole.name, whole.dtype, whole.nll) == (3, 5, "sum", torch.float32, 3.0)
        vectors = rademacher(3, 2, torch.Generator().manual_seed(0))
        assert torch.equal(whole.matmat(vectors), 6 * vectors)
        assert whole.exact(vectors).dtype == torch.float64
        torch.testing.assert_close(whole.exact(vectors), 2 * vectors.double(), rtol=1e-15, atol=0)
        assert whole.gradient().tolist() == [111.0] * 3


def test_terms_of_unlike_operators_are_refused(ray_session):
    with make_term("sum", 0)() as own, pytest.raises(WorkloadError, match="different operators"):
        ShardedOperator(own, [make_term("other", 1)], SPLIT)


def test_an_error_of_a_term_reaches_the_user(ray_session):
    def refuse():
        raise StudentError("the model has no parameters of that name")

    with make_term("sum", 0)() as own, pytest.raises(StudentError, match="no parameters of that name"):
        ShardedOperator(own, [refuse], SPLIT)


def assert_same(found, expected):
    """Every number within 1e-3 of the largest of its own quantity, everything else equal."""
    assert len(found) == len(expected) > 0
    largest = {}
    for row in expected:
        kind = row.get("quantity")
        largest[kind] = max(largest.get(kind, 0.0), abs(row.get("value", row.get("nll"))))
    for row, again in zip(expected, found, strict=True):
        assert row.keys() == again.keys()
        for column, value in row.items():
            near = isinstance(value, float)
            scale = largest[row.get("quantity")]
            assert again[column] == (pytest.approx(value, rel=1e-3, abs=1e-3 * scale) if near else value), (column, row)


def test_eigenvalues_factors_and_spans_are_the_same_in_two_processes(folder, ray_session):
    gathered = []

    def gather(own, others):
        gathered.append(len(others))
        return ShardedOperator(own, others, SPLIT)

    seen = []
    for kind in (ExtremeEigenvalues, SpanCurvature):
        spaces = {"runs": ("lora",), "spaces": ("delta", "lora", "span")}
        whole, divided = make(kind, folder, **spaces), make(kind, folder, gather=gather, **spaces)
        assert divided.set_parallelism(2)
        assert [task.key for task in whole.tasks()] == [task.key for task in divided.tasks()]
        state = whole.setup()
        for place in [task.payload for task in whole.tasks() if task.payload.run.name == "lora"]:
            seen.append(place.space)
            expected, found = whole.compute(state, place), divided.compute(state, place)
            for table, rows in expected.items():
                assert_same(found[table], rows)
    assert seen == ["delta", "lora", "span"]
    assert gathered == [1, 1, 1]


def test_a_pool_divides_tasks_when_more_actors_fit_than_there_are_tasks(folder, ray_session, store, tmp_path):
    half = ActorSettings(cpus=0.5)

    class Seen(ShardedOperator):
        def __init__(self, own, others):
            super().__init__(own, others, half)
            (tmp_path / f"divided-{len(others)}").touch()

    settings = {"runs": ("lora",), "spaces": ("all",)}
    whole, divided = (make(ExtremeEigenvalues, folder, gather=gather, **settings) for gather in (ShardedOperator, Seen))
    assert len(divided.tasks()) == 2
    with ActorPool(half) as pool:
        result = run_workload(divided, store, pool)
    assert (result.made, [path.name for path in tmp_path.glob("divided-*")]) == (2, ["divided-1"])
    found = store.publish("curvature", result.keys, CURVATURE).to_pylist()
    store.delete_folder("units", "curvature")
    assert_same(found, store.publish("curvature", run_workload(whole, store, in_process).keys, CURVATURE).to_pylist())


def test_shares_hold_every_index_once_and_nearly_equal_sizes():
    sizes = np.random.default_rng(0).integers(20, 400, 40).tolist()
    found = balanced_shares(sizes, 6)
    assert sorted(index for share in found for index in share) == list(range(40))
    totals = [sum(sizes[i] for i in share) for share in found]
    assert max(totals) <= 1.05 * sum(sizes) / 6
    assert balanced_shares([7, 7, 6, 6, 5, 5, 4, 4, 4], 3) == [[0, 4, 6], [1, 5, 7], [2, 3, 8]]
    assert all(balanced_shares([9, 1, 1, 1], 4))
