import pickle
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from curvature_cases import make_probe
from delta_cases import low_rank, save_lora
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import t as student_t
from tiny import save_words, tiny_qwen
from torch.func import functional_call

from raygeo.analyses.curvature.analysis import ANALYSIS
from raygeo.analyses.curvature.density import SpectralDensity
from raygeo.analyses.curvature.extremes import ExtremeEigenvalues
from raygeo.analyses.curvature.settings import CurvatureSettings
from raygeo.analyses.curvature.span import SpanCurvature
from raygeo.cluster.execution import in_process
from raygeo.data.probes import Probe, nll
from raygeo.errors import StudentError
from raygeo.geometry.curvature.draws import named_generator, rademacher
from raygeo.geometry.curvature.operators import GGN, Hessian
from raygeo.geometry.curvature.spaces import SPAN, spaces_of_weights
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_student
from raygeo.models.mix import MixedWeights
from raygeo.models.run import Run
from raygeo.pipeline.context import StageContext
from raygeo.pipeline.journal import StoreJournal
from raygeo.store import Store
from raygeo.tables import BASE, LORA, to_arrow

pytestmark = pytest.mark.slow

WORDS = 13
TOUCHED = {"model.layers.0.self_attn.k_proj.weight": (8, 16), "model.norm.weight": (16,)}
SETTINGS = CurvatureSettings(
    top_k=3, bottom_k=2, max_steps=40, tolerance=1e-3, slq_probes=3, slq_steps=6,
    trace_probes=6, block_size=2, path_points=5, batch_size=5, density_points=800, ggn=True,
)  # fmt: skip
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
    save_words(folder, [f"w{i}" for i in range(WORDS)])
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


def curvature(settings, *arguments):
    """All workloads of the analysis."""
    return [kind(settings, *arguments) for kind in ANALYSIS.workloads]


def compute(workloads, wanted=lambda place: True):
    """The tables of the wanted tasks of some workloads, as they would be published."""
    found = {table: [] for table in ANALYSIS.tables}
    for workload in workloads:
        state = workload.setup()
        before = {name: value.clone() for name, value in state.model.state_dict().items()}
        for task in [task for task in workload.tasks() if wanted(task.payload)]:
            rows = workload.compute(state, task.payload)
            assert rows.keys() == workload.tables.keys()
            for table in rows:
                found[table] += rows[table]
        assert {name for name, _ in state.model.named_parameters()} <= before.keys()
        assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    tables = {table: to_arrow(table, rows, ANALYSIS.tables[table]) for table, rows in found.items()}
    for workload in workloads:
        for table, rows in workload.aggregate(tables).items():
            tables[table] = pa.concat_tables([tables[table], to_arrow(table, rows, ANALYSIS.tables[table])])
    return {table: rows.to_pandas() for table, rows in tables.items()}


@pytest.fixture(scope="module")
def tables(student, probe, runs):
    return compute(pickle.loads(pickle.dumps(curvature(SETTINGS, runs, student, probe))))


@pytest.fixture(scope="module")
def rows(tables):
    return tables["curvature"]


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
                found[run.name, "loss"] = operator.nll, operator.gradient().numpy()
    return found


