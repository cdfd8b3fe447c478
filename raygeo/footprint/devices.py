"""Devices by name: how much they hold, and how fast they are said to be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from raygeo.errors import ConfigError

Dtype = Literal["bf16", "fp32", "fp64"]
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator, or a CPU with the machine's memory.

    ``memory`` in bytes; ``flops`` are peak operations a second by dtype (dense; fp32 without TF32, as torch multiplies
    by default), ``bandwidth`` bytes a second of its memory. ``mfu`` is the share of the peak that a pass is assumed to
    reach, ``launch`` the host's seconds that one block of a decode step is assumed to take.
    """

    name: str
    memory: int
    flops: Mapping[Dtype, float]
    bandwidth: float
    kind: Literal["cpu", "cuda"] = "cuda"
    mfu: float = 0.4
    launch: float = 1.4e-3

    @property
    def reserve(self) -> int:
        """Bytes that no tensor of ours gets: CUDA's context and kernels and 3 % for fragmentation, or a process's
        libraries.
        """
        return int(0.6 * GIB) if self.kind == "cpu" else int(GIB + 0.03 * self.memory)

    def assumptions(self) -> str:
        """What hours are estimated by where nothing was measured."""
        speeds = ", ".join(f"{name} {speed / 1e12:.4g}" for name, speed in self.flops.items())
        return (
            f"{self.name}: {self.memory / GIB:.0f} GiB, peak TFLOP/s {speeds}, {self.bandwidth / 1e12:.3g} TB/s; "
            f"assumed: {self.mfu:.0%} of the peak, 60 % of the bandwidth, {1000 * self.launch:.3g} ms of host time a "
            "block and decoded token"
        )


def _gpu(name: str, gib: float, bf16: float, fp32: float, fp64: float, bandwidth: float) -> Device:
    flops: dict[Dtype, float] = {"bf16": bf16 * 1e12, "fp32": fp32 * 1e12, "fp64": fp64 * 1e12}
    return Device(name, int(gib * GIB), flops, bandwidth * 1e12)


DEVICES = {
    device.name: device
    for device in (  # vendors' data sheets: GiB as the driver reports them, dense TFLOP/s, TB/s
        _gpu("b200", 178, 2250, 75, 37, 8.0),
        _gpu("h200", 139, 989, 67, 34, 4.8),
        _gpu("h100", 79, 989, 67, 34, 3.35),
        _gpu("a100", 79, 312, 19.5, 9.7, 2.04),
        _gpu("a100-40", 39, 312, 19.5, 9.7, 1.56),
        _gpu("l40s", 44, 362, 91.6, 1.4, 0.86),
        _gpu("a10g", 22, 70, 35, 0.5, 0.6),
        _gpu("rtx4090", 23, 165, 82.6, 1.3, 1.01),
        _gpu("v100", 31, 15.7, 15.7, 7.8, 0.9),
    )
}
CORE = 3e10
"""Operations a second that a CPU's core is assumed to peak at in fp32, four times as many as in bf16 without AMX."""


def cpu(memory: int, cores: float) -> Device:
    """A machine's CPU; its processes share ``memory``, and one has ``cores``."""
    peak = CORE * max(cores, 1)
    flops: dict[Dtype, float] = {"bf16": peak / 4, "fp32": peak, "fp64": peak / 2}
    return Device("cpu", memory, flops, 1e10, "cpu", 0.5, 1e-4)


def find_device(text: str, memory: int, cores: float) -> Device:
    """A device by its name; ``cpu``, or ``FLOPS:GB`` (bf16 operations a second and GB, as ``4e14:64``).

    ``memory`` and ``cores`` are what a process on a CPU has.

    Raises:
        ConfigError: it is none of these.
    """
    if text.lower() == "cpu":
        return cpu(memory, cores)
    if text.lower() in DEVICES:
        return DEVICES[text.lower()]
    if (numbers := _flops_and_gb(text)) is not None:
        flops, gb = numbers
        return Device(text, int(gb * 1e9), {"bf16": flops, "fp32": flops / 15, "fp64": flops / 30}, flops / 250)
    near = get_close_matches(text.lower(), DEVICES, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the names are cpu, {', '.join(DEVICES)}."
    raise ConfigError(f"--device {text!r}: neither a device's name nor FLOPS:GB (as 4e14:64); {hint}")


def _flops_and_gb(text: str) -> tuple[float, float] | None:
    """The numbers of ``FLOPS:GB``, None where these are not two that a device could have."""
    try:
        flops, gb = map(float, text.split(":"))
    except ValueError:
        return None
    return (flops, gb) if 1e6 <= flops <= 1e21 and 1e-3 <= gb <= 1e6 else None


def device_of_card(card: str, memory: int) -> Device:
    """The device that a driver calls ``card``, with ``memory`` bytes; of an unknown one the speed of an A100."""
    words = re.sub(r"[^a-z0-9]", "", card.lower())
    found = next((device for name, device in DEVICES.items() if name.partition("-")[0] in words), DEVICES["a100"])
    return Device(card, memory, found.flops, found.bandwidth)
