import torch

from raygeo.geometry.curvature.draws import named_generator, rademacher


def test_signs_depend_on_their_name_alone():
    x = rademacher(500, 3, named_generator("a", 0))
    assert x.shape == (500, 3)
    assert x.abs().eq(1).all()
    assert abs(float(x.mean())) < 0.1
    assert torch.equal(x, rademacher(500, 3, named_generator("a", 0)))
    for other in (("a", 1), ("b", 0)):
        assert abs(float((x * rademacher(500, 3, named_generator(*other))).mean())) < 0.1
