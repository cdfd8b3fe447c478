"""The competitors: raygeo's own loop, a plain torch loop, and TRL. Each trains one epoch, in the same order of rows."""

import contextlib
import os
import tempfile
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import Prepared
from benchmarks.race import Turnstile
from raygeo.data.tokens import RolloutTokens
from raygeo.losses import DFT, DPO, SFT, Loss
from raygeo.models.loading import default_device, load_student
from raygeo.models.lora import attach_lora
from raygeo.training.data import Data, open_data
from raygeo.training.order import micro_batches, step_batches
from raygeo.training.settings import RunSpec

LOSSES: dict[str, Loss] = {"sft": SFT(), "dft": DFT(), "dpo": DPO()}
BETA = 0.1
WINDOW = 10
"""Losses are compared at the first step and as the mean of the following ones up to this step."""


def raygeo_loop(prepared: Prepared, name: str, turnstile: Turnstile) -> dict[str, Any]:
    """Raygeo's engine and loop in a process group of one, as a Ray Train worker runs them."""
    from raygeo.training.engine import build_engine, import_deepspeed
    from raygeo.training.loop import Hooks, TrainingState, optimise

    cuda = torch.cuda.is_available()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    import_deepspeed().init_distributed("nccl" if cuda else "gloo", verbose=False)
    loss = LOSSES[name]
    spec = RunSpec(name=name, loss=loss, training=prepared.training(pairs=loss.unit == "pair"))
    data = open_data(loss, prepared.store, prepared.inputs)
    engine, _ = build_engine(spec, len(data.examples), prepared.inputs.student)
    batches = iter(_batches(data, prepared, loss))

    def before_step() -> None:
        turnstile()
        turnstile.count(*_count(data.tokens, data.rows(next(batches))))

    hooks = Hooks(lambda step, metrics: None, lambda state: None, lambda step, last: None, before_step)
    state = optimise(engine, spec, data, TrainingState(), hooks)
    turnstile.finish()
    losses = [row["value"] for row in state.curves if row["metric"] == "objective"]
    return _reported(losses, settings="DeepSpeed engine, tiled head, fused AdamW, length-bucketed micro-batches")


def torch_loop(prepared: Prepared, name: str, turnstile: Turnstile) -> dict[str, Any]:
    """What one would write by hand: the same micro-batches, an attention mask, logits of completion tokens at once."""
    loss = LOSSES[name]
    pairs = loss.unit == "pair"
    settings = prepared.training(pairs=pairs)
    data = open_data(loss, prepared.store, prepared.inputs)
    device = default_device()
    model: Any = load_student(prepared.inputs.student, device=device)[0]
    if settings.lora is not None:
        model = attach_lora(model, settings.lora, settings.init_seed)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings.lr, betas=settings.betas, eps=settings.adam_epsilon, weight_decay=0.0, fused=True
    )
    low = settings.precision == "bf16"
    losses = []
    for batch in _batches(data, prepared, loss):
        turnstile()
        rows = data.rows(batch)
        turnstile.count(*_count(data.tokens, rows))
        units = len(batch) if pairs else int(data.tokens.completion_lengths[rows].sum())
        objective = 0.0
        for indices in micro_batches(batch, data.example_lengths(batch), settings.micro_batch_size, 0, 1):
            padded, reference = data.rollouts.batch(data.rows(indices), data.pad_id)
            padded = padded.to(device)
            with torch.autocast(device.type, torch.bfloat16) if low else contextlib.nullcontext():
                causal = model.get_base_model() if settings.lora is not None else model
                states = causal.model(padded.input_ids, padded.attention_mask, use_cache=False).last_hidden_state
                logits = causal.lm_head(states[:, :-1][padded.mask]).float()
            nll = F.cross_entropy(logits, padded.input_ids[:, 1:][padded.mask], reduction="none")
            total = _objective(name, nll, padded.mask, None if reference is None else reference.to(device)) / units
            total.backward()
            objective += total.item()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(objective)
    turnstile.finish()
    return _reported(losses, settings="fused AdamW, length-bucketed micro-batches")


