"""The micro-batch that fitted, remembered in the store: a run that ran out of memory spares later ones the same."""

import json

from raygeo.settings import content_key
from raygeo.store import Store
from raygeo.training.inputs import RunInputs
from raygeo.training.settings import RunSpec

_SHAPE = frozenset(
    {
        "lora", "precision", "batch_size", "micro_batch_size", "zero_stage", "offload", "gradient_checkpointing",
        "padding_free", "micro_batch_tokens", "attn_implementation", "workers", "cpus", "gpus",
        "sequence_parallel_size", "torch_compile",
    }
)  # fmt: skip


class Fitted:
    """What fitted runs that have the memory of this one: of its loss, student, rollouts, and settings of that shape."""

    def __init__(self, store: Store, spec: RunSpec, inputs: RunInputs):
        settings = spec.training.model_dump(mode="json", include=set(_SHAPE))
        self.store, self.asked = store, spec.training.micro_batch_size
        self.place = f"fitted/{content_key(spec.loss.type, settings, inputs.student_key, inputs.rollouts)}.json"

    def recall(self) -> int:
        """The micro-batch size to begin with: that asked for, or a smaller one that fitted when it did not."""
        kept = self.store.read_bytes(self.place)
        return self.asked if kept is None else min(self.asked, json.loads(kept)["micro_batch_size"])

    def remember(self, micro_batch_size: int) -> None:
        """Keep what fitted where that is less than what is known to."""
        if micro_batch_size < self.recall():
            self.store.write_bytes(self.place, json.dumps({"micro_batch_size": micro_batch_size}).encode())
