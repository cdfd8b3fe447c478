"""Completions written by vLLM in this process: one resident base, and adapters for what is added to it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from weakref import WeakKeyDictionary

from pydantic import Field

from raygeo.errors import StudentError
from raygeo.generation.engine import Completion, Engine, EngineSettings, Request, Students, check_lengths
from raygeo.generation.renderer import Renderer
from raygeo.models.adapters import rank_of, save_adapter
from raygeo.models.lora import LoraSettings
from raygeo.models.mix import Mixture, mixture_of
from raygeo.models.run import Run
from raygeo.settings import content_key
from raygeo.store import AnyPath

_EVERYWHERE = "all-linear"


class VllmSettings(EngineSettings):
    """vLLM in the process that needs completions (``pip install raygeo[vllm]``). Its base is resident once; LoRA runs,
    and mixtures of them along paths, are given to it as adapters. Runs that trained all weights it cannot write with.
    """

    revision: ClassVar[int] = 2
    adapters_only: ClassVar[bool] = True

    type: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What weights are held in; ``auto`` is what the model was saved in."""
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1)
    """Share of the GPU for vLLM's weights and cache; along paths, the student that likelihoods are measured with lies
    beside it."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share the model; an actor must have as many (``actors.gpus``)."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt with its completion, in tokens; by default what the model allows. What exceeds it is refused."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64
    """Largest rank of an adapter, one of those that vLLM can be started for; a mixture of runs has the sum of their
    ranks."""

    @property
    def identity(self) -> list[Any]:
        """The engine's name, and what completions depend on."""
        return [super().identity, self.dtype, self.tensor_parallel_size]

    def check_here(self) -> None:
        """See that vLLM is installed."""
        if find_spec("vllm") is None:
            raise StudentError("the engine vllm needs vLLM, which is not installed here: pip install 'raygeo[vllm]'.")

    def longest(self, context: int | None) -> int | None:
        """``max_model_len``, where it is given."""
        return self.max_model_len or context

    def unfit(self, lora: LoraSettings | None) -> str | None:
        """That a run trains all weights, or adapters of a larger rank than vLLM is started for."""
        if lora is None:
            return "a run trains all weights, and vllm is given adapters only; choose the engine local"
        if lora.r > self.max_lora_rank:
            return f"a run's adapters have rank {lora.r}; {_holding(lora.r)}"
        return None

    def unfit_mixture(self, loras: Sequence[LoraSettings], count: int) -> str | None:
        """That the ranks of the runs in it are together larger than vLLM is started for."""
        held = [(lora.r, _places(lora)) for lora in loras]
        places = {place for _, own in held for place in own}
        ranks = [sorted(r for r, own in held if {_EVERYWHERE, place} & own) for place in places]
        most = max(sum(found[-count:]) for found in ranks)
        if most > self.max_lora_rank:
            return f"a mixture of {count} runs is an adapter of rank {most}; {_holding(most)}"
        return None

    def students(self, base: AnyPath, runs: Sequence[Run] = ()) -> Students:
        """The model in folder ``base``, with adapters for the deltas of ``runs``.

        Raises:
            StudentError: vLLM is not installed, or a run trained all weights.
        """
        self.check_here()
        for run in runs:
            delta = run.open()
            if delta is not None and not delta.low_rank:
                raise StudentError(
                    f"run {run.name!r} trained all weights, and vLLM is given adapters only; choose the engine local."
                )
        return _Adapted(str(base))

    def engine(self, model: Any, renderer: Renderer, batch_size: int) -> VllmEngine:
        """The engine that writes with ``model``: what ``students`` gave, or a loaded student and what is added to it.

        vLLM forms its own batches; ``batch_size`` bounds them.
        """
        if isinstance(model, _Mixed):
            owner, base, mixture = model.owner, model.owner.base, model.mixture
        else:
            owner, base, mixture = model, model.name_or_path, mixture_of(model)
        if owner not in _RESIDENT:
            _RESIDENT[owner] = _Resident(self, base, batch_size)
        return VllmEngine(_RESIDENT[owner], mixture, renderer)


def _places(lora: LoraSettings) -> set[str]:
    """The kinds of layers that adapters are at, or everywhere."""
    targets = lora.target_modules
    return {targets} if isinstance(targets, str) else {name.rpartition(".")[2] for name in targets}


def _holding(rank: int) -> str:
    ranks: tuple[int, ...] = get_args(VllmSettings.model_fields["max_lora_rank"].annotation)
    known = [most for most in ranks if most >= rank]
    return (
        f"set max_lora_rank to {known[0]}" if known else f"vLLM takes none above {ranks[-1]}; choose the engine local"
    )


