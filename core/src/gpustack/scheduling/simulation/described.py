"""A fleet and its workload as they are described in YAML, read into what the scheduler works with.

Both take plain values and raise WrongValue with the place of what is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpustack.kit.text import human_bytes
from gpustack.plugin.values import ResourceClaim
from gpustack.scheduling.request import FilesThere, Offer, Request, Way
from gpustack.scheduling.simulation.plain import Part, Place, WrongValue
from gpustack.scheduling.snapshot import Gpu, Worker
from gpustack.schemas.models import PlacementStrategy

#: The only backend of described fleets, unless they name others.
BACKEND = "any"
MOST_WORKERS = 100_000
_STRATEGIES = {each.value: each for each in PlacementStrategy}
_THERE = FilesThere(ready=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Requests of one kind. Times are seconds."""

    name: str
    claim: ResourceClaim
    #: Of one on several workers, the claims of the other members.
    followers: tuple[ResourceClaim, ...]
    linked: bool
    strategy: PlacementStrategy
    selector: dict[str, str]
    #: Takes the place of lower ones where nothing is free.
    priority: int
    #: Mean time between two, else the moment when ``count`` of them come at once.
    every: float | None
    at: float
    #: How many come: all of them at ``at``, or at most, in their turn.
    count: int | None
    #: Mean time that one runs; None for ever.
    lasts: float | None

    def request(self, number: int, kinds: frozenset[str], backends: frozenset[str]) -> Request:
        """Return the request of instance ``number`` on a fleet with workers of these kinds and with these backends."""
        ways = tuple(
            Way(
                backend=backend,
                version="",
                claim=self.claim,
                followers=self.followers,
                linked=self.linked,
            )
            for backend in sorted(backends)
        )
        offer = Offer(ways=ways)
        return Request(
            instance_id=number,
            model_id=number,
            model_name=self.name,
            cluster_id=0,
            selector=self.selector,
            strategy=self.strategy,
            priority=self.priority,
            files_elsewhere=_THERE,
            kinds=dict.fromkeys(sorted(kinds), offer),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Workers that are lost for a while. Times are seconds."""

    #: Name of the worker; empty is another one each time.
    worker: str
    every: float | None
    at: float
    lasts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What happens to a fleet in ``duration`` seconds."""

    duration: float
    kinds: tuple[Kind, ...]
    failures: tuple[Failures, ...] = ()
    seed: int = 0


# Fleets --------------------------------------------------------------------------------------------------


def fleet(document: object) -> list[Worker]:
    """Return the workers that ``document`` describes, numbered from 1 in their order."""
    part = Part(document, (), ("workers",), "a fleet")
    items = part.items("workers")
    if not items:
        raise WrongValue(part.at("workers"), "a fleet has workers; list at least one")
    found: list[Worker] = []
    names: set[str] = set()
    for item, place in items:
        group = Part(item, place, _GROUP, "a worker")
        count = group.whole("count", 1, least=1, most=MOST_WORKERS)
        if len(found) + count > MOST_WORKERS:
            raise group.wrong("count", f"more than {MOST_WORKERS} workers are too many to simulate")
        name = group.text("name")
        gpus = _gpus(group)
        for number in range(1, count + 1):
            own = f"{name}-{number}" if "count" in group else name
            if own in names:
                raise group.wrong("name", f"there are two workers with the name {own!r}")
            names.add(own)
            found.append(_worker(len(found) + 1, own, group, gpus))
    return found


_GROUP = ("name", "count", "gpus", "ram", "labels", "network", "backends", "reserved")


def _worker(number: int, name: str, group: Part, gpus: tuple[Gpu, ...]) -> Worker:
    reserved = Part(group.raw("reserved") or {}, group.at("reserved"), ("ram", "vram"), "what is reserved")
    ram, ram_reserved = group.size("ram", "256GiB"), reserved.size("ram", "0")
    vram_reserved = reserved.size("vram", "0")
    if ram_reserved > ram:
        raise reserved.wrong("ram", f"that is more than the {human_bytes(ram)} that the worker has")
    if small := min((gpu.total for gpu in gpus if gpu.total < vram_reserved), default=0):
        raise reserved.wrong(
            "vram", f"that is more than the {human_bytes(small)} that a GPU of the worker has"
        )
    backends = frozenset(str(item) for item, _ in group.items("backends")) or frozenset({BACKEND})
    return Worker(
        id=number,
        name=name,
        cluster_id=0,
        ready=True,
        labels=group.texts("labels"),
        fabric=group.text("network", ""),
        backends=backends,
        ram_total=ram,
        ram_reserved=ram_reserved,
        vram_reserved=vram_reserved,
        gpus=gpus,
    )


def _gpus(group: Part) -> tuple[Gpu, ...]:
    value = group.raw("gpus")
    items: list[tuple[object, Place]] = (
        [(value, group.at("gpus"))] if isinstance(value, dict) else group.items("gpus")
    )
    found: list[Gpu] = []
    islands = 0
    for item, place in items:
        part = Part(item, place, ("count", "memory", "linked", "name"), "a kind of GPU")
        count = part.whole("count", 1, least=1, most=64)
        size = _island(part, count)
        for number in range(count):
            found.append(
                Gpu(
                    index=len(found),
                    uuid="",
                    name=part.text("name", ""),
                    total=part.size("memory"),
                    island=islands + number // size if size > 1 else None,
                )
            )
        islands += -(-count // size)
    return tuple(found)


def _island(part: Part, count: int) -> int:
    """Return how many GPUs are linked with each other: all, a number of them, or each with none."""
    value = part.raw("linked")
    if isinstance(value, bool) or value is None:
        return count if value else 1
    return part.whole("linked", least=1, most=count)


# Workloads -----------------------------------------------------------------------------------------------

_WORKLOAD = ("duration", "requests", "failures", "seed")
_REQUEST = (
    *("name", "gpus", "vram", "ram", "workers", "members", "linked", "strategy", "selector", "priority"),
    *("every", "at", "count", "lasts"),
)


def workload(document: object) -> Workload:
    """Return the workload that ``document`` describes."""
    part = Part(document, (), _WORKLOAD, "a workload")
    duration = part.seconds("duration")
    if duration <= 0:
        raise part.wrong("duration", "a simulation lasts longer than that")
    kinds = tuple(_kind(item, place) for item, place in part.items("requests"))
    if not kinds:
        raise WrongValue(part.at("requests"), "a workload has requests; list at least one kind")
    names: set[str] = set()
    for kind, (_, place) in zip(kinds, part.items("requests"), strict=True):
        if kind.name in names:
            raise WrongValue((*place, "name"), f"there are two kinds of requests with the name {kind.name!r}")
        names.add(kind.name)
    failures = tuple(_failure(item, place) for item, place in part.items("failures"))
    return Workload(duration=duration, kinds=kinds, failures=failures, seed=part.whole("seed", 0))


def _kind(item: object, place: Place) -> Kind:
    part = Part(item, place, _REQUEST, "a kind of request")
    claim, *followers = (
        _members(part) if "members" in part else [_claim(part)] * part.whole("workers", 1, least=1, most=64)
    )
    every, at, count = _times(part)
    return Kind(
        name=part.text("name"),
        claim=claim,
        followers=tuple(followers),
        linked=part.flag("linked", default=False),
        strategy=part.choice("strategy", _STRATEGIES, PlacementStrategy.BINPACK.value),
        selector=part.texts("selector"),
        priority=part.whole("priority", 0),
        every=every,
        at=at,
        count=count if every is not None or count is not None else 1,
        lasts=part.seconds("lasts") if "lasts" in part else None,
    )


def _claim(part: Part) -> ResourceClaim:
    gpus = part.whole("gpus", 1 if "vram" in part else 0, most=64)
    vram = part.size("vram", "0") if gpus else 0
    if gpus and not vram:
        raise WrongValue(part.place, "vram is missing: the memory that it takes on each of its GPUs")
    if "vram" in part and not gpus:
        raise part.wrong("vram", "without GPUs there is no memory of GPUs")
    return ResourceClaim(ram=part.size("ram", "0"), vram=vram * gpus, gpus=gpus)


def _members(part: Part) -> list[ResourceClaim]:
    """Return what the members of a request take that are not alike, the leader's first."""
    for name in ("gpus", "vram", "ram", "workers"):
        if name in part:
            raise part.wrong(name, "with `members`, each of them says what it takes")
    items = part.items("members")
    if not 2 <= len(items) <= 64:
        raise WrongValue(part.at("members"), f"expected 2 to 64 members, not {len(items)}")
    return [_claim(Part(item, place, ("gpus", "vram", "ram"), "a member")) for item, place in items]


def _times(part: Part) -> tuple[float | None, float, int | None]:
    if ("every" in part) == ("at" in part):
        raise WrongValue(part.place, "it comes either `every` so often, or `at` one time; give one of them")
    count = part.whole("count", least=1, most=10_000_000) if "count" in part else None
    if "at" in part:
        return None, part.seconds("at"), count
    every = part.seconds("every")
    if every <= 0:
        raise part.wrong("every", "there is some time between two of them, such as 30s")
    return every, 0.0, count


def _failure(item: object, place: Place) -> Failures:
    part = Part(item, place, ("worker", "every", "at", "lasts"), "a failure")
    every, at, _ = _times(part)
    return Failures(worker=part.text("worker", ""), every=every, at=at, lasts=part.seconds("lasts"))
