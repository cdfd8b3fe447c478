"""A study's plan: what it holds against what is allocated, what does not fit, and settings with which it does."""

import json
from dataclasses import replace

import pytest
import torch
from footprint_cases import SHAPE, allocated, random_batch, real_model
from rich.console import Console
from study_cases import tiny_study
from transformers import Qwen3Config

from raygeo.errors import ClusterError, ConfigError, StudentError
from raygeo.footprint.devices import DEVICES, GIB, cpu, device_of_card, find_device
from raygeo.footprint.model import DryModel
from raygeo.footprint.need import Need, Texts
from raygeo.losses.batches import MicroBatch, micro_loss
from raygeo.losses.registry import LOSSES
from raygeo.models.likelihood import Likelihood
from raygeo.models.lora import LoraSettings, attach_lora
from raygeo.pipeline.budget.check import check_memory
from raygeo.pipeline.budget.cluster import Cluster
from raygeo.pipeline.budget.command import plan_study
from raygeo.pipeline.budget.facts import Facts, find_facts
from raygeo.pipeline.budget.plan import changed_study, fewest, make_plan, misfit
from raygeo.pipeline.budget.rates import Rate, keep_rate, read_rates
from raygeo.pipeline.budget.stages import STAGES, Shapes, training_memory
from raygeo.pipeline.config import parse_study
from raygeo.training.settings import TrainingSettings

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

MACHINE = Cluster(None, 0, 8 * GIB, 2, "a machine")
WIDE = Qwen3Config(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8,
    head_dim=128, vocab_size=32000, tie_word_embeddings=True,
)  # fmt: skip


def study(**changes):
    return parse_study(tiny_study(**changes))


def asking(**asked):
    """A study whose geometry is these analyses alone, on a GPU."""
    geometry = dict.fromkeys(study().geometry.asked()) | asked
    training = {"steps": 4, "batch_size": 32, "gpus": 1}
    return study(geometry=geometry, training=training, actors={"gpus": 1}, evaluation={"heldout": False})


def card(gb: float) -> Cluster:
    device = find_device(f"1e14:{gb}", 0, 1)
    return Cluster(device, 1, 64 * GIB, 4, "a card")


def facts(config=WIDE, longest=512):
    texts = Texts(100, longest / 2, longest)
    return Facts(config, texts, texts, texts, 0.8, {"heldout": texts}, ())