def select(rows, run, operator, quantity, space="delta"):
    kept = rows[(rows.run == run) & (rows.quantity == quantity) & (rows.space == space)]
    return kept[kept.operator == operator] if operator else kept[kept.operator.isna()]


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("run", [BASE, "r0", "r1"])
def test_eigenvalues_and_trace_match_the_dense_matrix(rows, dense, run, operator):
    reach = student_t.ppf(0.975, SETTINGS.trace_probes - 1)
    matrix = dense[run, operator]
    eigenvalues = np.linalg.eigvalsh(matrix)
    top = select(rows, run, operator, "eigenvalue")
    assert top["index"].tolist() == [0, 1, 2]
    np.testing.assert_allclose(top.value, eigenvalues[::-1][:3], rtol=1e-4)
    assert (top.error <= 1e-3 * top.value).all()
    lowest = select(rows, run, operator, "min_eigenvalue").value
    np.testing.assert_allclose(lowest, eigenvalues[:2], atol=2e-4 * eigenvalues[-1])
    trace = select(rows, run, operator, "trace").iloc[0]
    assert abs(trace.value - np.trace(matrix)) < 5 * trace.error
    assert (trace.low, trace.high) == pytest.approx(
        (trace.value - reach * trace.error, trace.value + reach * trace.error)
    )


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_density_integrates_to_one_and_ritz_weights_sum_to_one(rows, operator):
    density = select(rows, "r0", operator, "density")
    assert density["index"].tolist() == list(range(800))
    known = select(rows, "r0", operator, "component")
    mass = 1 + (1 / 144 - known.groupby(["name", "x"]).value.mean()).sum()
    assert np.trapezoid(density.value, density.x) == pytest.approx(mass, abs=1e-3)
    assert (density.error >= 0).all()
    assert (density.low >= 0).all()
    assert ((density.low <= density.value.clip(lower=0)) & (density.value <= density.high)).all()
    (width,) = select(rows, "r0", operator, "density_width").value
    assert width >= 0.01 * (density.x.max() - density.x.min() - 8 * width)
    ritz = select(rows, "r0", operator, "ritz")
    np.testing.assert_allclose(ritz.groupby("index").value.sum(), [1, 1, 1], rtol=1e-12)
    coarse = select(rows, "r0", operator, "coarse ritz")
    np.testing.assert_allclose(coarse.groupby("index").value.sum(), [1, 1, 1], rtol=1e-12)
    assert len(coarse) == len(ritz) * 4 / 6
    top = select(rows, "r0", operator, "eigenvalue").value.max()
    assert density.x.max() > top
    assert density.x.min() < select(rows, "r0", operator, "min_eigenvalue").value.min()


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("run", [BASE, "r0", "r1"])
def test_directional_curvature_matches_the_dense_matrix(rows, dense, runs, run, operator):
    found = select(rows, run, operator, "directional", SPAN).set_index("name").value
    assert list(found.index) == ["r0", "r1"]
    for other in runs[1:]:
        delta = other.open()
        parts = [delta[name].dense() if name in delta else torch.zeros(shape) for name, shape in TOUCHED.items()]
        d = torch.cat([part.flatten() for part in parts]).double().numpy()
        matrix = dense[run, operator]
        expected = d @ matrix @ d / (d @ d)
        assert found[other.name] == pytest.approx(expected, rel=1e-4, abs=1e-6 * np.linalg.norm(matrix, 2))


def flat(run):
    """The delta of a run in the layout of ``TOUCHED``, fp64."""
    delta = run.open() or {}
    parts = [delta[name].dense() if name in delta else torch.zeros(shape) for name, shape in TOUCHED.items()]
    return torch.cat([part.flatten() for part in parts]).double().numpy()


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
@pytest.mark.parametrize("run", [BASE, "r1"])
def test_the_span_holds_the_projected_matrix(rows, dense, runs, run, operator):
    basis = np.linalg.qr(np.stack([flat(other) for other in runs[1:]], 1))[0]
    expected = np.linalg.eigvalsh(basis.T @ dense[run, operator] @ basis)[::-1]
    found = select(rows, run, operator, "eigenvalue", SPAN)
    np.testing.assert_allclose(found.value, expected, rtol=1e-4, atol=1e-5)
    assert set(found.parameters) == {2}
    assert select(rows, run, operator, "trace", SPAN).value.item() == pytest.approx(expected.sum(), rel=1e-4)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_overlaps_are_those_with_the_dense_eigenvectors(rows, dense, runs, operator):
    for at, others in ((runs[0], runs[1:]), (runs[1], runs[1:2]), (runs[2], runs[2:])):
        top = np.linalg.eigh(dense[at.name, operator])[1][:, -3:]
        found = select(rows, at.name, operator, "overlap").set_index("name")
        assert list(found.index) == [other.name for other in others]
        for other in others:
            d = flat(other)
            expected = ((top.T @ d) ** 2).sum() / (d @ d)
            assert found.value[other.name] == pytest.approx(expected, abs=1e-4)
            assert found.x[other.name] == 3 / 144


def test_predictions_follow_from_dense_derivatives_and_measurements_from_the_loss(tables, dense, student, probe, runs):
    model, _ = load_student(student, dtype=torch.float64, attention="eager")
    weights, batches = MixedWeights(model, TOUCHED), Probe.load(probe).batches(pad_id=3, batch_size=5)
    frame = tables["expansions"]
    assert frame["at"].isna().sum() == 3 * 5
    assert len(frame) == 3 * 5 * (1 + 2 * 2) + 5 * 2  # 3 paths, each from both ends, one also from the base
    ends = {run.name: run for run in runs}
    for row in frame.itertuples():
        a, b = ends[row.run_a], ends[row.run_b]
        if not isinstance(row.at, str):
            with weights.mixed([*a.mixture(1 - row.alpha), *b.mixture(row.alpha)]):
                assert row.nll == pytest.approx(nll(model, batches), rel=1e-5)
        else:
            (value, gradient), hessian = dense[row.at, "loss"], dense[row.at, row.operator]
            step = (1 - row.alpha) * flat(a) + row.alpha * flat(b) - flat(ends[row.at])
            assert row.nll == pytest.approx(value + gradient @ step + step @ hessian @ step / 2, rel=1e-4)


