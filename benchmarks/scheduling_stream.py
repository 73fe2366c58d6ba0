"""A mixed fleet and a mixed stream of requests for the benchmark of the scheduler, from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from gpustack.kit.text import MIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import FilesThere, Gpu, Offer, Request, Way, Worker
from gpustack.schemas import PlacementStrategy


@dataclass(frozen=True)
class Machine:
    """A kind of worker with eight GPUs; ``islands`` says how many of them are linked to each other."""

    kind: str
    vendor: str
    capability: int
    memory: int
    island: int
    share: float


MACHINES = (
    Machine("h100", "nvidia", 90, 78_000, 8, 0.30),
    Machine("a100-40", "nvidia", 80, 38_500, 8, 0.15),
    Machine("l40s", "nvidia", 89, 45_000, 1, 0.20),
    Machine("mi300x", "amd", 94, 188_000, 8, 0.10),
    Machine("a100-pcie", "nvidia", 80, 78_000, 2, 0.15),
    Machine("v100", "nvidia", 70, 31_000, 4, 0.10),
)
POOLS = ("prod", "batch", "dev")
THERE = FilesThere(ready=True)


def workers(count: int, seed: int) -> list[Worker]:
    """Return ``count`` workers; one of a hundred is not ready, and as many have a broken GPU."""
    dice = random.Random(seed)
    made = []
    for number in range(1, count + 1):
        machine = dice.choices(MACHINES, [each.share for each in MACHINES])[0]
        zone = dice.randrange(8)
        sizes = [machine.memory] * 8
        if dice.random() < 0.01:
            sizes[dice.randrange(8)] = 0
        made.append(
            Worker(
                id=number,
                name=f"worker-{number}",
                cluster_id=1,
                ready=dice.random() > 0.01,
                labels={"zone": f"z{zone}", "pool": dice.choice(POOLS), "accelerator": machine.kind},
                kind=machine.kind,
                fabric=f"{machine.kind}-z{zone}",
                backends=frozenset({"vllm"}),
                ram_total=(2_000_000 if machine.memory > 50_000 else 1_000_000) * MIB,
                gpus=tuple(
                    Gpu(
                        index=index,
                        uuid=f"{number}-{index}",
                        total=size * MIB,
                        island=index // machine.island if machine.island > 1 else None,
                    )
                    for index, size in enumerate(sizes)
                ),
            )
        )
    return made


class Stream:
    """Requests without end: 70 % for one GPU or part of it, 15 % for two, 10 % for four or eight, 5 % for gangs."""

    def __init__(self, fleet: list[Worker], seed: int, *, binpack_only: bool = False) -> None:
        self._dice = random.Random(seed)
        self._count = len(fleet)
        self._binpack_only = binpack_only
        self._number = 0

    def next(self) -> Request:
        """Return the next request."""
        dice = self._dice
        self._number += 1
        gpus, share, members = self._size()
        claim = ResourceClaim(ram=dice.randint(1000, 8000) * gpus * MIB, vram=gpus * share * MIB, gpus=gpus)
        way = Way(
            backend="vllm",
            version="1",
            claim=claim,
            followers=(claim,) * (members - 1),
            linked=gpus > 1 and dice.random() < 0.1,
        )
        offer, refused = Offer(ways=(way,)), Offer(refusals=("vllm: not on this device",))
        fits = self._devices()
        local: frozenset[int] = frozenset()
        if dice.random() < 0.3:
            local = frozenset(dice.sample(range(1, self._count + 1), min(self._count, dice.randint(1, 12))))
        spread = dice.random() < 0.15 and not self._binpack_only
        return Request(
            instance_id=self._number,
            model_id=dice.randint(1, 2000),
            model_name="model",
            cluster_id=1,
            selector=self._selector(),
            strategy=PlacementStrategy.SPREAD if spread else PlacementStrategy.BINPACK,
            files_elsewhere=THERE,
            kinds={each.kind: offer if each.kind in fits else refused for each in MACHINES},
            local=local,
        )

    def _size(self) -> tuple[int, int, int]:
        dice = self._dice
        chance = dice.random()
        if chance < 0.70:
            part = dice.random() < 0.8
            return 1, dice.randint(2000, 24_000) if part else dice.randint(24_000, 70_000), 1
        if chance < 0.85:
            small = dice.random() < 0.7
            return 2, dice.randint(8000, 40_000) if small else dice.randint(40_000, 76_000), 1
        if chance < 0.95:
            return dice.choice((4, 8)), dice.randint(20_000, 76_000), 1
        return dice.choice((8, 8, 8, 4)), dice.randint(20_000, 76_000), dice.choice((2, 2, 3, 4))

    def _devices(self) -> set[str]:
        dice = self._dice
        chance = dice.random()
        if chance < 0.6:
            vendors, capability = {"nvidia"}, dice.choice((0, 70, 80, 80, 89))
        elif chance < 0.9:
            vendors, capability = {"amd", "nvidia"}, dice.choice((0, 80))
        else:
            vendors, capability = {"amd"}, 0
        return {each.kind for each in MACHINES if each.vendor in vendors and each.capability >= capability}

    def _selector(self) -> dict[str, str]:
        dice = self._dice
        if dice.random() >= 0.20:
            return {}
        chance = dice.random()
        if chance < 0.4:
            return {"pool": dice.choice(POOLS)}
        if chance < 0.7:
            return {"zone": f"z{dice.randrange(8)}"}
        if chance < 0.9:
            return {"accelerator": dice.choice(MACHINES).kind}
        return {"pool": "prod", "zone": f"z{dice.randrange(8)}"}
