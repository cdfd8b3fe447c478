"""What runs leave on the store's disk is compared with what is free there before they are trained."""

import pytest
import torch
from study_cases import tiny_study
from transformers import Qwen3Config

from raygeo.errors import ClusterError
from raygeo.footprint.devices import GIB
from raygeo.footprint.model import DryModel
from raygeo.footprint.need import Texts
from raygeo.losses import ASFT, SFT
from raygeo.models.lora import LoraSettings
from raygeo.pipeline.budget.check import check_disk
from raygeo.pipeline.budget.cluster import Cluster
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.budget.stages import CHECKPOINTS, DELTAS, LIKELIEST, SNAPSHOTS, Shapes, stage_needs
from raygeo.pipeline.config import parse_study

pytestmark = pytest.mark.slow

CONFIG = Qwen3Config(
    hidden_size=512, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8,
    head_dim=64, vocab_size=32000, tie_word_embeddings=True,
)  # fmt: skip
TEXTS = Texts(100, 40.0, 64)
FACTS = Facts(CONFIG, TEXTS, TEXTS, TEXTS, 0.8, {}, ())
MACHINE = Cluster(None, 0, 64 * GIB, 2, "a machine")
DELTA = 4 * DryModel(CONFIG).parameters
LORA = {"r": 2, "lora_alpha": 4}


def study(loss="sft", **training):
    runs = [{"loss": {"type": loss}}, {"loss": {"type": "dft"}}]
    return parse_study(tiny_study(runs=runs, training={"steps": 100, **training}))


def said(free, **training):
    told = []
    check_disk(study(**training), FACTS, MACHINE, free, told.append)
    return told


def test_what_fits_and_what_is_not_known_passes_in_silence():
    assert said(None) == said(100 * DELTA) == said(3 * DELTA, lora=LORA) == []


def test_deltas_and_snapshots_that_do_not_fit_are_refused_with_a_setting_that_does():
    """Two runs leave a delta and eight snapshots each, and take two checkpoints of three deltas each on the way."""
    free = 16 * DELTA
    with pytest.raises(ClusterError, match=r"2 runs leave deltas of .* free in the store") as refused:
        said(free)
    bound = float(str(refused.value).partition("max_snapshot_gib=")[2].split()[0])
    assert said(free, max_snapshot_gib=bound) == []
    assert study(max_snapshot_gib=bound).plan.points()[0].training.kept_snapshots(DELTA) == 1
    with pytest.raises(ClusterError, match=r"training\.snapshots=0"):
        said(DELTA)


def test_what_is_stored_of_a_teacher_counts_too():
    taught = {"teacher": {"model": "student", "top_k": 32_000}, "runs": [{"loss": {"type": "kd-forward"}}]}
    learning = parse_study(tiny_study(training={"steps": 100, "snapshots": 0, "lora": LORA}, **taught))
    law = int(4 * (2 * 32_000 + 1) * 100 * 40.0 * 0.8)
    check_disk(learning, FACTS, MACHINE, 2 * law, [].append)
    with pytest.raises(ClusterError, match=r"with a teacher's likeliest tokens of .* for their losses"):
        check_disk(learning, FACTS, MACHINE, law, [].append)
    check_disk(learning, FACTS, MACHINE, law, [].append, ("train",))


def test_what_is_sampled_of_a_teacher_is_in_the_plan():
    def disk(count):
        sample = {"prompts": 30, "decoding": {"samples": 4, "top_logprobs": count}}
        runs = [{"loss": {"type": "kd-forward"} if count else {"type": "sft"}}]
        needs = stage_needs(
            parse_study(tiny_study(rollouts={"sample": sample}, runs=runs)), FACTS, Shapes(FACTS), False,
            stages=("rollouts", "reference"),
        )  # fmt: skip
        return [need.disk.get(LIKELIEST) for need in needs]

    row = 4 * (2 * 8 + 1) * 100 * 40.0 * 0.8
    assert disk(8) == [4 * row, row]
    assert disk(0) == [None]


def test_runs_that_learn_from_other_shares_of_a_step_are_planned_apart():
    runs = [{"loss": {"type": "uds-sft", "keep": keep}, "name": f"keep-{keep}"} for keep in (0.25, 0.75)]
    uds = parse_study(tiny_study(runs=runs))
    few, many = stage_needs(uds, FACTS, Shapes(FACTS), False, stages=("train",))
    assert few.work.flops < many.work.flops


def test_checkpoints_that_do_not_fit_besides_are_told():
    [line] = said(20 * DELTA)
    assert "max_snapshot_gib=" in line


def test_the_plan_counts_what_is_left():
    def disk(**training):
        return stage_needs(study(**training), FACTS, Shapes(FACTS), False, stages=("train",))[0].disk

    whole = disk()
    assert (whole[DELTAS], whole[SNAPSHOTS], whole[CHECKPOINTS]) == (2 * DELTA, 16 * DELTA, 6 * DELTA)
    assert disk(zero_stage=2)[CHECKPOINTS] == 8 * DELTA
    assert disk(precision="bf16")[CHECKPOINTS] == 7 * DELTA
    assert disk(max_snapshot_gib=3.5 * DELTA / GIB)[SNAPSHOTS] == 6 * DELTA


def test_with_adapters_no_states_of_the_base_are_stored_and_each_step_passes_the_base_besides():
    def reference(**training):
        return stage_needs(study("asft", **training), FACTS, Shapes(FACTS), False, stages=("reference",))

    assert "final hidden states" in reference()[0].disk
    assert reference(lora=LORA) == []
    adapted, base = DryModel(CONFIG, torch.float32, LoraSettings(**LORA)), DryModel(CONFIG)
    asking, plain = (adapted.training(loss, 2, 32, accumulating=False).flops for loss in (ASFT(), SFT()))
    assert asking == plain + base.scoring(2, 32).flops


def test_sums_of_stages_and_students_between_them_need_room_too():
    runs = [{"stages": [{"loss": {"type": "sft"}}, {"loss": {"type": "dft"}}]}]
    staged = parse_study(tiny_study(runs=runs, training={"steps": 100, "snapshots": 0}))
    kept = 2 * DELTA + DELTA + DELTA  # two deltas, their sum, and the snapshot where the first ends
    with pytest.raises(ClusterError, match="2 runs leave"):
        check_disk(staged, FACTS, MACHINE, kept - 1, lambda text: None)
    told = []
    check_disk(staged, FACTS, MACHINE, kept + DELTA // 2, told.append)
    assert told  # there is no room for the student that the second begins with