def test_blocks_have_spectra_of_their_own(student, probe, runs):
    settings = SETTINGS.model_copy(update={"spaces": ("blocks",), "ggn": False})
    workload = ExtremeEigenvalues(settings, runs, student, probe)
    assert {task.payload.label for task in workload.tasks()} == {"block 0", "block 1"}
    rows = compute([workload], lambda place: place.label == "block 1" and place.run.name in (BASE, "r1"))["curvature"]
    model, _ = load_student(student, dtype=torch.float64, attention="eager")
    batches = Probe.load(probe).batches(pad_id=3, batch_size=5)
    names = [name for name, _ in model.named_parameters() if ".layers.1." in name]
    with MixedWeights(model, TOUCHED).mixed(runs[2].mixture()):
        operator = Hessian(model, batches, names)
        product = LinearOperator(
            (operator.n,) * 2, lambda v: operator.matmat(torch.from_numpy(v)[:, None])[:, 0].numpy(), dtype=np.float64
        )
        expected = eigsh(product, 3, which="LA", tol=1e-8, return_eigenvectors=False)
    found = select(rows, "r1", "hessian", "eigenvalue", "block 1")
    assert set(found.parameters) == {operator.n}
    np.testing.assert_allclose(found.value, np.sort(expected)[::-1], rtol=1e-3)
    assert select(rows, BASE, "hessian", "overlap", "block 1").empty  # no delta touches it


def test_loss_and_gradient_are_given_once_for_each_run(rows, dense, runs):
    for run in runs:
        (nll,) = select(rows, run.name, None, "nll").value
        (norm,) = select(rows, run.name, None, "gradient_norm").value
        value, gradient = dense[run.name, "loss"]
        assert (nll, norm) == pytest.approx((value, np.linalg.norm(gradient)), rel=1e-5)
    assert set(rows[rows.space == "delta"].parameters) == {144}
    assert set(rows.tokens) == {22}


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_components_are_those_of_the_densitys_random_vectors(rows, dense, operator):
    vectors = np.linalg.eigh(dense["r0", operator])[1]
    found = select(rows, "r0", operator, "component").set_index(["name", "x", "index"]).value
    assert len(found) == 5 * 3
    for i in range(3):
        probe = rademacher(144, 1, named_generator("density", 0, i))[:, 0].double().numpy()
        for place, vector in enumerate(vectors.T[::-1][:3]):
            assert found["eigenvalue", place, i] == pytest.approx((vector @ probe) ** 2 / 144, rel=1e-3, abs=1e-4)
        if operator == "hessian":  # the GGN's smallest eigenvalues are zeros
            lowest = (vectors[:, 0] @ probe) ** 2 / 144
            assert found["min_eigenvalue", 0, i] == pytest.approx(lowest, rel=1e-2, abs=1e-4)


def test_densities_stand_without_extremes_and_with_ends_that_meet(student, probe, runs):
    settings = SETTINGS.model_copy(
        update={"spaces": ("delta",), "ggn": False, "top_k": 125, "bottom_k": 10, "max_steps": 70}
    )
    workloads = [kind(settings, runs[:2], student, probe) for kind in (ExtremeEigenvalues, SpectralDensity)]
    alone = compute(workloads[1:], lambda place: place.run.name == "r0")["curvature"]
    assert select(alone, "r0", "hessian", "density").value.notna().all()
    # 128 weights: 150 are asked for at the two ends, and no vector is counted twice.
    whole = compute(workloads, lambda place: place.run.name == "r0")["curvature"]
    parts = select(whole, "r0", "hessian", "component")
    assert parts.groupby("index").value.sum().max() <= 1 + 1e-5