class _Adapted:
    """A base and what is added to it, loaded by vLLM when it first writes."""

    def __init__(self, base: str):
        self.base = base

    @contextmanager
    def mixed(self, mixture: Mixture) -> Iterator[_Mixed]:
        """The base with a mixture added."""
        yield _Mixed(self, mixture)


@dataclass(frozen=True)
class _Mixed:
    owner: _Adapted
    mixture: Mixture


class _Resident:
    """vLLM with one base; it ends with what it was loaded for."""

    def __init__(self, settings: VllmSettings, base: str, batch_size: int):
        from vllm import LLM

        self.settings = settings
        self.adapters = count(1)
        self.llm = LLM(
            model=base,
            dtype=settings.dtype,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            max_model_len=settings.max_model_len,
            max_num_seqs=batch_size,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=settings.max_lora_rank,
            logprobs_mode="processed_logprobs",
            max_logprobs=-1,
            enable_prefix_caching=True,
            trust_remote_code=False,
            seed=0,
        )
        self.longest: int = self.llm.llm_engine.model_config.max_model_len

    @contextmanager
    def adapter(self, mixture: Mixture) -> Iterator[Any]:
        """A request for the adapter that adds ``mixture``; None where nothing is added."""
        from vllm.lora.request import LoRARequest

        if not any(coefficient and delta for coefficient, delta in mixture):
            yield None
            return
        if (rank := rank_of(mixture)) > self.settings.max_lora_rank:
            raise StudentError(
                f"a mixture of {len(mixture)} runs is an adapter of rank {rank}, and vLLM was started for "
                f"{self.settings.max_lora_rank}; raise the engine's max_lora_rank."
            )
        folder = Path(tempfile.mkdtemp(prefix="raygeo-adapter-"))
        try:
            save_adapter(folder, mixture)
            number = next(self.adapters)
            yield LoRARequest(f"mixture-{number}", number, str(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_RESIDENT: WeakKeyDictionary[Any, _Resident] = WeakKeyDictionary()


class VllmEngine(Engine):
    """Writes with a resident base and a mixture of LoRA deltas added to it.

    Log-probabilities are those at the sampling temperature. Each prompt has a seed of its own, so that draws do not
    depend on how vLLM batches; near ties may.
    """

    def __init__(self, resident: _Resident, mixture: Mixture, renderer: Renderer):
        self.resident, self.mixture, self.renderer = resident, mixture, renderer

    def generate(self, request: Request) -> list[list[Completion]]:
        """Complete every prompt: one list per prompt, in the order of ``request.prompts``.

        Raises:
            StudentError: a prompt is empty, or does not fit vLLM's longest sequence with ``max_new_tokens``; or the
                mixture needs a larger rank than vLLM was started for.
        """
        prompts = [self.renderer.prompt_ids(prompt) for prompt in request.prompts]
        longest = self.resident.longest
        limit = f"the {longest} tokens that vLLM was started for (max_model_len)"
        check_lengths([len(prompt) for prompt in prompts], request.max_new_tokens, longest, limit)
        if not prompts:
            return []
        from vllm import SamplingParams

        logprobs = request.top_logprobs if request.temperature > 0 or request.top_logprobs else None
        how = [
            SamplingParams(
                n=request.samples,
                temperature=request.temperature,
                max_tokens=request.max_new_tokens,
                seed=int(content_key(request.seed, place), 16) % 2**31 if request.temperature > 0 else None,
                stop_token_ids=list(self.renderer.stop_ids),
                logprobs=logprobs,
                detokenize=False,
            )
            for place in range(len(prompts))
        ]
        given = [{"prompt_token_ids": ids} for ids in prompts]
        with self.resident.adapter(self.mixture) as adapter:
            answers = self.resident.llm.generate(given, how, lora_request=adapter, use_tqdm=False)
        return [[self._completion(request, each) for each in answer.outputs] for answer in answers]

    def _completion(self, request: Request, given: Any) -> Completion:
        ids = tuple(given.token_ids)
        ended = given.finish_reason == "stop"
        drawn = top = None
        if given.logprobs is not None:
            if request.temperature > 0:
                drawn = tuple(step[i].logprob for i, step in zip(ids, given.logprobs, strict=True))
            if request.top_logprobs:
                top = tuple({i: each.logprob for i, each in step.items()} for step in given.logprobs)
        return Completion(
            self.renderer.text_behind(ids[:-1] if ended else ids),
            ids,
            "end" if ended else "length",
            self.renderer.end_text(ids[-1]) if ended else "",
            drawn,
            top_logprobs=top,
        )
