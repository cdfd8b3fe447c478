"""TRL's trainers as oracle: the same tiny model and batch give the same loss and the same gradients."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import decided_qwen
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer

from raygeo.losses import (
    DFT,
    DPO,
    IPO,
    KTO,
    SFT,
    ConservativeDPO,
    DPOWithNLL,
    NormalizedDPO,
    OffPolicyGRPO,
    RobustDPO,
    SimPO,
)
from raygeo.losses.base import LossInputs
from raygeo.models.batches import TokenSequence, collate
from raygeo.models.likelihood import token_logprobs


@pytest.fixture(scope="module")
def tokenizer():
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstu"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(4)
    sizes = [(3, 5), (2, 7), (6, 1), (4, 4)]
    return collate([TokenSequence(rng.integers(3, 24, size=p + c), p) for p, c in sizes], pad_id=0)


def completion_mask(batch):
    return torch.nn.functional.pad(batch.mask, (1, 0)).long()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def quiet(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }


PAIR = Dataset.from_list([{"prompt": "a b", "chosen": " c d", "rejected": " e f"}])


def dpo_trainer(model, base, tokenizer, tmp_path, **options):
    model.train()
    return DPOTrainer(
        model,
        ref_model=copy.deepcopy(base),
        args=DPOConfig(**options, **quiet(tmp_path)),
        train_dataset=PAIR,
        processing_class=tokenizer,
    )


def dpo_inputs(batch):
    return {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "completion_mask": completion_mask(batch),
    }


def reference_logprobs(base, batch):
    with torch.no_grad():
        return token_logprobs(base, batch)


@pytest.mark.parametrize(("loss", "loss_type"), [(SFT(), "nll"), (DFT(), "dft")], ids=["nll", "dft"])
def test_sft_and_dft(loss, loss_type, tokenizer, batch, tmp_path):
    ours = decided_qwen(seed=0)
    theirs = copy.deepcopy(ours)
    trainer = SFTTrainer(
        theirs,
        args=SFTConfig(loss_type=loss_type, **quiet(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": "a b", "completion": " c d"}]),
        processing_class=tokenizer,
    )
    labels = batch.input_ids.masked_fill(completion_mask(batch) == 0, -100)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
    expected = trainer.compute_loss(theirs, inputs, num_items_in_batch=batch.tokens)

    output = loss(LossInputs(token_logprobs(ours, batch), batch.mask, torch.ones(4)))
    value = output.total / batch.tokens
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DPO(beta=0.3), {"beta": 0.3}),
        (RobustDPO(beta=0.3, label_smoothing=0.2), {"beta": 0.3, "loss_type": "robust", "label_smoothing": 0.2}),
        (NormalizedDPO(beta=2.0), {"beta": 2.0, "loss_type": "sigmoid_norm"}),
        (IPO(beta=0.3), {"beta": 0.3, "loss_type": "ipo"}),
    ],
    ids=["dpo", "robust", "norm", "ipo"],
)
def test_dpo_and_variants(loss, options, tokenizer, batch, tmp_path):
    ours, base = decided_qwen(seed=0), decided_qwen(seed=1)
    theirs = copy.deepcopy(ours)
    trainer = dpo_trainer(theirs, base, tokenizer, tmp_path, **options)
    expected = trainer.compute_loss(theirs, dpo_inputs(batch))
    logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}

    pairs = torch.tensor([[0, 2], [1, 3]])  # TRL stacks all chosen rows before all rejected ones
    reference = reference_logprobs(base, batch)
    output = loss(LossInputs(token_logprobs(ours, batch), batch.mask, torch.ones(4), reference, pairs))
    value = output.total / 2
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)
    for side in ("chosen", "rejected"):
        mean = options["beta"] * output.metrics[f"{side}_logratio"][0].item() / 2
        assert mean == pytest.approx(logged[f"rewards/{side}"], rel=1e-4)
    if "loss_type" not in options:
        assert output.metrics["margin"][0].item() / 2 == pytest.approx(logged["rewards/margins"], rel=1e-4)
        assert output.metrics["rewards/accuracies"][0].item() / 2 == logged["rewards/accuracies"]


def test_cdpo_on_one_pair(tokenizer, batch, tmp_path):
    """TRL's ``aot`` smooths labels too, and is cDPO where there is nothing to sort."""
    ours, base = decided_qwen(seed=0), decided_qwen(seed=1)
    theirs = copy.deepcopy(ours)
    trainer = dpo_trainer(theirs, base, tokenizer, tmp_path, beta=0.3, loss_type="aot", label_smoothing=0.2)
    pair = replace(batch, **{name: getattr(batch, name)[:2] for name in ("input_ids", "attention_mask", "mask")})
    expected = trainer.compute_loss(theirs, dpo_inputs(pair))

    reference, pairs = reference_logprobs(base, pair), torch.tensor([[0, 1]])
    loss = ConservativeDPO(beta=0.3, label_smoothing=0.2)
    value = loss(LossInputs(token_logprobs(ours, pair), pair.mask, torch.ones(2), reference, pairs)).total
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)


def test_dpo_with_nll_of_equally_long_chosen_rows(tokenizer, tmp_path):
    """TRL divides the micro-batch's NLL by its tokens, we divide each row's by its own: the same where rows are."""
    rng = np.random.default_rng(5)
    sizes = [(3, 5), (2, 5), (6, 1), (4, 4)]
    batch = collate([TokenSequence(rng.integers(3, 24, size=p + c), p) for p, c in sizes], pad_id=0)
    ours, base = decided_qwen(seed=0), decided_qwen(seed=1)
    theirs = copy.deepcopy(ours)
    weights = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}
    trainer = dpo_trainer(theirs, base, tokenizer, tmp_path, beta=0.3, **weights)
    expected = trainer.compute_loss(theirs, dpo_inputs(batch))

    reference, pairs = reference_logprobs(base, batch), torch.tensor([[0, 2], [1, 3]])
    inputs = LossInputs(token_logprobs(ours, batch), batch.mask, torch.ones(4), reference, pairs)
    value = DPOWithNLL(beta=0.3, alpha=0.7)(inputs).total / 2
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)


