import pickle

import numpy as np
import pytest
import torch
from curvature_cases import make_probe
from student_cases import tiny_qwen
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.geometry.curvature.spectra import Curvature, CurvatureSettings
from raygeo.geometry.probes import Probe
from raygeo.students.delta import save_full_delta
from raygeo.students.loading import load_student
from raygeo.students.mix import MixedWeights
from raygeo.students.run import Run
from raygeo.tables import BASE, to_arrow

WORDS = 13
TOUCHED = {"model.layers.0.self_attn.k_proj.weight": (8, 16), "model.norm.weight": (16,)}
SETTINGS = CurvatureSettings(
    top_k=3, max_steps=60, tolerance=1e-4, slq_probes=3, slq_steps=6, batch_size=2, density_points=800, ggn=True
)
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16,
    "initializer_range": 0.3,
}  # fmt: skip
OPERATORS = {"hessian": Hessian, "ggn": GGN}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    model = tiny_qwen(WORDS, **SMALL, pad_token_id=0, eos_token_id=1)
    folder = tmp_path_factory.mktemp("student")
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    path = tmp_path_factory.mktemp("probe") / "probe.npz"
    make_probe([(2, 1), (3, 7), (1, 2), (2, 9), (4, 3)], WORDS).save(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    found = [Run(BASE, "k", None)]
    for i, names in enumerate([list(TOUCHED)[:1], list(TOUCHED)]):
        noise = torch.Generator().manual_seed(i)
        save_full_delta(folder / str(i), {name: 0.2 * torch.randn(TOUCHED[name], generator=noise) for name in names})
        found.append(Run(f"r{i}", f"k{i}", str(folder / str(i))))
    return found


@pytest.fixture(scope="module")
def rows(student, probe, runs):
    workload = pickle.loads(pickle.dumps(Curvature(SETTINGS, runs, student, probe)))
    state = workload.setup()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    found = [row for task in workload.tasks() for row in workload.compute(state, task.payload)["curvature"]]
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    return to_arrow("curvature", found).to_pandas()


@pytest.fixture(scope="module")
def dense(student, probe, runs):
    """Dense fp64 matrices by run and operator, in the layout of ``TOUCHED``."""
    model, _ = load_student(student, dtype=torch.float64)
    weights = MixedWeights(model, TOUCHED)
    batches = Probe.load(probe).batches(pad_id=3, batch_size=5)
    found = {}
    for run in runs:
        with weights.mixed(run.mixture()):
            for name, kind in OPERATORS.items():
                operator = kind(model, batches, list(TOUCHED))
                found[run.name, name] = operator.matmat(torch.eye(144, dtype=torch.float64)).numpy()
                found[run.name, "loss"] = operator.nll, float(operator.gradient().norm())
    return found


def select(rows, run, operator, quantity):
    kept = rows[(rows.run == run) & (rows.quantity == quantity)]
    return kept[kept.operator == operator] if operator else kept[kept.operator.isna()]


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("run", [BASE, "r0", "r1"])
def test_eigenvalues_and_trace_match_the_dense_matrix(rows, dense, run, operator):
    matrix = dense[run, operator]
    eigenvalues = np.linalg.eigvalsh(matrix)
    top = select(rows, run, operator, "eigenvalue")
    assert top["index"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(top.value, eigenvalues[::-1][:3], rtol=1e-4)
    assert (top.error <= 1e-4 * top.value).all()
    (lowest,) = select(rows, run, operator, "min_eigenvalue").value
    assert lowest == pytest.approx(eigenvalues[0], abs=2e-4 * eigenvalues[-1])
    trace = select(rows, run, operator, "trace").iloc[0]
    assert abs(trace.value - np.trace(matrix)) < 5 * trace.error


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_density_integrates_to_one_and_ritz_weights_sum_to_one(rows, operator):
    density = select(rows, "r0", operator, "density")
    assert density["index"].tolist() == list(range(800))
    assert np.trapezoid(density.value, density.x) == pytest.approx(1, abs=1e-3)
    assert (density.error >= 0).all()
    ritz = select(rows, "r0", operator, "ritz")
    np.testing.assert_allclose(ritz.groupby("index").value.sum(), [1, 1, 1], rtol=1e-12)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("run", [BASE, "r0", "r1"])
def test_directional_curvature_matches_the_dense_matrix(rows, dense, runs, run, operator):
    found = select(rows, run, operator, "directional").set_index("name").value
    assert list(found.index) == ["r0", "r1"]
    for other in runs[1:]:
        delta = other.open()
        parts = [delta[name].dense() if name in delta else torch.zeros(shape) for name, shape in TOUCHED.items()]
        d = torch.cat([part.flatten() for part in parts]).double().numpy()
        matrix = dense[run, operator]
        expected = d @ matrix @ d / (d @ d)
        assert found[other.name] == pytest.approx(expected, rel=1e-4, abs=1e-6 * np.linalg.norm(matrix, 2))


def test_loss_and_gradient_are_given_once_for_each_run(rows, dense, runs):
    for run in runs:
        (nll,) = select(rows, run.name, None, "nll").value
        (norm,) = select(rows, run.name, None, "gradient_norm").value
        assert (nll, norm) == pytest.approx(dense[run.name, "loss"], rel=1e-5)
    assert set(rows.space) == {"weights"}
    assert set(rows.parameters) == {144}
    assert set(rows.tokens) == {22}


def test_keys_stay_and_a_new_run_leaves_spectra_alone(student, probe, runs):
    def keys(settings=SETTINGS, runs=runs, probe=probe):
        return {task.label: task.key for task in Curvature(settings, runs, student, probe).tasks()}

    assert keys() == keys()
    assert len(set(keys().values())) == 6
    wider = keys(runs=[*runs, Run("new", "n", runs[1].delta)])
    assert {label: key for label, key in keys().items() if label.startswith("spectrum")}.items() <= wider.items()
    assert not set(wider.values()) & {key for label, key in keys().items() if "along" in label}
    retrained = keys(runs=[*runs[:2], Run("r1", "other", runs[2].delta)])
    assert [label for label, key in keys().items() if retrained[label] == key] == ["spectrum of base", "spectrum of r0"]
    narrower = keys(runs=runs[:2])
    assert not set(narrower.values()) & set(keys().values())
    assert not set(keys(SETTINGS.model_copy(update={"seed": 1})).values()) & set(keys().values())


def test_another_probe_changes_every_key(student, probe, runs, tmp_path):
    make_probe([(2, 1), (3, 7)], WORDS).save(tmp_path / "probe.npz")
    one, two = (Curvature(SETTINGS, runs, student, path).tasks() for path in (probe, tmp_path / "probe.npz"))
    assert not {task.key for task in one} & {task.key for task in two}


def test_all_parameters_can_be_the_space(student, probe, runs):
    settings = CurvatureSettings(parameters="all", max_steps=3, slq_probes=2, slq_steps=2, density_points=8)
    workload = Curvature(settings, runs[:1], student, probe)
    (task,) = workload.tasks()
    found = workload.compute(workload.setup(), task.payload)["curvature"]
    model, _ = load_student(student)
    assert {row["parameters"] for row in found} == {sum(p.numel() for p in model.parameters())}
    assert {row["quantity"] for row in found} == {
        "eigenvalue", "min_eigenvalue", "trace", "ritz", "density", "nll", "gradient_norm"
    }  # fmt: skip
