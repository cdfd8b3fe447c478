from types import SimpleNamespace

import torch

from raygeo.geometry.curvature.draws import named_generator, rademacher, random_signs


def test_signs_depend_on_their_name_alone():
    x = rademacher(500, 3, named_generator("a", 0))
    assert x.shape == (500, 3)
    assert x.abs().eq(1).all()
    assert abs(float(x.mean())) < 0.1
    assert torch.equal(x, rademacher(500, 3, named_generator("a", 0)))
    for other in (("a", 1), ("b", 0)):
        assert abs(float((x * rademacher(500, 3, named_generator(*other))).mean())) < 0.1


def test_a_vector_is_the_same_alone_and_among_others():
    operator = SimpleNamespace(n=500, dtype=torch.float64, device="cpu")
    x = random_signs(operator, "trace", range(4), seed=1)
    assert (x.shape, x.dtype) == ((500, 4), torch.float64)
    assert torch.equal(random_signs(operator, "trace", [2], seed=1), x[:, 2:3])
    gram = (x.T @ x / 500 - torch.eye(4)).abs()
    assert gram.max() < 0.2
    for other in (random_signs(operator, "trace", range(4)), random_signs(operator, "density", range(4), seed=1)):
        assert (x * other).mean(0).abs().max() < 0.2
    assert random_signs(operator, "trace", []).shape == (500, 0)
