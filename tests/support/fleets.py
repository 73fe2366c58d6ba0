"""Small random fleets and requests, as odd as they may be."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from gpustack.kit.text import GIB, MIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import FilesThere, Gpu, Offer, Request, Way, Worker
from gpustack.schemas import PlacementStrategy

_ISLANDS: dict[str, Any] = {
    "none": lambda index: None,
    "one": lambda index: 0,
    "pairs": lambda index: index // 2,
    "interleaved": lambda index: index % 2,
}


@dataclass
class Odds:
    """Makes things up from ``seed``."""

    seed: int
    #: Some claims are in pieces.
    pieces: bool = False

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        #: Few ways, so that several kinds offer the same.
        self._ways = [self._way() for _ in range(5)]

    def workers(self, count: int) -> list[Worker]:
        """Return workers 1 to ``count``, in any order."""
        numbers = self.dice.sample(range(1, count + 1), count)
        return [self.worker(each) for each in numbers]

    def worker(self, number: int) -> Worker:
        """Return a worker with up to four GPUs."""
        dice = self.dice
        island = _ISLANDS[dice.choice(list(_ISLANDS))]
        step = 2 if number % 3 == 0 else 1
        return Worker(
            id=number,
            name=f"worker-{number}",
            cluster_id=dice.choice((1, 1, 1, 2)),
            ready=dice.random() < 0.9,
            labels={"zone": dice.choice("ab")} if dice.random() < 0.7 else {},
            kind=dice.choice("pq"),
            fabric=dice.choice(("", "", "fast")),
            backends=frozenset(dice.sample(("x", "y"), dice.choice((1, 2, 2)))),
            ram_total=dice.randint(2, 20) * GIB,
            ram_others=dice.choice((0, 0, GIB)),
            ram_reserved=dice.choice((0, MIB // 2, GIB)),
            vram_reserved=dice.choice((0, 0, MIB * 3 // 2)),
            unified_memory=dice.random() < 0.15,
            gpus=tuple(
                Gpu(
                    index=index * step,
                    uuid=f"{number}-{index}",
                    total=dice.randint(1, 6) * GIB,
                    others=dice.choice((0, 0, 0, GIB)),
                    island=island(index),
                )
                for index in range(dice.choice((0, 1, 2, 2, 3, 4)))
            ),
        )

    def request(self, number: int, workers: int) -> Request:
        """Return a request with offers by kind, by worker, or both."""
        dice, ids = self.dice, range(1, workers + 1)
        common, more = self._offer(), dict[str, Any]()
        if dice.random() < 0.6:
            more["kinds"] = {"p": common, "q": common if dice.random() < 0.6 else self._offer()}
        if not more or dice.random() < 0.3:
            some = [each for each in ids if dice.random() < 0.8]
            more["offers"] = {each: common if dice.random() < 0.7 else self._offer() for each in some}
        if dice.random() < 0.7:
            more["files_elsewhere"] = FilesThere(ready=True)
        if "files_elsewhere" not in more or dice.random() < 0.3:
            some = [each for each in ids if dice.random() < 0.9]
            more["files"] = {each: FilesThere(ready=dice.random() < 0.8, reason="no files") for each in some}
        if dice.random() < 0.08:
            more["gpus"] = {f"worker-{dice.choice(ids)}": frozenset({0, 1}), "worker-1": frozenset({0})}
        return Request(
            instance_id=number,
            model_id=dice.randint(1, 4),
            model_name="model",
            cluster_id=1,
            selector={"zone": "a"} if dice.random() < 0.2 else {},
            strategy=dice.choice(list(PlacementStrategy)),
            avoid=self._some(ids, (0, 0, 0, 1, 2)),
            local=self._some(ids, (0, 0, 1, 3)),
            **more,
        )

    def _some(self, ids: range, counts: tuple[int, ...]) -> frozenset[int]:
        return frozenset(self.dice.sample(ids, min(len(ids), self.dice.choice(counts))))

    def _offer(self) -> Offer:
        ways = tuple(self.dice.choice(self._ways) for _ in range(self.dice.choice((1, 1, 1, 2, 3, 0))))
        if ways:
            return Offer(ways=ways)
        refused = self.dice.random() < 0.5
        return Offer(refusals=("x: no",)) if refused else Offer(platform_refusals=("x: no build",))

    def _way(self) -> Way:
        dice, claim = self.dice, self._claim()
        followers: tuple[ResourceClaim, ...] = ()
        if dice.random() < 0.25:
            followers = tuple(self._claim() for _ in range(dice.choice((1, 1, 2))))
            if dice.random() < 0.5:
                followers = (claim,) * len(followers)
        places: tuple[str, ...] = ()
        if followers and dice.random() < 0.4:
            places = tuple(dice.choice(("", "p", "q")) for _ in range(len(followers) + 1))
        if self.pieces and not followers and dice.random() < 0.25:
            claim = self._in_pieces()
        return Way(
            backend=dice.choice("xy"),
            version="1",
            claim=claim,
            followers=followers,
            places=places,
            linked=dice.random() < 0.2,
        )

    def _in_pieces(self) -> ResourceClaim:
        dice = self.dice
        return ResourceClaim.in_pieces(
            dice.randint(1, 9),
            dice.randint(1, 6) * GIB // 4 + dice.choice((0, 7)),
            gpus=dice.randint(1, 4),
            ram=dice.choice((0, 1, 2)) * GIB,
            each=dice.choice((0, 3, GIB // 2)),
            last=dice.choice((0, 0, 5, GIB)),
            partial=dice.random() < 0.5,
        )

    def _claim(self) -> ResourceClaim:
        dice = self.dice
        gpus = dice.choice((0, 1, 1, 1, 2, 2, 3, 4))
        vram = gpus * dice.randint(1, 5) * GIB // dice.choice((1, 2, 3))
        return ResourceClaim(ram=dice.choice((0, 1, 2, 4)) * GIB + dice.choice((0, 5)), vram=vram, gpus=gpus)
