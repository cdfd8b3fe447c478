"""What a run leaves behind: its delta in fp32, whole, whatever sharded it."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raygeo.errors import DeltaError
from raygeo.models.checkpoint import Checkpoint
from raygeo.models.delta import check_delta, save_full_delta
from raygeo.store import AnyPath, Store
from raygeo.training.engine import broadcast, rank


def keep_delta(engine: Any, student: AnyPath, store: Store, kind: str, key: str, *, moved: bool = True) -> str | None:
    """Put the engine's delta into the store as ``<kind>/<key>``; all ranks take part, rank 0 writes.

    Where a parameter is not finite nothing is written, and the first such parameter's name is returned on every rank.

    Raises:
        DeltaError: the delta is empty, or zero everywhere although it ought to have ``moved``.
    """
    values = trained_values(engine)
    broken = broadcast(next((name for name, value in values.items() if not bool(value.isfinite().all())), None))
    if broken is None and rank() == 0:
        folder = store.scratch()
        export(engine, values, student, folder)
        if moved:
            check_delta(folder)
        store.delete_folder(kind, key)  # that of an attempt whose record was never written
        store.save_folder(kind, key, folder)
    return broken


def trained_values(engine: Any) -> dict[str, Tensor]:
    """The fp32 values of all trained parameters, whole, on rank 0's CPU; all ranks take part, the others get none.

    They are the optimiser's master copies where there are any.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    values = {}
    for name, parameter in engine.module.student.named_parameters():
        if not parameter.requires_grad:
            continue
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            with _gathered([parameter]):
                value = parameter.detach().clone()
        if rank() == 0:
            values[name] = value.to("cpu", copy=True).float()
    return values


def export(engine: Any, values: dict[str, Tensor], student: AnyPath, folder: Path) -> None:
    """Write a run's delta into ``folder`` in fp32: a PEFT adapter folder where adapters were trained, else
    ``delta.safetensors`` with tuned minus base for every parameter.

    A run in bf16 starts from the base rounded to bf16, and that is subtracted: a delta is what training changed,
    without a rounding that all runs would share.

    Raises:
        DeltaError: the base folder lacks a parameter the model has, or has it in another shape.
    """
    model = engine.module.student
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), state_dict=values, safe_serialization=True, save_embedding_layers=False)
        return
    base = Checkpoint(student)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    starts = ((name, base.tensor(name).to(dtypes[name]).float()) for name in values)
    save_full_delta(folder, {name: _difference(name, values[name], start) for name, start in starts})


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
