"""The plan of a study: every need on the device it would run on, with hours, and a remedy for what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from raygeo.errors import ConfigError
from raygeo.footprint.devices import GIB, Device
from raygeo.footprint.need import Need, Work
from raygeo.pipeline.budget.cluster import Cluster
from raygeo.pipeline.budget.facts import Facts
from raygeo.pipeline.budget.rates import Rate
from raygeo.pipeline.budget.stages import STAGES, Shapes, stage_needs
from raygeo.pipeline.config import Study, apply_override, parse_study


@dataclass(frozen=True)
class Line:
    """One need on its device: ``held`` bytes there and ``host`` bytes besides, of one process; ``at_once`` units.

    ``problem`` says what does not fit, "" where everything does; ``remedy`` are settings with which it does.
    """

    need: Need
    device: Device
    at_once: int
    hours: float | None
    measured: bool
    problem: str = ""
    remedy: tuple[str, ...] = ()

    @property
    def held(self) -> int:
        """Bytes on the device of one process."""
        return sum(self.need.device.values())

    @property
    def host(self) -> int:
        """Bytes of the machine's memory of one process besides."""
        return sum(self.need.host.values())

    @property
    def disk(self) -> int:
        """Bytes left in the store."""
        return sum(self.need.disk.values())


def make_plan(
    study: Study,
    facts: Facts,
    cluster: Cluster,
    rates: Mapping[str, Rate] | None = None,
    shapes: Shapes | None = None,
    *,
    remedies: bool = True,
    stages: Collection[str] = STAGES,
) -> list[Line]:
    """Every need of the study, or of some of its ``stages``, in their order."""
    shapes = shapes or Shapes(facts)
    lines = []
    needs = stage_needs(study, facts, shapes, cluster.gpu is not None, stages=stages)
    for need in needs:
        device, at_once = cluster.place(study, need)
        hours, measured = _hours(need, needs, device, at_once, rates or {})
        problem = misfit(need, device, cluster)
        found = remedy(study, facts, cluster, shapes, need) if problem and remedies else ()
        lines.append(Line(need, device, at_once, hours, measured, problem, found))
    return lines


def _hours(
    need: Need, needs: Sequence[Need], device: Device, at_once: int, rates: Mapping[str, Rate]
) -> tuple[float | None, bool]:
    """How long all units take, and whether that was measured: in proportion to the work, where needs share a rate."""
    rate = rates.get(need.rate)
    if rate is not None and rate.gpu == (device.kind == "cuda"):
        alike = [each for each in needs if each.rate == need.rate]
        work, units = sum(each.work.seconds(device) for each in alike), sum(each.units for each in alike)
        seconds = rate.seconds_a_unit * units * (need.work.seconds(device) / work if work else need.units / units)
        return seconds / at_once / 3600, True
    if need.unknown or need.work == Work():
        return None, False
    return need.work.seconds(device) / (at_once * need.processes) / 3600, False


def misfit(need: Need, device: Device, cluster: Cluster) -> str:
    """What of one unit does not fit, in words; "" where all does, or it is not known."""
    if need.unknown:
        return ""
    held, host = sum(need.device.values()), sum(need.host.values())
    if device.kind == "cpu":
        total = (held + host + device.reserve) * -(-need.processes // cluster.nodes)
        if total > device.memory:
            return f"{need.what} takes {gib(total)} of memory ({terms(need)}), and the machine has {gib(device.memory)}"
        return ""
    if held + device.reserve > device.memory:
        return (
            f"{need.what} takes {gib(held)} of a device ({terms(need)}), and of the {gib(device.memory)} of "
            f"{device.name} {gib(device.memory - device.reserve)} can be had"
        )
    if host > cluster.machine:
        return f"{need.what} takes {gib(host)} of the machine's memory, which has {gib(cluster.machine)}"
    return ""


def terms(need: Need) -> str:
    """The largest terms of a need, in words."""
    largest = sorted({**need.device, **need.host}.items(), key=lambda term: -term[1])[:3]
    return ", ".join(f"{name} {gib(held)}" for name, held in largest)


def gib(count: float) -> str:
    """Bytes as GiB or MiB."""
    if count >= 100 * GIB:
        return f"{count / GIB:.0f} GiB"
    return f"{count / GIB:.1f} GiB" if count >= GIB / 2 else f"{count / 2**20:.0f} MiB"


def remedy(study: Study, facts: Facts, cluster: Cluster, shapes: Shapes, need: Need) -> tuple[str, ...]:
    """The fewest of a need's remedies, taken in order, with which it fits by the same formulas; none if none do."""
    shorter = [f"rollouts.max_tokens={facts.rollouts.longest // part}" for part in (2, 4)]
    without = [f"{stage_of(need)}=null"] if need.what.startswith("geometry.") else []
    return fewest(
        (*need.remedies, *shorter, *without),
        lambda overrides: fits_with(study, facts, cluster, shapes, need, overrides),
        lambda override: changed_study(study, (override,)) is not None,
    )


def fits_with(
    study: Study, facts: Facts, cluster: Cluster, shapes: Shapes, need: Need, overrides: tuple[str, ...]
) -> bool:
    """Whether what a study needs fits once these settings are changed."""
    changed = changed_study(study, overrides)
    if changed is None:
        return False
    facts = facts.within(changed.rollouts.max_tokens)
    needs = stage_needs(changed, facts, shapes, cluster.gpu is not None, only=stage_of(need))
    alike = [each for each in needs if each.what == need.what] or needs
    return not any(misfit(each, cluster.place(changed, each)[0], cluster) for each in alike)


def fewest(
    remedies: tuple[str, ...], fits: Callable[[tuple[str, ...]], bool], known: Callable[[str], bool]
) -> tuple[str, ...]:
    """Of overrides taken up one after the other until ``fits``, those it cannot do without; a later value of a setting
    takes the place of an earlier one.
    """
    taken: dict[str, str] = {}
    for override in filter(known, remedies):
        taken[override.partition("=")[0]] = override
        if fits(tuple(taken.values())):
            break
    else:
        return ()
    for place in list(taken):
        without = tuple(override for other, override in taken.items() if other != place)
        if fits(without):
            del taken[place]
    return tuple(taken.values())


def changed_study(study: Study, overrides: tuple[str, ...]) -> Study | None:
    """The study with settings changed; None where it has no such setting, or may not be so."""
    raw = study.model_dump(mode="json")
    try:
        for override in overrides:
            apply_override(raw, override)
        return parse_study(raw)
    except ConfigError:
        return None


def stage_of(need: Need) -> str:
    """The stage that a need is of."""
    return need.what.partition(" ")[0].partition(",")[0]
