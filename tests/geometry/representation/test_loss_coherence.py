"""Gradients of examples as coherence sees them, against losses written out here on a model of their own."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
from study_cases import draw_rollouts
from tiny import save_tiny_student
from torch.nn.functional import logsigmoid

from raygeo.analyses.coherence.at_base import CoherenceAtBase
from raygeo.analyses.coherence.examples import draw_examples
from raygeo.analyses.coherence.workload import Coherence, CoherenceSettings
from raygeo.data.mismatched import mismatch
from raygeo.data.tokens import RolloutTokens
from raygeo.errors import DeltaError
from raygeo.generation.renderer import PlainRenderer
from raygeo.geometry.representation.coherence import coherence, cross_cosine
from raygeo.losses import ASFT, DPO, KTO, OTR, RFT, SFT, OfflineGRPO, OffPolicyGRPO
from raygeo.models.delta import save_full_delta
from raygeo.models.loading import load_student, load_tokenizer
from raygeo.models.run import Run
from raygeo.store import Store
from raygeo.tables import BASE, to_arrow

LOSSES = {"sft": SFT(), "dpo": DPO(beta=0.3), "kto": KTO(beta=0.3), "again": SFT()}


@dataclass(frozen=True)
class Setting:
    store: Store
    student: str
    tokens: str

    def write(self, key, **changes):
        """The rollouts again under ``key``, each row changed as ``changes`` says."""
        rows = self.store.read_unit("rollouts", "rollouts").to_pylist()
        rows = [row | {name: change(row) for name, change in changes.items()} for row in rows]
        self.store.write_unit(key, {"rollouts": to_arrow("rollouts", rows)})
        return key


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """An untrained student and rollouts of 12 prompts, with made-up log-probabilities of their writer."""
    root = tmp_path_factory.mktemp("coherence")
    rows = draw_rollouts(12).to_pylist()
    folder = save_tiny_student(root / "student")
    tokens = RolloutTokens.encode(
        PlainRenderer(load_tokenizer(folder)), [(row["prompt"], row["completion"], True) for row in rows]
    )
    (root / "tokens").mkdir()
    tokens.save(root / "tokens")
    rng = np.random.default_rng(0)
    for row, length in zip(rows, tokens.completion_lengths, strict=True):
        row["logprobs"] = -rng.exponential(size=length)
    store = Store(root / "store")
    store.write_unit("rollouts", {"rollouts": to_arrow("rollouts", rows)})
    return Setting(store, str(folder), str(root / "tokens"))


@pytest.fixture(scope="module")
def runs(setting, tmp_path_factory):
    """The base and a run for each loss, whose blocks moved but whose norms and embeddings did not."""
    folder, (model, _) = tmp_path_factory.mktemp("deltas"), load_student(setting.student)
    found = [Run(BASE, "k", None)]
    for seed, name in enumerate(LOSSES):
        noise = torch.Generator().manual_seed(seed)
        moved = {n: p.shape for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2}
        save_full_delta(folder / name, {n: 0.02 * torch.randn(s, generator=noise) for n, s in moved.items()})
        found.append(Run(name, f"k-{name}", str(folder / name)))
    return found


def workload(setting, runs, losses=None, rollouts="rollouts", kind=Coherence, **options):
    return kind(
        CoherenceSettings(**{"examples": 5, "seed": 3, **options}),
        runs,
        setting.student,
        losses or LOSSES,
        setting.store,
        rollouts,
        setting.tokens,
    )


def at_base(setting, runs, *given, **options):
    """The tasks at the base, their state, and the tables that they and what follows from them make."""
    asked = workload(setting, runs, *given, kind=CoherenceAtBase, **options)
    tasks, state = asked.tasks(), asked.setup()
    found = [row for task in tasks for row in asked.compute(state, task.payload)["gradients"]]
    made = asked.aggregate({"gradients": to_arrow("gradients", found, CoherenceAtBase.tables["gradients"])})
    return tasks, state, made


@pytest.fixture(scope="module")
def measured(setting, runs):
    """All tasks, the state of those at the base, and the rows of both tables."""
    tasks, state, made = at_base(setting, runs)
    asked = workload(setting, runs)
    own, ready = asked.tasks(), asked.setup()
    rows = [row for task in own for row in asked.compute(ready, task.payload)["coherence"]]
    return [*tasks, *own], state, {**made, "coherence": [*made["coherence"], *rows]}


class Plain:
    """A model of its own, and the three losses written out, one example at a time."""

    def __init__(self, setting, run: Run | None, state):
        self.base, _ = load_student(setting.student)
        self.model, _ = load_student(setting.student)
        entries = {} if run is None else run.open() or {}
        with torch.no_grad():
            for name, entry in entries.items():
                self.model.get_parameter(name).add_(entry.dense())
        self.parameters = [self.model.get_parameter(name) for name in state.parameters]

    def logp(self, sequence, model=None):
        ids = torch.from_numpy(sequence.ids)
        logs = (model or self.model)(ids[None]).logits[0, :-1].log_softmax(-1)
        return logs.gather(-1, ids[1:, None])[sequence.prompt_length - 1 :].sum()

    def ratio(self, sequence):
        with torch.no_grad():
            reference = self.logp(sequence, self.base)
        return self.logp(sequence) - reference

    def total(self, drawn, index):
        example, tokens = drawn.data.examples[index], drawn.data.tokens
        rows = [tokens[row] for row in example.rows]
        if drawn.loss.type == "sft":
            return -self.logp(rows[0])
        if drawn.loss.type == "dpo":
            return -logsigmoid(0.3 * (self.ratio(rows[0]) - self.ratio(rows[1])))
        with torch.no_grad():
            foreign = drawn.data.mismatched.tokens
            z = torch.stack([self.ratio(foreign[e.rows[0]]) for e in drawn.data.examples]).mean().clamp(min=0)
        return torch.sigmoid(0.3 * np.sign(example.weights[0]) * (z - self.ratio(rows[0])))

    def gradients(self, drawn):
        rows = []
        for index in range(len(drawn.prompts)):
            parts = torch.autograd.grad(self.total(drawn, index), self.parameters)
            rows.append(torch.cat([part.flatten() for part in parts]).double())
        return torch.stack(rows).numpy()


@pytest.mark.parametrize("at", ["base", "run"])
@pytest.mark.parametrize("name", ["sft", "dpo", "kto"])
def test_coherence_is_that_of_gradients_stacked_one_by_one(setting, runs, measured, name, at):
    _, state, found = measured
    drawn = state.examples(LOSSES[name])
    run = next(run for run in runs if run.name == name) if at == "run" else None
    g = Plain(setting, run, state).gradients(drawn)
    whole, pairwise = coherence(g @ g.T)
    [row] = [r for r in found["coherence"] if (r["run"], r["at"]) == (name, at)]
    assert (row["n"], row["parameters"]) == (5, g.shape[1])
    for column, estimate in (("coherence", whole), ("pairwise", pairwise)):
        values = [row[column], row[f"{column}_low"], row[f"{column}_high"]]
        assert values == pytest.approx(list(estimate), rel=1e-3, abs=1e-4)
    units = {"sft": sum(s.completion_length for s in map(drawn.data.tokens.__getitem__, range(5)))}.get(name, 5)
    assert row["gradient_norm"] == pytest.approx(np.linalg.norm(g.sum(0)) / units, rel=1e-4)


def test_cosines_between_losses_are_those_at_the_base_on_the_same_prompts(setting, measured):
    _, state, found = measured
    plain = Plain(setting, None, state)
    g = {name: plain.gradients(state.examples(LOSSES[name])) for name in ("sft", "dpo", "kto")}
    assert len({tuple(drawn.prompts) for drawn in state.opened.values()}) == 1
    rows = {(row["run_a"], row["run_b"]): row for row in found["gradient_cosines"]}
    assert list(rows) == [("sft", "dpo"), ("sft", "kto"), ("dpo", "kto")], "runs of one loss are one"
    for (a, b), row in rows.items():
        cosine, expected = cross_cosine(g[a] @ g[a].T, g[b] @ g[b].T, g[a] @ g[b].T)
        assert row["n"] == 5
        assert row["cosine"] == pytest.approx(cosine.value, abs=1e-4)
        assert row["expected"] == pytest.approx(expected.value, abs=1e-3)
    mean = [rows_.mean(0) for rows_ in (g["sft"], g["dpo"])]
    assert rows["sft", "dpo"]["cosine"] == pytest.approx(
        mean[0] @ mean[1] / np.linalg.norm(mean[0]) / np.linalg.norm(mean[1]), abs=1e-4
    )


def test_rows_fit_their_tables_and_the_base_comes_back(setting, measured):
    tasks, state, found = measured
    assert [task.label for task in tasks][:2] == ["coherence at the base", "coherence of sft"]
    rows = found["coherence"]
    assert to_arrow("coherence", rows, Coherence.tables["coherence"]).num_rows == 8
    cosines = to_arrow("gradient_cosines", found["gradient_cosines"], CoherenceAtBase.tables["gradient_cosines"])
    assert cosines.num_rows == 3
    by = {(row["run"], row["at"]): row for row in rows}
    assert by["again", "base"] == by["sft", "base"] | {"run": "again"}
    assert by["again", "run"]["coherence"] != by["sft", "run"]["coherence"]
    base, _ = load_student(setting.student)
    assert all(torch.equal(value, base.get_parameter(name)) for name, value in state.weights.model.named_parameters())


def test_cutting_the_weights_changes_nothing_beyond_rounding(setting, runs, measured):
    _, state, found = measured
    held = 15 * 9000
    tasks, _, rows = at_base(setting, runs, held_gradients=held)
    assert len(tasks) == -(-state.size // 9000) > 1
    for row, other in zip(rows["coherence"], found["coherence"], strict=False):
        assert row["coherence"] == pytest.approx(other["coherence"], rel=1e-5)
    for row, other in zip(rows["gradient_cosines"], found["gradient_cosines"], strict=True):
        assert row["cosine"] == pytest.approx(other["cosine"], rel=1e-5)
    asked = workload(setting, runs, held_gradients=5 * 9000)
    [row] = asked.compute(asked.setup(), runs[1])["coherence"]
    [other] = [r for r in found["coherence"] if (r["run"], r["at"]) == ("sft", "run")]
    assert row["coherence"] == pytest.approx(other["coherence"], rel=1e-5)


def test_projections_are_off_by_what_they_say(setting, runs, measured):
    """At the base and at a run, of every estimate: within a few standard errors of the exact one, which are small."""
    _, state, found = measured
    exact = {(row["run"], row["at"]): row for row in found["coherence"]}
    tasks, projecting, rows = at_base(setting, runs, projections=4096)
    assert [task.label for task in tasks] == [f"gradients of {name} at the base" for name in ("sft", "dpo", "kto")]
    asked = workload(setting, runs, projections=4096)
    rows["coherence"] += asked.compute(projecting, runs[1])["coherence"]
    assert len(rows["coherence"]) == 5
    for row in rows["coherence"]:
        other = exact[row["run"], row["at"]]
        assert 0 < row["pairwise_error"] < 0.05
        assert row["pairwise"] == pytest.approx(other["pairwise"], abs=4 * row["pairwise_error"])
        assert row["pairwise"] != other["pairwise"]
        assert other["pairwise_error"] is None
        assert (row["n"], row["parameters"]) == (5, state.size)
    told = []
    for row, other in zip(rows["gradient_cosines"], found["gradient_cosines"], strict=True):
        assert 0 < row["cosine_error"] < 0.05
        assert row["cosine"] == pytest.approx(other["cosine"], abs=4 * row["cosine_error"])
        assert (other["cosine_error"], other["expected_error"]) == (None, None)
        if row["expected_error"] is not None:  # so few prompts may leave a length undefined
            told.append(row["expected"] == pytest.approx(other["expected"], abs=4 * row["expected_error"]))
    assert told
    assert all(told)


def test_keys_follow_settings_losses_and_runs(setting, runs, measured):
    keys = [task.key for task in measured[0]]
    assert keys[1:] == [task.key for task in workload(setting, runs).tasks()]
    assert len(set(keys)) == 5
    for changed in (workload(setting, runs, seed=4, kind=kind).tasks() for kind in (Coherence, CoherenceAtBase)):
        assert not set(keys) & {task.key for task in changed}
    for kind in (Coherence, CoherenceAtBase):
        changed = workload(setting, runs, LOSSES | {"kto": KTO(beta=0.2)}, kind=kind).tasks()
        assert not set(keys) & {task.key for task in changed}
    fewer = [task.key for task in workload(setting, [run for run in runs if run.name != "again"]).tasks()]
    assert fewer == keys[1:4]
    assert workload(setting, runs, projections=None).tasks()[0].key == keys[1], "exact as before there was a choice"


def test_keys_at_the_base_follow_losses_and_not_seeds(setting, runs):
    def keys(members, **options):
        return [task.key for task in workload(setting, members, kind=CoherenceAtBase, **options).tasks()]

    few = [run for run in runs if run.name != "again"]
    assert keys(runs) == keys(few), "what is added has the loss of another run"
    assert keys(runs, projections=2048) == keys(few, projections=2048)
    assert keys(few) != keys(few[:-1])
    assert not set(keys(runs, projections=2048)) & set(keys(runs, projections=4096))
    assert not keys(runs[:1])


def test_sft_and_rft_have_one_gradient_where_all_rollouts_are_right(setting, runs):
    right = setting.write("right", correct=lambda row: True, reward=lambda row: 1.0)
    [row] = at_base(setting, [runs[1], runs[2]], {"sft": SFT(), "dpo": RFT()}, right)[2]["gradient_cosines"]
    assert row["cosine"] == pytest.approx(1, abs=1e-12)
    assert row["expected"] in (None, pytest.approx(1, abs=1e-12))


def test_what_losses_need_of_the_base_is_there(setting, runs):
    """With a policy equal to the base, ratios are 1 and divergences vanish, however references are stored."""
    ppo, sequence = OfflineGRPO(surrogate="ppo"), OfflineGRPO(surrogate="logp")
    losses = {"sft": ppo, "dpo": sequence, "kto": ASFT(kl_weight=5.0), "again": OffPolicyGRPO()}
    _, state, rows = at_base(setting, runs, losses)
    cosines = {(row["run_a"], row["run_b"]): row["cosine"] for row in rows["gradient_cosines"]}
    assert cosines["sft", "dpo"] == pytest.approx(1, abs=1e-6), "at the base the ratio's gradient is that of log p"
    assert all(row["coherence"] > 0 for row in rows["coherence"])
    drawn = state.examples(losses["again"])
    table = setting.store.read_unit("rollouts", "rollouts").to_pylist()
    recorded = [value for row in table for value in row["logprobs"]]
    assert set(drawn.data.behaviour.tolist()) <= set(np.array(recorded, dtype=np.float32).tolist())


def draws(rollouts: pa.Table, *losses, count=4, seed=0):
    return draw_examples(losses, rollouts, count, seed)


@pytest.fixture(scope="module")
def rollouts():
    """Ten prompts of four rollouts; prompts 0 to 2 are all right, 3 and 4 all wrong, the others mixed."""
    verdicts = [[True] * 4] * 3 + [[False] * 4] * 2 + [[True, False, True, False]] * 5
    rows = [
        {"prompt_id": f"p{i}", "sample": j, "correct": ok, "reward": float(ok), "truncated": False, "split": "train"}
        for i, each in enumerate(verdicts)
        for j, ok in enumerate(each)
    ]
    return to_arrow("rollouts", rows)


def test_prompts_that_every_loss_learns_from_come_first(rollouts):
    found = draws(rollouts, SFT(), RFT(), DPO())
    prompts = {tuple(chosen) for chosen in found.values()}
    assert len(prompts) == 1
    assert set(*prompts) <= {"p5", "p6", "p7", "p8", "p9"}
    more = draws(rollouts, SFT(), RFT(), DPO(), count=9)
    assert [len(chosen) for chosen in more.values()] == [9, 8, 5]
    assert all(list(chosen)[:5] == list(more[DPO()]) for chosen in more.values())


def test_losses_take_the_same_rows_where_they_can(rollouts):
    found = draws(rollouts, SFT(), RFT(), count=8)
    rows = {loss: {prompt: e.rows[0] for prompt, e in chosen.items()} for loss, chosen in found.items()}
    correct = rollouts["correct"].to_pylist()
    same = [prompt for prompt, row in rows[SFT()].items() if correct[row]]
    assert same
    assert all(rows[SFT()][prompt] == rows[RFT()][prompt] for prompt in same)
    assert all(correct[row] for row in rows[RFT()].values())
    assert draws(rollouts, SFT()) == draws(rollouts, SFT())
    assert draws(rollouts, SFT()) != draws(rollouts, SFT(), seed=1)


def test_weights_are_those_of_the_whole_group(rollouts):
    loss = OfflineGRPO(bias=0.0)
    weights = {w for example in draws(rollouts, loss)[loss].values() for w in example.weights}
    assert weights <= {0.5, -0.5}


def test_too_few_prompts_give_no_number(setting, runs):
    few = setting.write("few", correct=lambda row: int(row["prompt_id"]) < 2 and row["sample"] == 0)
    _, _, rows = at_base(setting, runs[:3], {"sft": SFT(), "dpo": DPO()}, few)
    by = {row["run"]: row for row in rows["coherence"]}
    assert by["sft"]["n"] == 5
    assert by["dpo"] == {"run": "dpo", "at": "base", "n": 2}
    assert rows["gradient_cosines"] == [{"run_a": "sft", "run_b": "dpo", "n": 2}]


def test_random_draws_of_a_loss_are_those_of_the_seed(setting, runs):
    found = []
    for seed in (3, 3, 4):
        _, _, rows = at_base(setting, runs[:2], {"sft": OTR(samples=4)}, seed=seed)
        found.append([row["coherence"] for row in rows["coherence"]])
    assert found[0] == found[1] != found[2]


def test_a_diverged_run_is_refused(setting, tmp_path):
    save_full_delta(tmp_path / "bad", {"model.layers.0.mlp.up_proj.weight": torch.full((64, 32), float("inf"))})
    asked = workload(setting, [Run("bad", "k", str(tmp_path / "bad"))], {"bad": SFT()})
    with pytest.raises(DeltaError, match="bad"):
        asked.compute(asked.setup(), asked.tasks()[0].payload)


def test_tokens_are_laid_out_as_they_were(setting):
    tokens = RolloutTokens.open(setting.tokens)
    again = RolloutTokens.of([tokens[row] for row in (3, 1)])
    assert [s.ids.tolist() for s in (again[0], again[1])] == [tokens[row].ids.tolist() for row in (3, 1)]
    assert again.prompt_lengths.tolist() == tokens.prompt_lengths[[3, 1]].tolist()
    assert len(mismatch(again, ["a", "b"], 10**6)) == 2
