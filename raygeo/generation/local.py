"""Completions written by a model in this process, batched over prompts of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from raygeo.generation.decoding import decode
from raygeo.generation.engine import Completion, Engine, EngineSettings, Request, Students, check_lengths
from raygeo.generation.renderer import Renderer
from raygeo.models.batches import Batch, collate, length_buckets
from raygeo.models.fitting import in_batches
from raygeo.models.likelihood import Likelihood, TokenLogits, TopLogprobs, completion_states, top_logprobs
from raygeo.models.loading import context_length
from raygeo.models.resident import ResidentStudent
from raygeo.models.run import Run
from raygeo.store import AnyPath

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scored = TypeVar("Scored")


class LocalEngine(Engine):
    """Writes with ``model`` as its weights are when asked, so that they may change in between.

    A completion ends at the first of the renderer's ``stop_ids`` or of what the model's own generation settings end at.
    ``batch_size`` bounds the rows (prompts times samples) in flight; where they do not fit into memory, batches are
    halved, and those of later requests to the same model too. A batch reads each of its prompts once, however often it
    is sampled. Batches may turn a near tie, and decide which draw is whose, so their size is part of what results
    depend on. Draws come from a generator of their own: torch's global generators stay as they were.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int = 256):
        self.model, self.renderer, self.batch_size = model, renderer, batch_size

    def generate(self, request: Request) -> list[list[Completion]]:
        """Complete every prompt: one list per prompt, in the order of ``request.prompts``.

        Raises:
            StudentError: a prompt is empty, or does not fit the model's context with ``max_new_tokens``, or its logits
                are not finite; or there is no memory for one completion.
        """
        model, device = self.model, self.model.device
        ids = [self.renderer.prompt_ids(prompt) for prompt in request.prompts]
        context = context_length(model.config)
        limit = f"the student's context of {context}"
        check_lengths([len(prompt) for prompt in ids], request.max_new_tokens, context, limit)
        ends = self._ends()
        rows = [prompt for prompt in range(len(ids)) for _ in range(request.samples)]
        generator = torch.Generator(device).manual_seed(request.seed)

        def write(batch: Sequence[int]) -> list[Completion]:
            unique = {prompt: place for place, prompt in enumerate(dict.fromkeys(batch))}
            input_ids, attention_mask = _pad_left([ids[prompt] for prompt in unique], self.renderer.pad_id)
            before = generator.get_state()
            try:
                written, logprobs = decode(
                    model,
                    input_ids.to(device),
                    attention_mask.to(device),
                    torch.tensor([unique[prompt] for prompt in batch], device=device),
                    ends,
                    request.temperature,
                    request.max_new_tokens,
                    generator,
                )
            except BaseException:
                generator.set_state(before)
                raise
            drawn = logprobs.tolist() if request.temperature > 0 else [None] * len(batch)
            return [self._completion(ends, *row) for row in zip(written.tolist(), drawn, strict=True)]

        completions: list[list[Completion]] = [[] for _ in ids]
        training = model.training
        model.eval()
        try:
            for bucket in length_buckets([len(ids[prompt]) for prompt in rows], self.batch_size):
                batch = [rows[row] for row in bucket]
                key = ("writing", model.name_or_path, request.max_new_tokens)
                found = in_batches(write, batch, self.batch_size, what="writing completions", key=key)
                for prompt, completion in zip(batch, found, strict=True):
                    completions[prompt].append(completion)
        finally:
            model.train(training)
        return completions

    def score(self, texts: Sequence[tuple[str, str, bool]], *, temperature: float) -> list[tuple[float, ...] | None]:
        """Log-probabilities of the completion tokens of (prompt, completion, ended) ``texts``, teacher-forced."""

        def tempered(tokens: TokenLogits) -> dict[str, Tensor]:
            return {"tempered": -F.cross_entropy(tokens.logits / temperature, tokens.targets, reduction="none")}

        likelihood = Likelihood(self.model, tempered)

        def read(batch: Batch) -> list[tuple[float, ...] | None]:
            logprobs = likelihood(batch)["tempered"]
            return [tuple(row[mask].tolist()) for row, mask in zip(logprobs, batch.mask, strict=True)]

        return [() if scored is None else scored for scored in self._forced(texts, read)]

    def score_top(
        self, texts: Sequence[tuple[str, str, bool]], count: int, *, temperature: float
    ) -> list[TopLogprobs | None]:
        """The ``count`` likeliest tokens at each completion token, teacher-forced; None where a text has none."""

        def read(batch: Batch) -> list[TopLogprobs | None]:
            top = top_logprobs(self.model, completion_states(self.model, batch), count, temperature=temperature)
            parts = (part.cpu().split(batch.mask.sum(1).tolist()) for part in top)
            return [TopLogprobs(*row) for row in zip(*parts, strict=True)]

        return self._forced(texts, read)

    def _forced(
        self, texts: Sequence[tuple[str, str, bool]], read: Callable[[Batch], list[Scored | None]]
    ) -> list[Scored | None]:
        """What ``read`` says of each row of batches of ``texts``; None of those without a completion token."""
        sequences = [self.renderer.encode(prompt, completion, ended=ended) for prompt, completion, ended in texts]
        scores: list[Scored | None] = [None] * len(sequences)
        filled = [i for i, sequence in enumerate(sequences) if sequence.completion_length > 0]

        def read_rows(rows: Sequence[int]) -> list[Scored | None]:
            batch = collate([sequences[i] for i in rows], self.renderer.pad_id).to(self.model.device)
            with torch.inference_mode():
                return read(batch)

        for bucket in length_buckets([len(sequences[i]) for i in filled], self.batch_size):
            rows = [filled[place] for place in bucket]
            key = ("scoring", self.model.name_or_path)
            found = in_batches(read_rows, rows, self.batch_size, what="scoring completions", key=key)
            for i, scored in zip(rows, found, strict=True):
                scores[i] = scored
        return scores

    def _completion(self, ends: tuple[int, ...], tokens: list[int], logprobs: list[float] | None) -> Completion:
        length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        ended = length < len(tokens)
        return Completion(
            self.renderer.text_behind(tokens[:length]),
            tuple(tokens[: length + ended]),
            "end" if ended else "length",
            self.renderer.end_text(tokens[length]) if ended else "",
            None if logprobs is None else tuple(logprobs[: length + ended]),
        )

    def _ends(self) -> tuple[int, ...]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        more = own if isinstance(own, list) else [] if own is None else [own]
        vocabulary = len(self.renderer.tokenizer)
        return tuple(dict.fromkeys([*self.renderer.stop_ids, *(end for end in more if 0 <= end < vocabulary)]))


class LocalSettings(EngineSettings):
    """The model itself, in the process that needs its completions, with a cache and in batches that fit."""

    type: Literal["local"] = "local"

    def students(self, base: AnyPath, runs: Sequence[Run] = ()) -> Students:
        """The model in folder ``base``, loaded, with room for the deltas of ``runs``."""
        return ResidentStudent.load(base, runs).weights

    def engine(self, model: Any, renderer: Renderer, batch_size: int) -> LocalEngine:
        """The engine that writes with a loaded model at the weights it has."""
        return LocalEngine(model, renderer, batch_size)


def _pad_left(prompts: list[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Prompts padded on the left to the longest one, and their attention mask: [U, W] int64 each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