def trl_loop(prepared: Prepared, name: str, options: dict[str, Any], turnstile: Turnstile) -> dict[str, Any]:
    """TRL's trainer on rows tokenised beforehand, evaluation, checkpointing, reporting and gradient checkpointing off.

    ``options`` are further arguments of its configuration; with ``train_sampling_strategy="batch_rebalance"`` a step is
    split into micro-batches of similar lengths, as raygeo's are.
    """
    os.environ["TQDM_DISABLE"] = "1"
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    pairs = LOSSES[name].unit == "pair"
    trainer_class, config_class = (trl.DPOTrainer, trl.DPOConfig) if pairs else (trl.SFTTrainer, trl.SFTConfig)
    settings = prepared.training(pairs=pairs)
    precompute = [0.0, 0.0]

    class Trainer(trainer_class):  # type: ignore[misc, valid-type]
        """Counts tokens, times the reference pass, takes rows as they are and in the order they have."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Any:
            began = time.perf_counter(), time.process_time()
            result = super()._precompute_ref_logps(*args)
            precompute[0] += time.perf_counter() - began[0]
            precompute[1] += time.process_time() - began[1]
            return result

        def _get_train_sampler(self, *args: Any) -> Any:
            sampler = super()._get_train_sampler(*args)
            sampler.shuffle = False
            return sampler

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            completion = inputs["completion_mask"] if pairs else inputs["labels"] != -100
            tokens = inputs["attention_mask"] if "attention_mask" in inputs else torch.ones_like(inputs["input_ids"])
            turnstile.count(int(completion.sum()), int(tokens.sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    class Gate(transformers.TrainerCallback):
        """Waits for the turn, and keeps the logged losses."""

        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turnstile()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            turnstile.finish()

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        micro = 1 if "train_sampling_strategy" not in options else settings.batch_size // settings.micro_batch_size
        config = config_class(
            output_dir=folder, max_steps=prepared.steps, learning_rate=settings.lr, lr_scheduler_type="constant",
            per_device_train_batch_size=settings.batch_size // micro, gradient_accumulation_steps=micro,
            adam_beta1=settings.betas[0], adam_beta2=settings.betas[1], adam_epsilon=settings.adam_epsilon,
            max_grad_norm=settings.max_grad_norm, weight_decay=0.0, bf16=settings.precision == "bf16",
            gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), report_to="none",
            save_strategy="no", eval_strategy="no", logging_first_step=True, logging_steps=WINDOW, disable_tqdm=True,
            remove_unused_columns=not pairs,  # otherwise pairs could not be grouped by their length
            dataloader_num_workers=0, dataloader_pin_memory=False, max_length=None,
            **({"train_sampling_strategy": "sequential"} | ({"loss_type": "dft"} if name == "dft" else {}) | options),
        )  # fmt: skip
        model, tokenizer = load_student(prepared.inputs.student)
        if settings.lora is not None:
            from peft import LoraConfig

            lora = settings.lora
            modules = lora.target_modules
            adapter = LoraConfig(
                task_type="CAUSAL_LM",
                r=lora.r,
                lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
                target_modules=modules if isinstance(modules, str) else list(modules),
                lora_dropout=0.0,
            )
        gate = Gate()
        trainer = Trainer(
            model=model, args=config, train_dataset=_dataset(prepared, name), processing_class=tokenizer,
            callbacks=[gate], peft_config=adapter if settings.lora is not None else None,
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    first, *later = gate.losses
    return {
        "loss_first": first, "loss_next": later[0] if later else None, "precompute_seconds": precompute,
        "settings": ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults",
    }  # fmt: skip


def _batches(data: Data, prepared: Prepared, loss: Loss) -> Any:
    settings = prepared.training(pairs=loss.unit == "pair")
    return step_batches(data.examples, len(data.tokens), settings.batch_size, prepared.steps, settings.seed)


def _dataset(prepared: Prepared, name: str) -> Any:
    """The rows of every step, in order, in the columns TRL makes of text."""
    from datasets import Dataset

    loss = LOSSES[name]
    data = open_data(loss, prepared.store, prepared.inputs)
    rows = []
    for index in _batches(data, prepared, loss).ravel():
        found = [data.tokens[row] for row in data.examples[index].rows]
        start = found[0].prompt_length
        ids = [[int(i) for i in sequence.ids] for sequence in found]
        length = max(map(len, ids))
        if len(ids) == 2:
            pair = {"prompt_ids": ids[0][:start], "chosen_ids": ids[0][start:], "rejected_ids": ids[1][start:]}
            rows.append(pair | {"length": length})
        else:
            rows.append({"input_ids": ids[0], "labels": [-100] * start + ids[0][start:], "length": length})
    return Dataset.from_list(rows)


def _objective(name: str, nll: Tensor, mask: Tensor, reference: Tensor | None) -> Tensor:
    if name == "sft":
        return nll.sum()
    if name == "dft":
        return (nll * (-nll).detach().exp()).sum()
    assert reference is not None
    logprobs = torch.zeros_like(reference).masked_scatter(mask, -nll)
    ratios = (logprobs - reference).sum(-1)
    return -F.logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).sum()


def _count(tokens: RolloutTokens, rows: list[int]) -> tuple[int, int]:
    return int(tokens.completion_lengths[rows].sum()), int(tokens.lengths[rows].sum())


def _reported(losses: list[float], settings: str) -> dict[str, Any]:
    window = losses[1:WINDOW]
    return {
        "loss_first": losses[0], "loss_next": sum(window) / len(window) if len(losses) >= WINDOW else None,
        "settings": settings,
    }  # fmt: skip
