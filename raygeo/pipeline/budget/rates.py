"""How long units took on this cluster: kept in the store as they are made, read for plans."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import pyarrow.fs as fs

from raygeo.records import FINISHED, RunRecord
from raygeo.store import Store

KIND = "rates"


@dataclass(frozen=True)
class Rate:
    """``units`` of a workload took ``seconds`` of busy processes, on GPUs or on CPUs alone."""

    units: int
    seconds: float
    gpu: bool

    @property
    def seconds_a_unit(self) -> float:
        """Of one process."""
        return self.seconds / self.units


def keep_rate(store: Store, workload: str, rate: Rate) -> None:
    """Add what was made now to what the store knows of a workload; nothing where nothing was made."""
    if not rate.units:
        return
    known = _kept(store).get(workload)
    if known is not None and known.gpu == rate.gpu:
        rate = Rate(known.units + rate.units, known.seconds + rate.seconds, rate.gpu)
    name = workload.replace("/", "-")
    store.write_bytes(f"{KIND}/{name}.json", json.dumps({"workload": workload, **asdict(rate)}).encode())


def read_rates(store: Store) -> dict[str, Rate]:
    """Every workload's rate; that of runs ("training") is of those in the table ``runs``."""
    found = _kept(store)
    runs = [RunRecord.of(row) for row in store.table("runs").to_pylist()]
    seconds = [run.seconds for run in runs if run.status == FINISHED and run.seconds]
    if seconds:
        gpu = any((run.training or {}).get("gpus", 0) > 0 for run in runs)
        found["training"] = Rate(len(seconds), sum(seconds), gpu)
    return found


def _kept(store: Store) -> dict[str, Rate]:
    selector = fs.FileSelector(store.path(KIND), allow_not_found=True)
    found = {}
    for info in store.filesystem.get_file_info(selector):
        with store.filesystem.open_input_stream(info.path) as stream:
            row = json.loads(stream.read())
        workload = row.pop("workload")
        found[workload] = Rate(**row)
    return found