def test_keys_stay_and_a_new_run_leaves_spectra_alone(student, probe, runs):
    def keys(settings=SETTINGS, runs=runs, probe=probe):
        found = [task for workload in curvature(settings, runs, student, probe) for task in workload.tasks()]
        return {task.label: task.key for task in found}

    def same(one, other):
        return {label for label, key in one.items() if other.get(label) == key}

    mine = keys()
    assert mine == keys()
    assert len(set(mine.values())) == len(mine) == 3 * 2 * (1 + 2) + 3 * 2 + 3
    wider = keys(runs=[*runs, Run("new", "n", runs[1].delta)])
    changed = mine.keys() - same(mine, wider)
    assert changed == {
        label for label in mine if "in the span" in label or label.startswith("extreme eigenvalues of base")
    }
    retrained = keys(runs=[*runs[:2], Run("r1", "other", runs[2].delta)])
    assert not any("r1" in label or "in the span" in label for label in same(mine, retrained))
    assert "density (0, 1) of r0 (hessian, delta)" in same(mine, retrained)
    narrower = same(mine, keys(runs=runs[:2]))  # less is touched
    assert not any("delta" in label or "in the span" in label for label in narrower)
    for change, parts in (
        ({"seed": 1}, ("NLL", "Hessian in")), ({"slq_steps": 7}, ("NLL", "Hessian in", "extreme")),
        ({"slq_probes": 5}, ("NLL", "Hessian in", "density (0, 1)")),
        ({"fp64_check": False}, ("NLL", "Hessian in", "density")),
        ({"density_points": 9}, tuple(mine)), ({"batch_size": 4}, ()), ({"keep_graphs": False}, ("NLL",)),
    ):  # fmt: skip
        kept = same(mine, keys(SETTINGS.model_copy(update=change)))
        assert kept == {label for label in mine if label.startswith(parts)} if parts else not kept


def test_a_run_measured_without_the_base_and_in_one_space_has_the_keys_of_the_study(student, probe, runs):
    study = {task.label: task.key for task in ExtremeEigenvalues(SETTINGS, runs, student, probe).tasks()}
    alone = SETTINGS.model_copy(update={"spaces": ("delta",), "ggn": False})
    found = {task.label: task.key for task in ExtremeEigenvalues(alone, runs[1:], student, probe).tasks()}
    assert len(found) == 2
    assert found.items() <= study.items()


def test_another_probe_changes_every_key(student, probe, runs, tmp_path):
    make_probe([(2, 1), (3, 7)], WORDS).save(tmp_path / "probe.npz")
    for kind in ANALYSIS.workloads:
        one, two = (kind(SETTINGS, runs, student, path).tasks() for path in (probe, tmp_path / "probe.npz"))
        assert not {task.key for task in one} & {task.key for task in two}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({}, ["extremes", "density", "span", "paths"]),
        ({"slq_probes": 0}, ["extremes", "span", "paths"]),
        ({"path_points": 0}, ["extremes", "density", "span"]),
        ({"spaces": ("delta",)}, ["extremes", "density"]),
        ({"spaces": ("span",)}, ["span", "paths"]),
    ],
)
def test_what_is_not_asked_for_makes_no_tasks(student, probe, runs, change, left):
    settings = CurvatureSettings(**SETTINGS.model_dump() | change)
    found = [workload.name for workload in curvature(settings, runs, student, probe) if workload.tasks()]
    assert found == [f"curvature.{name}" for name in left]


def test_spectra_stand_without_densities_and_spans_without_paths(student, probe, runs):
    settings = CurvatureSettings(max_steps=4, slq_probes=0, path_points=0, trace_probes=2)
    found = compute(curvature(settings, runs[:2], student, probe))
    assert set(found["curvature"].quantity) == {
        "eigenvalue", "min_eigenvalue", "trace", "nll", "gradient_norm", "overlap", "directional",
    }  # fmt: skip
    assert found["expansions"].empty


@pytest.mark.parametrize(("setting", "said"), [("slq_probes", "2 random vectors"), ("path_points", "3 points")])
def test_too_few_to_say_anything_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        CurvatureSettings(**{setting: 1})


