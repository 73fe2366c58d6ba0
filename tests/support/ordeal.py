"""A GPUStack under load whose processes are killed, and the account of what that cost."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpustack.db import Store
from gpustack.db.embedded import EmbeddedPostgres
from gpustack.db.repositories.usage import Totals
from support.house import House, be_humble, key_names
from support.load import Kill, Report, Traffic, Unheld, load

STREAMS = 32
_PATIENCE = 120.0
#: Tokens of the longest answer that is asked for, with some to spare.
_LONGEST = 1300
#: States that an instance leaves and enters again without a new start, when its worker is gone for a moment.
_AGAIN = frozenset({"running", "unreachable"})


class Ordeal:
    """Kills under load, and the account of them."""

    def __init__(self, house: House, traffic: Traffic) -> None:
        self.house = house
        self.traffic = traffic
        self.kills: list[Kill] = []
        self.unheld: list[Unheld] = []
        self._usage = usage(house)
        self._cut_off = cut_off(house)
        self._instances = {each["id"]: each for each in house.instances()}
        #: How often the engine of each instance was killed.
        self._engine_kills = Counter[int]()

    def kill(self, *victims: str) -> None:
        """Kill them at once; return when everything is whole, engines are the same, and the load runs again."""
        engines = self.house.engines()
        kills = self.house.kill_all(victims)
        self.kills += kills
        print(f"{' and '.join(victims)}: ready after {self.house.answering_after(kills[0].began):.2f} s")
        if {"door", "supervisor"} <= set(victims):
            self.unheld.append(Unheld(kills[0].began, time.monotonic()))
        self.house.wait_whole(2)
        lost = set(engines) - set(self.house.engines())
        assert len(lost) == victims.count("engine"), f"with {victims} engines died: {lost}"
        self._engine_kills.update(engine.instance for engine in lost)
        be_humble(self.house)
        self.wait_flowing()

    def wait_flowing(self) -> None:
        """Return when all streams are open and a second's worth of answers has come."""
        seen = self.traffic.answered
        deadline = time.monotonic() + _PATIENCE
        while self.traffic.streams < STREAMS or self.traffic.answered <= seen + 60:
            assert time.monotonic() < deadline, (
                f"{self.traffic.streams} streams, {self.traffic.answered - seen} answers"
            )
            time.sleep(0.05)

    def check(self, report: Report) -> None:
        """Nothing failed but what was in flight on the dead; every acknowledged row is there, once."""
        print(report.answered, report.slowest, f"{report.rate:.0f}/s", report.replaced, report.repeated)
        unexplained = report.unexplained(self.kills, self.unheld)
        assert not unexplained, report.account(self.kills, self.unheld)
        report.check_rows(key_names(self.house))
        self._check_usage(report)
        self._check_cut_off(report)
        self._check_instances(self.house.instances())
        check_history(self.house.instance_events())
        assert report.rate >= 50
        restarts = sum(kill.what == "supervisor" for kill in self.kills)
        assert self.house.attempts == [1] * restarts, "`gpustack start` did not come up at the first attempt"

    def _check_usage(self, report: Report) -> None:
        """Every token that a client saw is in the database, once; what was cut off may be there besides."""
        cut = sum(each.kind in ("chat", "stream") for each in report.failures)
        deadline = time.monotonic() + _PATIENCE
        while True:
            now = usage(self.house)
            there = [now.prompt_tokens - self._usage.prompt_tokens,
                     now.completion_tokens - self._usage.completion_tokens]  # fmt: skip
            # A gateway that was killed may have written down what its clients never got.
            if there == report.tokens or (cut and all(map(int.__ge__, there, report.tokens))):
                break
            assert time.monotonic() < deadline, f"{there} tokens are written down, {report.tokens} were seen"
            time.sleep(0.5)
        most = report.tokens[1] + cut * _LONGEST
        assert there[1] <= most, f"{there[1]} tokens are written down, at most {most} can have been seen"

    def _check_cut_off(self, report: Report) -> None:
        """What clients had of streams that were cut off is written down, whoever died."""
        deadline = time.monotonic() + _PATIENCE
        while (there := cut_off(self.house) - self._cut_off) < report.cut:
            assert time.monotonic() < deadline, f"{there} pieces are written down, {report.cut} were seen"
            time.sleep(0.5)

    def _check_instances(self, now: list[dict[str, Any]]) -> None:
        """No death makes, takes or doubles an instance; each restart is counted, once."""
        for what in ("id", "name", "pid", "port"):
            assert len({each[what] for each in now}) == len(now), f"{what} twice: {now}"
        wanted = {
            number: (each["name"], each["model_name"], each["restart_count"] + self._engine_kills[number])
            for number, each in self._instances.items()
        }
        found = {each["id"]: (each["name"], each["model_name"], each["restart_count"]) for each in now}
        assert found == wanted


def usage(house: House) -> Totals:
    """Return what the database has of whole answers of the model ``tiny``."""
    return _totals(house, status=200)


def cut_off(house: House) -> int:
    """Return the tokens of answers that were not whole."""
    return _totals(house).completion_tokens - usage(house).completion_tokens


def _totals(house: House, **filters: int) -> Totals:
    async def ask() -> Totals:
        url = EmbeddedPostgres(house.data_dir, house.data_dir / "log").recorded_url()
        async with await Store.open(url) as store:
            return await store.usage.totals(model="tiny", **filters)

    return asyncio.run(ask())


def check_history(events: list[dict[str, Any]]) -> None:
    """Nothing is told twice: ``events`` are all there are, oldest first."""
    told = Counter(
        (each["instance_name"], each["what"], each["restart_count"])
        for each in events
        if each["what"] not in _AGAIN
    )
    twice = [each for each, count in told.items() if count > 1]
    by_instance: dict[str, list[str]] = {}
    for each in events:
        by_instance.setdefault(each["instance_name"], []).append(each["what"])
    for name, whats in by_instance.items():
        twice += [(name, a, 0) for a, b in itertools.pairwise(whats) if a == b]
    assert not twice, f"told twice: {twice}\n" + "\n".join(map(str, events))


@contextmanager
def ordeal(house: House, key: str) -> Iterator[Ordeal]:
    """Put load on a house whose model ``tiny`` runs twice; when the block ends, everything is accounted for."""
    before = house.inventory()
    with load(house.url, key, "tiny", streams=STREAMS) as traffic:
        running = Ordeal(house, traffic)
        running.wait_flowing()
        yield running
    running.check(traffic.report)
    deadline = time.monotonic() + _PATIENCE
    while differences := before.differences(house.inventory()):
        assert time.monotonic() < deadline, "\n".join(differences)
        time.sleep(0.2)
