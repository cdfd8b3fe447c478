import pytest
import torch
from torch import nn

from raygeo.models.muon import Muon, orthogonalised


def gaussian(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]), dtype=dtype)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape):
    matrix = gaussian(*shape, dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonalised(matrix) @ right.T
    off = inner - torch.diag(inner.diagonal())
    assert off.abs().max() < 1e-12
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3


def test_fp32_is_fp64_but_for_rounding():
    matrix = gaussian(24, 40, dtype=torch.float64)
    assert (orthogonalised(matrix.float()).double() - orthogonalised(matrix)).abs().max() < 1e-5


def test_nothing_is_made_of_nothing():
    assert not orthogonalised(torch.zeros(3, 5)).any()


def test_steps_are_those_of_torch_but_for_its_bf16_products():
    parameters = [nn.Parameter(gaussian(24, 40)) for _ in range(2)]
    start = parameters[0].detach().clone()
    ours = Muon(parameters[:1], lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(parameters[1:], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        gradient = gaussian(24 + step, 40)[:24]
        for parameter, optimizer in zip(parameters, (ours, theirs), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = parameters[0] - start
    assert (parameters[0] - parameters[1]).norm() < 0.02 * moved.norm()


def test_no_product_is_taken_in_bf16():
    parameter = nn.Parameter(gaussian(8, 12))
    parameter.grad = gaussian(9, 12)[:8]
    before = parameter.detach().double()
    exact = before * (1 - 0.1 * 0.01) - 0.1 * 0.2 * 12**0.5 * orthogonalised(
        parameter.grad.double().lerp(0.05 * parameter.grad.double(), 0.95)
    )
    Muon([parameter], lr=0.1, weight_decay=0.01).step()
    assert (parameter.double() - exact).abs().max() < 1e-6
