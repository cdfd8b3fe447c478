"""Products in one process, and with weights divided over two, against second derivatives in fp64."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from tiny import TINY
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from raygeo.errors import StudentError, WorkloadError
from raygeo.geometry.curvature.difference_operator import DifferenceHessian
from raygeo.geometry.curvature.draws import named_generator, rademacher
from raygeo.geometry.curvature.gradient_difference import SCALES, GradientDifference, top_eigenvalues
from raygeo.geometry.curvature.lanczos import extreme_eigenvalues
from raygeo.geometry.curvature.landscape import ModelLandscape
from raygeo.geometry.curvature.operators import Hessian
from raygeo.toy.architecture import build_model
from raygeo.toy.word_problems import word_tokenizer

PROBE = make_probe([(2, 1), (3, 9), (1, 2), (2, 12), (4, 5)], 60, seed=2)
SHAPE = TINY.model_copy(update={"layers": 1, "hidden": 16, "intermediate": 32})
SOME = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
EFFORT = {"max_steps": 12, "tolerance": 1e-2}


@pytest.fixture(scope="module")
def model():
    return build_model(SHAPE, word_tokenizer(), 0).eval()


def landscape(model, names=SOME):
    return ModelLandscape(model, PROBE.batches(0, 2), names)


def exact(model, names=SOME):
    """The Hessian in fp64, on one batch."""
    return Hessian(deepcopy(model).double(), PROBE.batches(0, 5), names)


def signs(n):
    return rademacher(n, 1, named_generator("difference", 5))[:, 0]


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def everything(model):
    return [name for name, _ in model.named_parameters()]


def test_gradients_are_those_of_the_whole_token_mean_at_the_weights_moved(model):
    names = everything(model)
    slope = landscape(model, names)
    before = slope.weights.clone()
    for offset in (torch.zeros_like(before), 1e-2 * signs(len(before))):
        moved = deepcopy(model)
        torch.nn.utils.vector_to_parameters(before + offset, moved.parameters())
        assert distance(slope.gradient(offset), exact(moved, names).gradient()) < 1e-5
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


@pytest.mark.parametrize(("names", "scales"), [(everything, SCALES[:3]), (lambda model: SOME, SCALES)])
def test_products_are_those_of_second_derivatives_within_the_error_that_is_told(model, names, scales):
    names = names(model)
    operator = GradientDifference(landscape(model, names))
    whole = exact(model, names)
    vector = signs(whole.n)
    scan = operator.scan(vector, scales)
    expected = whole.matmat(vector.double()[:, None])[:, 0]
    actual = distance(scan.product, expected)
    assert actual < 2e-3
    assert actual < scan.error < 2e-2
    assert torch.equal(GradientDifference(landscape(model, names), scan.scale).matvec(vector), scan.product)


def test_top_eigenvalues_are_those_of_the_dense_matrix(model):
    matrix = exact(model)
    expected = np.linalg.eigvalsh(matrix.matmat(torch.eye(matrix.n, dtype=torch.float64)).numpy())[-1]
    operator = GradientDifference(landscape(model))
    [value], [residual] = top_eigenvalues(operator, signs(matrix.n), 1, **EFFORT)
    assert value == pytest.approx(expected, rel=1e-3)
    assert abs(value - expected) <= residual <= 1e-2 * value
    found = extreme_eigenvalues(operator.matmat, signs(matrix.n)[:, None], 1, **EFFORT)  # as any operator
    assert found.top[0] == pytest.approx(expected, rel=1e-2)


class Half:
    """Half of the weights of a landscape and of two entries that stand for none, beside a thread with the other."""

    def __init__(self, model, place, table, barrier):
        self.whole, self.place, self.table, self.barrier = landscape(model), place, table, barrier
        self.n = len(self.whole.weights)
        self.weights = self.part(self.whole.weights)

    def part(self, vector):
        return torch.nn.functional.pad(vector, (0, 2)).chunk(2)[self.place]

    def everyone(self, tensor):
        self.table[self.place] = tensor
        self.barrier.wait()
        found = [each.clone() for each in self.table]
        self.barrier.wait()
        return found

    def gradient(self, offset):
        return self.part(self.whole.gradient(torch.cat(self.everyone(offset))[: self.n]))

    def total(self, numbers):
        return sum(self.everyone(numbers))


def test_weights_may_be_divided_over_processes(model):
    barrier, table = Barrier(2, timeout=60), [None, None]

    def work(place):
        half = Half(deepcopy(model), place, table, barrier)
        operator = GradientDifference(half, total=half.total)
        start = half.part(signs(half.n))
        return operator.scan(start), top_eigenvalues(operator, start, 1, **EFFORT)

    with ThreadPoolExecutor(2) as pool:
        (one, top), (two, same) = pool.map(work, range(2))
    alone, vector = GradientDifference(landscape(model)), signs(len(landscape(model).weights))
    scan = alone.scan(vector)
    assert one.scale == two.scale == scan.scale
    assert distance(torch.cat([one.product, two.product])[: len(vector)], scan.product) < 1e-5
    values, residuals = top_eigenvalues(alone, vector, 1, **EFFORT)
    assert (top[0], top[1]) == (same[0], same[1])
    assert top[0] == pytest.approx(values, rel=1e-4)
    assert top[1] == pytest.approx(residuals, rel=0.1)


@pytest.mark.parametrize("names", [everything, lambda model: SOME])
def test_gradients_by_layer_are_those_of_the_whole_graph(model, names):
    whole = landscape(model, names(model))
    by_layer = ModelLandscape(model, PROBE.batches(0, 2), names(model), by_layer=True)
    offset = 1e-2 * signs(len(whole.weights))
    assert distance(by_layer.gradient(offset), whole.gradient(offset)) < 1e-5
    assert torch.equal(by_layer.weights, landscape(model, names(model)).weights)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_as_an_operator_it_tells_its_error_and_is_checked_exactly(attention):
    model = build_model(SHAPE, word_tokenizer(), 0).eval()
    model.set_attn_implementation(attention)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    operator = DifferenceHessian(model, PROBE.batches(0, 2), SOME)
    vector = signs(operator.n)[:, None]
    expected = operator.exact(vector)
    assert distance(expected[:, 0], exact(model).matmat(vector.double())[:, 0]) < 1e-6
    assert distance(operator.matmat(vector)[:, 0], expected[:, 0]) < 2e-3
    scan = operator.scan(vector[:, 0])
    assert distance(scan.product, expected[:, 0]) < scan.error < 2e-2
    assert operator.scale in SCALES
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        model.get_parameter(SOME[0]).add_(1e-3)
    with pytest.raises(WorkloadError, match="written to"):
        operator.matmat(vector)


def test_attention_without_second_derivatives_will_do_for_differences(monkeypatch):
    model = build_model(SHAPE, word_tokenizer(), 0).eval()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "fused", ALL_ATTENTION_FUNCTIONS["sdpa"])
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "fused")
    with pytest.raises(StudentError, match="cannot be differentiated twice"):
        Hessian(model, PROBE.batches(0, 2), SOME)
    operator = DifferenceHessian(model, PROBE.batches(0, 2), SOME)
    vector = signs(operator.n)[:, None]
    model.set_attn_implementation("sdpa")
    assert distance(operator.matmat(vector), exact(model).matmat(vector.double())) < 2e-3


def test_a_gradient_that_is_not_finite_is_refused(model):
    broken = landscape(deepcopy(model))
    broken.weights[0] = float("nan")
    with pytest.raises(WorkloadError, match="the run diverged"):
        GradientDifference(broken).matvec(signs(len(broken.weights)))
