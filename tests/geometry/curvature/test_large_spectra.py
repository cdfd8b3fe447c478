"""The workload with what makes it fit large students: products by layer and by differences, vectors held elsewhere."""

import pytest
from curvature_cases import make_probe
from pydantic import ValidationError
from tiny import save_tiny_student

from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings, ExtremesSettings
from raygeo.models.loading import Loading
from raygeo.models.run import Run
from raygeo.settings import content_key

pytestmark = pytest.mark.slow

SETTINGS = CurvatureSettings(
    spaces=("attention",), top_k=2, max_steps=14, tolerance=1e-2, trace_probes=2, slq_probes=0, batch_size=2
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    make_probe([(2, 4), (3, 6), (1, 3)], 40).save(folder / "probe.npz")
    return save_tiny_student(folder / "base"), folder / "probe.npz"


def rows(inputs, loading=None, **changes):
    base, probe = inputs
    run = Run("base", "k", None, loading=loading or Loading())
    workload = ExtremeEigenvalues(SETTINGS.model_copy(update=changes), [run], base, probe)
    [task] = workload.tasks()
    found = workload.compute(workload.setup(), task.payload)["curvature"]
    return {(row["quantity"], row.get("index"), row.get("name")): row for row in found}


@pytest.fixture(scope="module")
def exact(inputs):
    return rows(inputs)


def agree(found, expected, tolerance):
    for index in range(2):
        value, known = (each["eigenvalue", index, None] for each in (found, expected))
        assert abs(value["value"] - known["value"]) <= value["error"] + known["error"]
        assert value["value"] == pytest.approx(known["value"], rel=tolerance)
    assert found["gradient_norm", None, None]["value"] == pytest.approx(
        expected["gradient_norm", None, None]["value"], rel=1e-5
    )


def test_products_by_layer_give_the_same_spectrum_and_trace(inputs, exact):
    found = rows(inputs, product="by_layer", vectors_on="cpu")
    agree(found, exact, 1e-5)
    assert found["trace", None, None]["value"] == pytest.approx(exact["trace", None, None]["value"], rel=1e-3)


def test_a_bounded_basis_gives_the_same_eigenvalues(inputs):
    agree(rows(inputs, max_basis=8, max_steps=60), rows(inputs, max_steps=40), 1e-3)


def test_a_student_held_in_bf16_is_differentiated_in_fp32(inputs, exact):
    assert rows(inputs, Loading(dtype="bf16")) == exact


@pytest.mark.parametrize("check", [True, False])
def test_differences_of_gradients_tell_their_error(inputs, exact, check):
    found = rows(inputs, product="gradient_difference", fp64_check=check)
    agree(found, exact, 1e-2)
    error = found["product_error", None, None if check else "step"]
    assert 0 < error["value"] < 5e-2
    assert error["x"] in (3e-4, 1e-3, 3e-3)


def test_what_is_not_asked_for_leaves_keys_as_they_were():
    settings = ExtremesSettings()
    assert not {"product", "vectors_on", "max_basis"} & settings.model_dump().keys()
    assert content_key(settings) != content_key(settings.model_copy(update={"max_basis": 20}))


def test_impossible_settings_are_refused():
    with pytest.raises(ValidationError, match=r"max_basis is 6; .* at least 9"):
        CurvatureSettings(max_basis=6)
    with pytest.raises(ValidationError, match="no derivative of a gradient"):
        CurvatureSettings(ggn=True, product="gradient_difference")
