"""Every causal family of transformers, tiny: built, saved, loaded, trained, exported, and compared with its makers'.

``python -m checks.families`` builds each from a small configuration, trains it two steps with every weight and with
adapters on all linear layers, and compares what raygeo makes of it with transformers and PEFT themselves.

``--families llama,opt`` restricts the table, ``--page FILE`` writes it as Markdown (``docs/families.md``). A family
that raygeo refuses is listed with the reason. The exit status is 1 if a family is neither right nor refused.
"""

import argparse
import gc
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from raygeo.errors import StudentError
from raygeo.generation.engine import Request
from raygeo.generation.local import LocalEngine
from raygeo.generation.renderer import PlainRenderer
from raygeo.losses import SFT
from raygeo.models.batches import Batch, collate
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import Entry, LowRank, open_delta
from raygeo.models.likelihood import Likelihood, token_logprobs
from raygeo.models.loading import load_model, load_student
from raygeo.models.lora import LoraSettings, check_lora
from raygeo.models.mix import MixedWeights
from raygeo.models.parameters import index_parameters, save_index
from raygeo.models.soundness import check_student
from raygeo.toy.word_problems import word_tokenizer
from raygeo.training.engine import build_engine, import_deepspeed
from raygeo.training.export import export, trained_values
from raygeo.training.settings import RunSpec, TrainingSettings

