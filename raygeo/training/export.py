"""What a run leaves behind: its delta in fp32, each parameter whole, whatever sharded it."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raygeo.errors import DeltaError
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import FULL_FILE, read_back, refuse_unmoved, save_full_delta, shard_file
from raygeo.store import AnyPath, Store
from raygeo.training.engine import barrier, gather, rank, world


def keep_delta(engine: Any, student: AnyPath, store: Store, kind: str, key: str, *, moved: bool = True) -> str | None:
    """Put the engine's delta into the store as ``<kind>/<key>``; each rank writes its share.

    Where a parameter is not finite nothing is written, and the first such parameter's name is returned on every rank.

    Raises:
        DeltaError: the delta is empty, or zero everywhere although it ought to have ``moved``.
    """
    values = trained_values(engine)
    odd = gather(next((name for name, value in values.items() if not bool(value.isfinite().all())), None))
    if broken := [name for name in odd if name is not None]:
        return min(broken, key=[name for name, _ in trained_parameters(engine)].index)
    with store.scratch_folder() as folder:
        if rank() == 0 or not _adapted(engine):
            export(engine, values, student, folder)
        if moved:
            refuse_unmoved(any(gather((rank() == 0 or bool(values)) and read_back(folder))), f"{kind}/{key}")
        if not _adapted(engine):
            (folder / FULL_FILE).rename(folder / shard_file(rank(), world()))
        if rank() == 0:
            store.delete_folder(kind, key)  # that of an attempt whose record was never written
        barrier()
        store.add_to_folder(kind, key, folder)
    barrier()
    if rank() == 0:
        store.complete_folder(kind, key)
    return None


def trained_parameters(engine: Any) -> list[tuple[str, nn.Parameter]]:
    """What is trained, in the model's order."""
    return [(name, value) for name, value in engine.module.student.named_parameters() if value.requires_grad]


def trained_values(engine: Any) -> dict[str, Tensor]:
    """The fp32 values of this rank's share of the trained parameters, each whole, on the CPU; all ranks take part.

    Every parameter is in the share of one rank; rank 0 has all adapters. They are the optimiser's master copies where
    there are any.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    values = {}
    held = [0] * (1 if _adapted(engine) else world())
    for name, parameter in trained_parameters(engine):
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            with _gathered([parameter]):
                value = parameter.detach().clone()
        writer = held.index(min(held))
        held[writer] += value.numel()
        if rank() == writer:
            values[name] = value.to("cpu", copy=True).float()
    return values


def export(engine: Any, values: dict[str, Tensor], student: AnyPath, folder: Path) -> None:
    """Write this rank's share of a run's delta into ``folder`` in fp32: a PEFT adapter folder where adapters were
    trained, else ``delta.safetensors`` with tuned minus base.

    A run in bf16 starts from the base rounded to bf16, and that is subtracted: a delta is what training changed,
    without a rounding that all runs would share.

    Raises:
        DeltaError: the base folder lacks a parameter the model has, or has it in another shape.
    """
    model = engine.module.student
    if _adapted(engine):
        model.save_pretrained(str(folder), state_dict=values, safe_serialization=True, save_embedding_layers=False)
        return
    base = Checkpoint(student)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    starts = ((name, base.tensor(name).to(dtypes[name]).float()) for name in values)
    save_full_delta(folder, {name: _difference(name, values[name], start) for name, start in starts})


def _adapted(engine: Any) -> bool:
    return hasattr(engine.module.student, "peft_config")


def _difference(name: str, value: Tensor, start: Tensor) -> Tensor:
    if value.shape != start.shape:
        raise DeltaError(
            f"{name} has shape {list(value.shape)} after training and {list(start.shape)} in the base; sharded weights "
            "were not gathered, or the base is another model."
        )
    return value - start


@contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Any:
    """Make ZeRO-3 shards whole while inside; nothing to do at other stages."""
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
    else:
        yield
