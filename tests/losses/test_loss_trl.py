"""TRL's trainers as oracle: the same tiny model and batch give the same loss and the same gradients."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from loss_cases import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from raygeo.losses import DFT, DPO, SFT
from raygeo.losses.base import LossInputs
from raygeo.students.encoding import Sequence, collate
from raygeo.students.likelihood import token_logprobs


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
    return collate([Sequence(rng.integers(3, 24, size=p + c), p) for p, c in sizes], pad_id=0)


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


@pytest.mark.parametrize(("loss", "loss_type"), [(SFT(), "nll"), (DFT(), "dft")], ids=["nll", "dft"])
def test_sft_and_dft(loss, loss_type, tokenizer, batch, tmp_path):
    ours = tiny_model(seed=0)
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


def test_dpo_sigmoid(tokenizer, batch, tmp_path):
    ours, base = tiny_model(seed=0), tiny_model(seed=1)
    theirs = copy.deepcopy(ours)
    trainer = DPOTrainer(
        theirs,
        ref_model=copy.deepcopy(base),
        args=DPOConfig(loss_type="sigmoid", beta=0.3, **quiet(tmp_path)),
        train_dataset=Dataset.from_list([{"prompt": "a b", "chosen": " c d", "rejected": " e f"}]),
        processing_class=tokenizer,
    )
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "completion_mask": completion_mask(batch),
    }
    theirs.train()
    expected = trainer.compute_loss(theirs, inputs)
    logged = {key: values[-1] for key, values in trainer._metrics["train"].items()}

    with torch.no_grad():
        reference = token_logprobs(base, batch)
    pairs = torch.tensor([[0, 2], [1, 3]])  # TRL stacks all chosen rows before all rejected ones
    output = DPO(beta=0.3)(LossInputs(token_logprobs(ours, batch), batch.mask, torch.ones(4), reference, pairs))
    value = output.total / 2
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(ours, value), gradients(theirs, expected), rtol=1e-4, atol=1e-6)
    assert output.metrics["margin"][0].item() / 2 == pytest.approx(logged["rewards/margins"], rel=1e-4)
    assert output.metrics["accuracy"][0].item() / 2 == logged["rewards/accuracies"]
    assert 0.3 * output.metrics["chosen_logratio"][0].item() / 2 == pytest.approx(logged["rewards/chosen"], rel=1e-4)
    assert 0.3 * output.metrics["rejected_logratio"][0].item() / 2 == pytest.approx(
        logged["rewards/rejected"], rel=1e-4
    )