VOCABULARY = 72
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 128,
    "n_positions": 128, "max_seq_len": 128, "context_length": 128, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "d_model": 32, "n_heads": 4, "n_layers": 2, "n_inner": 48, "ffn_dim": 48, "ffn_hidden_size": 48,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "word_embed_proj_dim": 32, "embedding_size": 32, "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "moe_k": 2, "expert_ffn_hidden_size": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 16, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
    "mamba_expand": 2, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "state_size": 8,
    "num_heads": 4, "time_step_rank": 4, "mamba_dt_rank": 4, "mamba_d_ssm": 64, "n_groups": 1, "mamba_n_groups": 1,
    "mamba_ngroups": 1, "chunk_size": 8, "mamba_chunk_size": 8, "intermediate_size_mlp": 48,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "lru_width": 32,
    "attention_window_size": 16, "sliding_window": 16, "local_attention": 16, "window_size": 16, "num_kv_heads": 2,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "attention_hidden_size": 32, "logit_scale": 0.25, "logits_scaling": 2.0, "lm_head_multiplier": 0.5,
    "logits_mup_width_multiplier": 2.0, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0,
    "hidden_dropout": 0.1, "attention_dropout": 0.1, "dropout": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "activation_dropout": 0.1, "router_jitter_noise": 0.1, "residual_dropout": 0.1,
    "embedding_dropout": 0.1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Sizes by the names that configurations give them; each takes those it knows."""
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"num_key_value_heads": 4}
EXTRA: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": _HYBRID | _LATENT,
    "granitemoehybrid": _HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _HYBRID | _LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": _HYBRID,
    "minimax": _HYBRID,
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp_text": _HYBRID,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {"num_hidden_layers": 6},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "diffllama": {"attention_dropout": 0.0},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
}
"""What some families need besides; latent attention has as many key heads as query heads."""
LARGEST = 20_000_000
LORA = LoraSettings(r=4, lora_alpha=8, target_modules="all-linear")
TEXTS = (
    ("Ivy has 10 pens . how many pens ?", "10 + 2 = 12 . #### 12"),
    ("Amy has 3 nuts . she finds 4 more . how many nuts ?", "3 + 4 = 7 . #### 7"),
    ("Kim has 9 keys . how many keys ?", "#### 9"),
)
LR = 0.01
Check = Callable[[Any, Any, Path], Iterator[str]]


@dataclass(frozen=True)
class Outcome:
    """What became of a family.

    ``untried`` says why it was not built, ``refused`` why raygeo does not take it, ``lora`` why not with adapters on
    all linear layers, ``wrong`` what differs from transformers or PEFT though nothing was refused.
    """

    family: str
    model: str
    attention: str = ""
    untried: str = ""
    refused: str = ""
    lora: str = ""
    wrong: str = ""

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.wrong:
            return "wrong"
        if self.untried or self.refused:
            return "not tried" if self.untried else "refused"
        return "every weight" if self.lora else "every weight, adapters"

    @property
    def reason(self) -> str:
        """Why it is not all right, if it is not."""
        return self.wrong or self.untried or self.refused or self.lora


def configuration(family: str) -> PretrainedConfig:
    """A small configuration of a family; whatever its own class does not take by the names in ``SHAPE`` is its own."""
    kind = CONFIG_MAPPING[family]
    own = kind()
    known = {name: value for name, value in SHAPE.items() if _settable(own, name, value)}
    if hasattr(own, "kv_lora_rank"):
        known |= _LATENT
    return kind(**known | EXTRA.get(family, {}))


def _settable(config: PretrainedConfig, name: str, value: Any) -> bool:
    try:
        getattr(config, name)
        setattr(config, name, value)
    except Exception:  # each family's own
        return False
    return True


def random_model(config: PretrainedConfig) -> Any:
    """A model whose weights are so large that no part of it can be left out unseen.

    Raises:
        StudentError: it is not small.
    """
    with torch.device("meta"):
        size = sum(value.numel() for value in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise StudentError(f"its smallest configuration has {size / 1e6:.0f} M parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1) + (value.ndim == 1))
    return model.eval()


def try_family(family: str, folder: Path) -> Outcome:
    """Build, save, load, train, export, compare and ask one family."""
    tokenizer = word_tokenizer()
    outcome = Outcome(family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    try:
        model = random_model(configuration(family))
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    except Exception as error:
        return replace(outcome, untried=_said(error))
    try:
        checked = check_student(folder / "base")
        save_index(index_parameters(folder / "base", folder / "base", checked), folder / "base")
        loaded, _ = load_student(folder / "base")
    except StudentError as error:
        said = str(error).partition(": ")[2].removeprefix(f"{type(model).__name__} is not supported: ")
        return replace(outcome, refused=said.removesuffix("."))
    outcome = replace(outcome, attention=str(loaded.config._attn_implementation))
    checks: list[Check] = [_named, _likely, _steady, _answered, _trained]
    try:
        check_lora(loaded.config, LORA)
        checks.append(_adapted)
    except StudentError as error:
        outcome = replace(outcome, lora=str(error).partition(" Incompatible modules: {")[0])  # a set, in no order
    wrong: list[str] = []
    for check in checks:
        try:
            wrong += check(loaded, tokenizer, folder)
        except Exception as error:
            wrong.append(f"{check.__name__.strip('_')}: {_said(error)}")
    return replace(outcome, wrong="; ".join(wrong))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _batch(tokenizer: Any) -> Batch:
    return collate([PlainRenderer(tokenizer).encode(*text) for text in TEXTS], tokenizer.pad_token_id)


def _named(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """The checkpoint has the loaded model's parameters, by name and value."""
    base, own = Checkpoint(folder / "base"), dict(model.named_parameters())
    if base.names() != sorted(own):
        yield f"names differ: {sorted({*base.names()} ^ {*own})[:3]}"
    yield from (f"{name} differs" for name in own if not torch.equal(base.tensor(name).float(), own[name]))
    head = model.get_output_embeddings()
    if not torch.equal(base.head()[0], head.weight):
        yield "the head differs"