@pytest.mark.parametrize("micro", [2, 8])
@pytest.mark.parametrize(
    ("precision", "lora"),
    [("fp32", None), ("fp32", LoraSettings()), ("bf16", LoraSettings())],
    ids=["full fp32", "lora fp32", "lora bf16"],
)
def test_memory_of_training_is_what_a_step_allocates(precision, lora, micro):
    loss = LOSSES["sft"]()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    settings = TrainingSettings(batch_size=8, micro_batch_size=micro, precision=precision, lora=lora)

    def train() -> None:
        model = real_model(dtype=dtype)
        model = model if lora is None else attach_lora(model, lora, 0)
        optimizer = torch.optim.AdamW([v for v in model.parameters() if v.requires_grad], fused=True)
        for _ in range(2):
            for _ in range(8 // micro):
                batch = random_batch(micro, 96)
                inputs = {"mask": batch.mask, "weights": torch.ones(micro), "reference_logprobs": None}
                micro_loss(Likelihood(model), loss, MicroBatch(batch, {}, inputs), None).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    real_model(dtype=dtype)  # whatever is allocated once
    counted = training_memory(DryModel(SHAPE, dtype, lora), loss, settings, 96, gpu=False)
    assert sum(counted.values()) == pytest.approx(allocated(train), rel=0.15)


def test_zero_shards_what_it_says():
    model, loss = DryModel(WIDE), LOSSES["sft"]()
    entries = model.parameters

    def memory(**given):
        return training_memory(model, loss, TrainingSettings(batch_size=8, micro_batch_size=1, **given), 64, gpu=True)

    alone = memory()
    assert alone["optimizer: moments"] == 8 * entries
    assert "optimizer: master copies" not in alone
    for stage in (1, 2, 3):
        shared = memory(zero_stage=stage, workers=4)
        assert shared["optimizer: moments"] == 2 * entries
        assert shared["optimizer: master copies"] == entries
        assert shared["gradients"] == (4 * entries if stage == 1 else entries)
        assert shared["weights"] == (entries if stage == 3 else 4 * entries)
    assert "optimizer: moments" not in memory(zero_stage=2, offload=True, workers=4)


def test_runs_are_planned_with_the_longest_row_that_their_losses_learn_from():
    given = study(runs=[{"loss": {"type": "sft"}}, {"loss": {"type": "rft"}}])
    every = facts(SHAPE, longest=128)
    short = replace(every, train=replace(every.train, longest=32))
    shapes = Shapes(every)

    def held(known):
        [line] = make_plan(given, known, card(64), shapes=shapes, stages=("train",), remedies=False)
        return line.held

    assert held(replace(every, selected=lambda loss: 32)) == held(short) < held(every)
    assert held(replace(every, selected=lambda loss: 32 if loss.type == "rft" else None)) == held(every)


def test_workers_that_share_rows_are_planned_with_their_part_of_them():
    model, loss = DryModel(WIDE), LOSSES["sft"]()
    given = {"batch_size": 8, "micro_batch_size": 2, "padding_free": True}
    alone = training_memory(model, loss, TrainingSettings(**given), 64, gpu=False)
    shared = TrainingSettings(**given, workers=2, sequence_parallel_size=2)
    assert training_memory(model, loss, shared, 128, gpu=False) == alone


def test_checkpointing_is_planned_with():
    loss = LOSSES["sft"]()
    deep = Qwen3Config(**(SHAPE.to_dict() | {"num_hidden_layers": 16, "layer_types": None}))
    whole, checked = (DryModel(deep, checkpointing=on).training(loss, 4, 128, accumulating=False) for on in (0, 1))
    assert checked.kept < whole.kept / 4
    assert whole.flops < checked.flops < 1.5 * whole.flops


@pytest.mark.parametrize(("loss", "examples"), [("sft", 3), ("dpo", 1)])
def test_tokens_bound_a_micro_batch_that_is_planned(loss, examples):
    def memory(**given):
        settings = TrainingSettings(batch_size=8, padding_free=True, **given)
        return training_memory(DryModel(SHAPE), LOSSES[loss](), settings, 64, gpu=False)

    assert memory(micro_batch_size=8, micro_batch_tokens=200) == memory(micro_batch_size=examples)
    assert memory(micro_batch_size=8, micro_batch_tokens=10) == memory(micro_batch_size=1)


def test_every_stage_and_analysis_of_a_tiny_study_fits_a_machine():
    lines = make_plan(study(), find_facts(study()), MACHINE)
    stages = {line.need.what.partition(" ")[0].partition(",")[0] for line in lines}
    assert stages == {"student", "rollouts", "train", "evaluate"} | {f"geometry.{n}" for n in study().geometry.asked()}
    assert not [line.problem for line in lines if line.problem]
    assert not [line.need.unknown for line in lines if line.need.unknown]
    assert all(line.hours < 0.1 for line in lines if line.hours is not None)


def misfits(given):
    lines = make_plan(given, facts(), card(3.5), remedies=False)
    return [line.problem for line in lines if line.problem and line.need.on == "training"]


def test_what_does_not_fit_is_told_with_settings_that_make_it_fit():
    given = asking()
    [line] = [line for line in make_plan(given, facts(), card(3.5)) if line.problem and line.need.on == "training"]
    assert line.need.what == "train sft-lr1e-05-s0"
    assert "activations" in line.problem
    assert "of a device" in line.problem
    assert line.remedy
    changed = changed_study(given, line.remedy)
    assert changed is not None
    assert not misfits(changed)
    for dropped in line.remedy:
        fewer = changed_study(given, tuple(each for each in line.remedy if each != dropped))
        assert fewer is not None
        assert misfits(fewer)


def test_remedies_are_as_few_as_will_do():
    given = ("a=2", "a=1", "b=1", "c=1", "unknown=1")

    def needs(*wanted):
        return lambda taken: set(wanted) <= set(taken)

    def known(override):
        return not override.startswith("unknown")

    assert fewest(given, needs("a=1"), known) == ("a=1",)
    assert fewest(given, needs("c=1"), known) == ("c=1",)
    assert fewest(given, needs("a=1", "c=1"), known) == ("a=1", "c=1")
    assert fewest(given, needs("unknown=1"), known) == ()


def test_a_run_that_can_never_fit_is_refused_and_an_analysis_is_told():
    said = []
    given = asking(drift={}, curvature={"spaces": ["delta"], "slq_probes": 0})
    texts = Texts(64, 256.0, 256)
    known = Facts(WIDE, texts, texts, texts, 1.0, {}, ())
    with pytest.raises(ClusterError, match="train sft") as refused:
        check_memory(given, known, card(1.5), said.append)
    assert "--no-memory-check" in str(refused.value)
    assert "training." in str(refused.value)
    said.clear()
    check_memory(given, known, card(4.5), said.append)
    assert [line.split()[0] for line in said] == ["geometry.curvature,"]
    check_memory(given, known, card(900), said.clear)


ADAPTED = {"training": {"steps": 1, "gpus": 1, "lora": {}}, "evaluation": {"engine": {"type": "vllm"}}}


def evaluated(**changes):
    """A study of which only the evaluation is looked at, by actors with a GPU each."""
    quiet = {"geometry": dict.fromkeys(study().geometry.asked()), "training": {"steps": 1, "gpus": 1}}
    return study(**quiet | {"actors": {"gpus": 1}} | changes)


def refusal(given, known, cluster, stages=STAGES):
    with pytest.raises(ClusterError) as refused:
        check_memory(given, known, cluster, print, stages)
    return str(refused.value)


def misfitting(known=None, **changes):
    lines = make_plan(evaluated(**changes), known or facts(), card(1.2), stages=["evaluate"], remedies=False)
    return [line.problem for line in lines if line.problem]


def test_an_evaluation_is_planned_only_where_it_is_asked_for_and_by_all_gpus_of_an_actor():
    divided = tiny_study()["student"] | {"device_map": "auto"}
    assert "evaluate heldout takes" in misfitting()[0]
    assert misfitting(actors={"gpus": 64})
    assert not misfitting(actors={"gpus": 64}, student=divided)
    assert not misfitting(replace(facts(), benchmarks={}))
    [line] = make_plan(evaluated(**ADAPTED), facts(), card(1.2), stages=["evaluate"], remedies=False)
    assert line.need.unknown == "what the engine vllm holds is not looked at"
    assert not line.problem


def test_what_is_sure_not_to_fit_is_refused_with_more_gpus_as_a_remedy():
    short = {"answers": {"batch_size": 1, "max_new_tokens": 1}}
    said = refusal(evaluated(evaluation=short), facts(longest=2), card(1.2), ["evaluate"])
    assert "--set student.device_map=auto --set actors.gpus=2" in said
    check_memory(evaluated(evaluation=short), facts(longest=2), card(1.2), print, ["student"])


def test_answers_are_planned_as_many_as_are_drawn():
    one, three = (
        make_plan(evaluated(evaluation={"answers": answers}), facts(), card(80), stages=["evaluate"])[0].disk
        for answers in ({}, {"samples": 3, "temperature": 1.0})
    )
    assert three == 3 * one


def test_runs_that_are_settled_are_not_trained_again():
    given, small = evaluated(), card(1.5)
    [line] = make_plan(given, facts(), small, stages=["train"], remedies=False)
    assert line.problem
    done = frozenset(spec.name for spec in given.plan.points())
    assert not make_plan(given, replace(facts(), settled=done), small, stages=["train"])


def test_needs_are_held_to_the_nodes_that_they_can_run_on():
    device = card(80).gpu
    cluster = Cluster(device, 8, 64 * GIB, 4, "two kinds of nodes", host=2 * GIB, nodes=2)
    here = study()
    on_cpu, _ = cluster.place(here, Need("student", 1, on="cpu"))
    assert on_cpu.memory == 2 * GIB
    shared = Need("train", 1, device={"weights": GIB}, processes=2, on="training")
    assert not misfit(shared, on_cpu, cluster), "a worker on each node"
    assert misfit(shared, on_cpu, replace(cluster, nodes=1))
    assert misfit(replace(shared, host={"weights": 65 * GIB}), device, cluster)


def test_rollouts_are_read_a_part_at_a_time():
    [line] = make_plan(study(), facts(), MACHINE, stages=["rollouts"])
    assert line.host == 1024 * facts().rollouts.count


def test_rows_are_counted_and_those_too_long_left_out(tmp_path):
    rows = [{"prompt": f"{i % 4}", "completion": "7 8 " * (2 + i), "correct": True} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = {"read": [{"type": "jsonl", "path": str(path)}], "heldout": 0.25, "max_tokens": 20}
    found = find_facts(study(rollouts=read))
    assert found.rollouts.count < 20
    assert found.rollouts.longest <= 20
    assert found.train.count == round(0.75 * found.rollouts.count)
    assert found.prompts.count == 1
    assert "all tokenised" in " ".join(found.said)


def test_texts_that_a_tokenizer_cannot_read_are_planned_by_their_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Zebras ?", "completion": "unheard of", "correct": True}) + "\n")
    found = find_facts(study(rollouts={"read": [{"type": "jsonl", "path": str(path)}]}))
    assert sum("cannot read some of the texts" in said for said in found.said) == 1
    assert found.rollouts.longest == round(8 / 3.5) + round(10 / 3.5) + 1


def test_a_plan_can_do_without_data_and_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(WIDE.to_dict()))
    for shapes in (tmp_path, tmp_path / "config.json"):
        found = find_facts(study(), str(shapes), "1000:20:80")
        assert (found.config.hidden_size, found.rollouts.count, found.rollouts.mean) == (1024, 1000, 100)
    with pytest.raises(ConfigError, match="ROWS:PROMPT:COMPLETION"):
        find_facts(study(), data="1000")
    with pytest.raises(StudentError, match="--shapes"):
        find_facts(study(), str(tmp_path / "nothing"))


def test_measured_rates_take_the_place_of_estimates(store):
    keep_rate(store, "cka", Rate(2, 100.0, False))
    keep_rate(store, "cka", Rate(2, 20.0, False))
    keep_rate(store, "drift", Rate(0, 0.0, False))
    assert read_rates(store) == {"cka": Rate(4, 120.0, False)}
    given = asking(cka={}, drift={})
    lines = {line.need.what: line for line in make_plan(given, facts(SHAPE), MACHINE, read_rates(store))}
    line = lines["geometry.cka"]
    assert line.measured
    assert not lines["geometry.drift"].measured
    assert line.hours == pytest.approx(30.0 * line.need.units / line.at_once / 3600)
    on_gpus = make_plan(given, facts(SHAPE), MACHINE, {"cka": Rate(1, 1.0, True)})
    assert not any(each.measured for each in on_gpus)


def test_devices_have_names_sizes_and_hints():
    assert find_device("H100", 0, 1) is DEVICES["h100"]
    assert find_device("4e14:64", 0, 1).memory == 64 * 10**9
    assert find_device("cpu", 5, 2) == cpu(5, 2)
    with pytest.raises(ConfigError, match="did you mean 'a100'"):
        find_device("a10", 0, 1) if "a10" in DEVICES else find_device("a1000", 0, 1)
    assert device_of_card("NVIDIA H100 80GB HBM3", 7).flops == DEVICES["h100"].flops
    assert device_of_card("unheard of", 7).flops == DEVICES["a100"].flops


def test_the_plan_is_printed_with_what_it_assumes():
    console = Console(width=160, record=True)
    assert plan_study(study(), device="h100", console=console)
    text = console.export_text()
    for said in ("geometry.curvature, eigenvalues", "in all:", "assumed", "at most 40 tokens"):
        assert said in text


def test_stages_and_rounds_are_counted():
    sft, dpo = {"loss": {"type": "sft"}}, {"loss": {"type": "dpo"}}
    runs = [
        sft | {"name": "alone"},
        {"stages": [sft, dpo], "name": "staged"},
        sft | {"rounds": 3, "sampling": {"samples": 2, "prompts": 6, "prompts_per_task": 2}, "name": "rounds"},
    ]
    given = study(runs=runs, evaluation={"answers": {"max_new_tokens": 8}, "monitor": {"problems": 4}})
    lines = {line.need.what: line.need for line in make_plan(given, find_facts(given), MACHINE)}
    trained = {what: need.units for what, need in lines.items() if what.startswith("train ")}
    assert sum(trained.values()) == 1 + 1 + 3  # the first stage is the run alone
    assert lines["train, stages joined"].units == 1 + 2
    assert lines["train, rollouts of rounds"].units == 3 * 3
    assert lines["train, reference where stages begin"].units == 1
    delta = next(need.disk["deltas"] for what, need in lines.items() if "alone" in what)
    assert lines["train, stages joined"].disk["deltas"] == 2 * delta
    assert lines["train, stages joined"].disk["snapshots"] == (1 + 2) * delta
    assert lines["evaluate on the way"].units > lines["evaluate heldout"].units
    ended = Facts(**{**vars(find_facts(given)), "settled": frozenset(spec.name for spec in given.plan.points())})
    assert make_plan(given, ended, MACHINE, stages=("train",)) == []