def test_all_attention_and_lora_are_spaces(student, probe, tmp_path):
    entries = {f"model.layers.{i}.self_attn.q_proj": low_rank(16, 16, 2, seed=i, scale=0.01) for i in range(2)}
    runs = [Run(BASE, "k", None), Run("lora", "l", str(save_lora(tmp_path / "lora", entries)))]
    settings = CurvatureSettings(
        spaces=("all", "attention", "lora"), max_steps=12, top_k=1, tolerance=1e-3, slq_probes=2, slq_steps=2,
        trace_probes=2, density_points=8,
    )  # fmt: skip
    rows = compute(curvature(settings, runs, student, probe), lambda place: place.run.name == "lora")["curvature"]
    model, _ = load_student(student, dtype=torch.float64, attention="eager")
    sizes = dict(rows.groupby("space").parameters.max())
    assert sizes == {
        "all": sum(p.numel() for p in model.parameters()),
        "attention": sum(
            p.numel() for name, p in model.named_parameters() if ".self_attn." in name and "_proj" in name
        ),
        LORA: 2 * 2 * (16 + 16),
    }
    # With W = W0 + s B A the chain rule gives the loss of the factors; it is differentiated as one flat function here.
    batches = Probe.load(probe).batches(pad_id=3, batch_size=5)
    base = {f"{name}.weight": model.get_submodule(name).weight.detach().clone() for name in entries}

    def loss(vector):
        weights = {}
        for (name, entry), part in zip(entries.items(), vector.split(64), strict=True):
            a, b = part[:32].view(2, 16), part[32:].view(16, 2)
            weights[f"{name}.weight"] = base[f"{name}.weight"] + entry.scale * b @ a
        total = 0.0
        for batch in batches:
            logits = functional_call(model, weights, kwargs={"input_ids": batch.input_ids}).logits[:, :-1]
            logprobs = logits.double().log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
            total = total - logprobs[batch.mask].sum()
        return total / 22

    flat = torch.cat([torch.cat([e.a.flatten(), e.b.flatten()]) for e in entries.values()]).double()
    expected = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    found = select(rows, "lora", "hessian", "eigenvalue", LORA).value
    assert found.item() == pytest.approx(float(expected[-1]), rel=1e-3)
    assert set(rows.quantity) == {
        "eigenvalue", "min_eigenvalue", "component", "trace", "ritz", "coarse ritz", "density", "density_width", "nll",
        "gradient_norm", "overlap",
    }  # fmt: skip


def test_a_space_the_student_lacks_is_refused():
    with pytest.raises(StudentError, match=r"'attention'; it has \['head.weight'\]"):
        spaces_of_weights("attention", ["head.weight"], [])


def assert_near(found, expected):
    """All numbers the same to many digits, an eigenvalue's error too, which the rounding of a product would show in."""
    for row, again in zip(found, expected, strict=True):
        assert row.keys() == again.keys()
        for column, value in again.items():
            same = pytest.approx(value, rel=1e-3, abs=1e-9) if isinstance(value, float) else value
            assert row[column] == same, (column, again)


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (ExtremeEigenvalues, "extreme eigenvalues of r0 (hessian, delta)"),
        (SpectralDensity, "density (0, 1) of r1 (hessian, delta)"),
        (SpanCurvature, "Hessian in the span of r1 (ggn, span)"),
    ],
)
def test_a_task_that_was_killed_resumes_from_its_last_product(student, probe, runs, tmp_path, kind, label):
    store = Store(tmp_path)
    workload = kind(SETTINGS, runs, student, probe, partial(StoreJournal, store))
    state = workload.setup()
    (task,) = (task for task in workload.tasks() if task.label == label)
    whole = workload.compute(state, task.payload)
    unkept = kind(SETTINGS, runs, student, probe).compute(state, task.payload)
    assert_near(whole["curvature"], unkept["curvature"])
    products = sorted((tmp_path / "journals" / task.key).iterdir())
    for kept in {1, len(products) // 2} - {0}:
        for product in products[kept:]:
            product.unlink(missing_ok=True)
        assert workload.compute(state, task.payload) == whole
    workload.on_stored(task)
    assert not list((tmp_path / "journals").iterdir())


def test_publishing_assembles_densities_once_and_leaves_no_journal(student, probe, runs, tmp_path):
    store = Store(tmp_path)
    settings = CurvatureSettings(max_steps=4, top_k=1, slq_probes=2, slq_steps=2, trace_probes=2, path_points=3)
    workloads = curvature(settings, runs[:2], student, probe, partial(StoreJournal, store))
    context = StageContext(store, in_process)
    context.publish(*workloads)
    first = store.table("curvature")
    assert (context.made, context.reused) == (2 * 3 + 2 + 1, 0)
    assert first.to_pandas().groupby(["run", "quantity"]).size()["r0", "density"] == 256
    assert store.table("expansions", ANALYSIS.tables["expansions"]).num_rows == 3 * (1 + 2)
    assert not list((tmp_path / "journals").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "units").rglob("*.parquet")}
    context.publish(*workloads)
    assert (context.made, context.reused) == (9, 9)
    assert store.table("curvature").equals(first)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "units").rglob("*.parquet")}