def test_simpo(tokenizer, batch, tmp_path):
    ours = decided_qwen(seed=0)
    theirs = copy.deepcopy(ours)
    options = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.0, "max_length": 64}
    trainer = CPOTrainer(
        theirs,
        args=CPOConfig(**options, **quiet(tmp_path)),
        train_dataset=PAIR,
        processing_class=tokenizer,
    )
    labels = batch.input_ids.masked_fill(completion_mask(batch) == 0, -100)
    columns = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}
    sides = {"chosen": slice(0, 2), "rejected": slice(2, 4)}
    inputs = {f"{side}_{name}": column[rows] for side, rows in sides.items() for name, column in columns.items()}
    expected = trainer.compute_loss(theirs, inputs)

    pairs = torch.tensor([[0, 2], [1, 3]])
    loss = SimPO(beta=2.0, simpo_gamma=0.7)
    value = loss(LossInputs(token_logprobs(ours, batch), batch.mask, torch.ones(4), pairs=pairs)).total / 2
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clamped", [False, True])
def test_kto(clamped, tokenizer, batch, tmp_path):
    """The step is one micro-batch here: TRL takes the baseline over that, we take it over the step."""
    rng = np.random.default_rng(6)
    sizes = [(3, 4), (2, 5), (6, 7), (4, 1)]
    mismatched = collate([TokenSequence(rng.integers(3, 24, size=p + c), p) for p, c in sizes], pad_id=0)
    ours, base = decided_qwen(seed=1 - clamped), decided_qwen(seed=int(clamped))
    theirs = copy.deepcopy(ours)
    options = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    trainer = KTOTrainer(
        theirs,
        ref_model=copy.deepcopy(base),
        args=KTOConfig(**options, per_device_train_batch_size=2, **quiet(tmp_path)),
        train_dataset=Dataset.from_list(
            [
                {"prompt": "a b", "completion": " c d", "label": True},
                {"prompt": "e", "completion": " f", "label": False},
            ]
        ),
        processing_class=tokenizer,
    )
    desirable = torch.tensor([True, False, False, True])
    theirs.train()
    inputs = dpo_inputs(batch) | {f"KL_{name}": column for name, column in dpo_inputs(mismatched).items()}
    expected = trainer.compute_loss(theirs, inputs | {"label": desirable})
    logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}

    with torch.no_grad():
        baseline = (token_logprobs(ours, mismatched) - token_logprobs(base, mismatched)).sum(-1).mean()
    assert (baseline < 0) == clamped
    weights = torch.where(desirable, 1.3, -0.6)
    reference = reference_logprobs(base, batch)
    output = KTO(**options)(
        LossInputs(token_logprobs(ours, batch), batch.mask, weights, reference, kl_baseline=baseline)
    )
    value = output.total / 4
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)
    metrics = {key: metric.item() for key, (metric, _) in output.metrics.items()}
    assert metrics["kl"] / 4 == pytest.approx(logged["kl"], rel=1e-4)
    chosen, rejected = metrics["desirable_logratio"] / metrics["desirable"], metrics["undesirable_logratio"] / 2
    assert 0.3 * chosen == pytest.approx(logged["rewards/chosen"], rel=1e-4)
    assert 0.3 * rejected == pytest.approx(logged["rewards/rejected"], rel=1e-4)


@pytest.mark.parametrize(
    ("ratio", "normalization", "options"),
    [
        ("clipped", "token", {"loss_type": "bnpo"}),
        ("clipped", "sequence", {"loss_type": "grpo"}),
        ("sequence", "sequence", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
        ("truncated", "token", {"loss_type": "cispo"}),
    ],
    ids=["grpo-token", "grpo-sequence", "gspo", "cispo"],
)
def test_off_policy_grpo(ratio, normalization, options, tokenizer, tmp_path):
    rng = np.random.default_rng(5)
    batch = collate([TokenSequence(rng.integers(3, 24, size=3 + size), 3) for size in (5, 7, 1, 4)], pad_id=0)
    ours, behaviour = decided_qwen(seed=0), decided_qwen(seed=1)
    theirs = copy.deepcopy(ours)
    trainer = GRPOTrainer(
        theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(epsilon=0.1, epsilon_high=0.3, beta=0.0, num_generations=4, **options, **quiet(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": "a b"}]),
        processing_class=tokenizer,
    )
    advantages = torch.tensor([0.7, -0.3, -0.4, 0.2])
    sampled = reference_logprobs(behaviour, batch)
    inputs = {
        "prompt_ids": batch.input_ids[:, :3],
        "prompt_mask": batch.attention_mask[:, :3],
        "completion_ids": batch.input_ids[:, 3:],
        "completion_mask": batch.attention_mask[:, 3:],
        "advantages": advantages,
        "old_per_token_logps": sampled[:, 2:],
        "num_items_in_batch": torch.tensor(batch.tokens),
    }
    expected = trainer._compute_loss(theirs.eval(), inputs)

    loss = OffPolicyGRPO(ratio=ratio, normalization=normalization, epsilon=0.1, epsilon_high=0.3, cap=0.3)
    output = loss(LossInputs(token_logprobs(ours, batch), batch.mask, advantages, behaviour_logprobs=sampled))
    assert 0 < output.metrics["clipped"][0] < batch.tokens
    value = output.total / (batch.tokens if normalization == "token" else 4)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)
