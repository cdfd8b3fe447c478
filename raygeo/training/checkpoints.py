"""What a run resumes from after its workers were lost: DeepSpeed's state of every rank, and where the run stood.

Data order, learning rate and random draws are functions of seed and step, so optimiser, weights and step are all.
Checkpoints lie in the store as ``checkpoints/<run key>-<step>``; one is complete or does not exist, and only the newest
is kept.

A checkpoint is read as numbers: DeepSpeed would unpickle it, which runs whatever code whoever wrote it has put there.
"""

from typing import Any

import torch

from raygeo.errors import StoreError
from raygeo.store import Store
from raygeo.training.engine import barrier, rank

KIND = "checkpoints"


class Checkpoints:
    """The checkpoints of the run with content key ``key``."""

    def __init__(self, store: Store, key: str):
        self.store, self.key = store, key

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after ``step`` steps, with ``state`` of the loop, then drop older ones; collective."""
        name = f"{self.key}-{step:08d}"
        with self.store.scratch_folder() as folder:
            with self.store.writing(self.store.path(KIND, name)):
                engine.save_checkpoint(
                    str(folder),
                    tag="state",
                    client_state={"loop": state},
                    exclude_frozen_parameters=True,
                    save_latest=False,
                )
            self.store.add_to_folder(KIND, name, folder / "state")
        barrier()
        if rank() == 0:
            self.store.complete_folder(KIND, name)
            self.clear(keep=name)

    def resume(self, engine: Any) -> dict[str, Any] | None:
        """Load the newest complete checkpoint into the engine and return the loop's state, or None; collective.

        Raises:
            StoreError: it holds other things than a run's state.
        """
        names = self._names()
        if not names:
            return None
        folder = self.store.folder(KIND, names[-1])
        engine.checkpoint_engine.load = read_state
        _, client = engine.load_checkpoint(
            str(folder), tag=".", load_module_strict=False, load_optimizer_states=True, load_lr_scheduler_states=True
        )
        return client["loop"]

    def clear(self, keep: str | None = None) -> None:
        """Delete all checkpoints of the run but ``keep``."""
        for name in self.store.folders(KIND, f"{self.key}-"):
            if name != keep:
                self.store.delete_folder(KIND, name)

    def last_step(self) -> int | None:
        """The step after which the newest checkpoint was written; None if there is none."""
        names = self._names()
        return int(names[-1].rpartition("-")[2]) if names else None

    def _names(self) -> list[str]:
        return sorted(n for n in self.store.folders(KIND, f"{self.key}-") if self.store.has_folder(KIND, n))


def read_state(path: str, map_location: Any = None) -> Any:
    """What a file of DeepSpeed's holds: tensors and plain data; no code in it is run.

    Raises:
        StoreError: it is damaged, or holds anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # of whatever kind the bytes bring about
        raise StoreError(
            f"{path} is no checkpoint of a run, or a damaged one ({str(error).partition(chr(10))[0]}); delete its "
            "folder, and the run begins anew."
        ) from error
