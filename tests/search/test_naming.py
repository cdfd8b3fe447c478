import pytest

from raygeo.search.naming import describe


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, ""),
        ({("loss", "beta"): 0.1}, "beta0.1"),
        ({("loss", "beta"): 0.1, ("lora", "r"): 8}, "beta0.1-r8"),
        ({("loss", "negative"): "token"}, "negative=token"),
        ({("loss", "scale"): True, ("loss", "most"): None}, "scale=true-most=null"),
        ({("loss", "clip"): 0.2, ("clip",): 1.0}, "loss.clip0.2-clip1"),
        ({("lora",): {"r": 4, "targets": ("q", "k")}}, "lora=r4,targets=q,k"),
    ],
)
def test_names(values, name):
    assert describe(values) == name