@torch.no_grad()
def _likely(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """The NLL of each completion is that of the logits which transformers' own forward pass gives of the text alone."""
    batch = _batch(tokenizer)
    found = -token_logprobs(model, batch).sum(-1)
    for row, text in enumerate(TEXTS):
        one = PlainRenderer(tokenizer).encode(*text)
        ids = torch.from_numpy(one.ids)[None]
        labels = ids.clone()
        labels[:, : one.prompt_length] = -100
        expected = float(_own_loss(model, ids, labels)) * one.completion_length
        if abs(float(found[row]) - expected) > 1e-4 * expected:
            yield f"NLL {float(found[row]):.5f} where transformers has {expected:.5f}"


def _own_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=-100)


@torch.no_grad()
def _steady(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """Two passes as training makes them are equal, and equal to one in evaluation."""
    torch.manual_seed(1)
    likelihood, batch = Likelihood(model).train(), _batch(tokenizer)
    first, second = (likelihood(batch)["logprobs"] for _ in range(2))
    if not torch.equal(first, second) or not torch.equal(first, token_logprobs(model.eval(), batch)):
        yield f"two passes in training differ by {float((first - second).abs().max()):.2g}"


@torch.no_grad()
def _answered(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """Greedy answers, batched, padded and cached, are those of a loop over whole sequences."""
    prompts = [prompt for prompt, _ in TEXTS]
    for prompt, (completion,) in zip(
        prompts, LocalEngine(model, PlainRenderer(tokenizer)).generate(Request(prompts, max_new_tokens=4)), strict=True
    ):
        ids = PlainRenderer(tokenizer).prompt_ids(prompt)
        start = len(ids)
        while len(ids) < start + 4 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected = tokenizer.decode([i for i in ids[start:] if i != tokenizer.eos_token_id], skip_special_tokens=True)
        if completion.text != expected:
            yield f"answers {completion.text!r} where the whole sequence gives {expected!r}"


def _value(entry: Entry) -> torch.Tensor:
    return entry.dense() if isinstance(entry, LowRank) else entry.value


def _trained(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """Two steps with every weight: base + exported delta is the trained model, and so is its own folder's delta."""
    engine, values = _two_steps(folder, tokenizer, None)
    export(engine, values, folder / "base", folder / "delta")
    tuned = engine.module.student
    delta = open_delta(folder / "delta")
    moved = dict(tuned.named_parameters())
    start = dict(model.named_parameters())
    if {*delta} != {name for name, value in moved.items() if value.requires_grad}:
        yield f"the delta names {sorted({*delta} ^ {*moved})[:3]}"
    for name, entry in delta.items():
        if not torch.allclose(start[name] + _value(entry), moved[name], atol=1e-6):
            yield f"the delta of {name} is not what it moved by"
    tuned.save_pretrained(folder / "tuned")
    whole = open_delta(folder / "tuned", folder / "base")
    if sorted(whole) != sorted(moved):
        yield f"the tuned folder's delta names {sorted({*whole} ^ {*moved})[:3]}"
    for name, entry in whole.items():
        if not torch.allclose(_value(entry), moved[name].detach() - start[name].detach(), atol=1e-6):
            yield f"the tuned folder's delta of {name} is another"
    yield from _mixed(folder, tokenizer, "delta", tuned)


def _adapted(model: Any, tokenizer: Any, folder: Path) -> Iterator[str]:
    """Two steps with adapters: the base with their delta is what PEFT computes."""
    engine, values = _two_steps(folder, tokenizer, LORA)
    export(engine, values, folder / "base", folder / "adapter")
    delta, own = open_delta(folder / "adapter"), dict(model.named_parameters())
    for name, entry in delta.items():
        if name not in own or entry.shape != tuple(own[name].shape):
            yield f"the adapter changes {name} {list(entry.shape)}, which the model has not"
            return
    yield from _mixed(folder, tokenizer, "adapter", engine.module.student)


@torch.no_grad()
def _mixed(folder: Path, tokenizer: Any, kind: str, tuned: Any) -> Iterator[str]:
    """The base with a delta mixed in has the NLL of the model that was trained, and another than before."""
    weights, delta, batch = load_model(folder / "base"), open_delta(folder / kind), _batch(tokenizer)
    before = token_logprobs(weights, batch)
    with MixedWeights(weights, delta).mixed([(1.0, delta)]) as mixed:
        found = token_logprobs(mixed, batch)
    expected = Likelihood(tuned)(batch)["logprobs"]
    if not torch.allclose(found, expected, atol=2e-3, rtol=1e-3):
        yield f"with the {kind} mixed in, log-probabilities are {float((found - expected).abs().max()):.2g} off"
    if torch.allclose(before, expected, atol=1e-3):
        yield f"the {kind} does nothing"


def _two_steps(folder: Path, tokenizer: Any, lora: LoraSettings | None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Two steps of AdamW on the texts under DeepSpeed, and the trained values."""
    size = len(TEXTS)
    training = TrainingSettings(lr=LR, steps=2, batch_size=size, micro_batch_size=size, lora=lora, warmup_ratio=0)
    spec = RunSpec(name=folder.name, loss=SFT(), training=training)
    engine, _ = build_engine(spec, len(TEXTS), folder / "base")
    engine.train()
    batch = _batch(tokenizer)
    for _ in range(2):
        engine.backward(-engine(batch)["logprobs"].sum() / batch.tokens, scale_wrt_gas=False)
        engine.step()
    return engine, trained_values(engine)


def try_families(families: Sequence[str]) -> Iterator[Outcome]:
    """Try families one after the other, in a process group of one."""
    set_verbosity_error()
    disable_progress_bar()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    import_deepspeed()
    gc.freeze()  # spares the collections between models the walk over all that has been imported
    with tempfile.TemporaryDirectory() as root:
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=f"file://{root}/group", rank=0, world_size=1)
        for family in families:
            (Path(root) / family).mkdir()
            yield try_family(family, Path(root) / family)


def page(outcomes: Sequence[Outcome]) -> str:
    """The table as Markdown."""
    tried = [o for o in outcomes if not o.untried]
    taken = [o for o in tried if not o.refused]
    adapted = sum(not o.lora for o in taken)
    lines = [
        "# Families of models",
        "",
        "Written by `python -m checks.families --page docs/families.md` with transformers "
        f"{version('transformers')} and PEFT {version('peft')}: of its {len(outcomes)} causal families {len(tried)} "
        f"can be built tiny from their configuration alone, and of those raygeo takes {len(taken)}, {adapted} of them "
        "also with adapters on all linear layers (`target_modules: all-linear`). Taken means: parameters by name and "
        "value, NLL, greedy answers, two steps of training with every weight and with adapters, exported deltas and "
        "deltas of the saved model were compared with what transformers and PEFT compute, with dropout and router "
        "noise set in the configuration.",
        "",
        "A model of any family is held to the same before a study starts (`raygeo/models/soundness.py`), so one that "
        "is not listed is taken or refused by what it does. Attention is SDPA's where the family has it.",
        "",
        "| family | model | attention | with | why not |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(row, outcomes)]) + "\n"


def row(outcome: Outcome) -> str:
    """One family's line of the table."""
    reason = re.sub(r"(KeyError): '\w+'", r"\1", outcome.reason).replace("|", "/")  # the first of a set, in no order
    return f"| {outcome.family} | {outcome.model} | {outcome.attention or '–'} | {outcome.verdict} | {reason} |"


def main() -> None:
    """Try the families asked for, print the table, and write it where it is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--families", default="", help="comma-separated model types; all by default")
    parser.add_argument("--page", type=Path, help="write the table as Markdown")
    arguments = parser.parse_args()
    families = arguments.families.split(",") if arguments.families else list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    outcomes = []
    for outcome in try_families(families):
        outcomes.append(outcome)
        print(f"{outcome.family:28} {outcome.verdict:22} {outcome.reason}", flush=True)
    if arguments.page:
        arguments.page.write_text(page(outcomes))
    raise SystemExit(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    main()
