"""What there is to do, as gateways say it by routes and instances, told on by models: what autoscaling goes by."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from gpustack.dataplane.table.load import LoadTeller
from gpustack.dataplane.table.wire import Load
from gpustack.server.reconcile.scaling import FleetLoad
from gpustack.settings.gateway import ChosenGateway

log = logging.getLogger(__name__)

#: Seconds between two looks at what this process itself has to do.
_EVERY = 0.5

#: Returns the models that a route leads to, each with its share of the requests.
Leads = Callable[[str], Mapping[int, float]]


@dataclass(slots=True)
class _Source:
    """What one gateway has said; None until it has said anything."""

    routes: dict[str, tuple[int, int, int]] | None = None
    instances: dict[int, int] = field(default_factory=dict)


def least_to_tell(gateway: ChosenGateway) -> int | None:
    """Return how many have to say what they have to do before "nothing" is believed; None when some never say."""
    if gateway.programs or (gateway.name and not gateway.data_path):
        return None
    # The server carries requests, too: where there are gateways, one of them has to have said something besides.
    return 2 if gateway.data_path else 1


class Loads:
    """Adds up what all gateways say. ``told`` gets the whole whenever it changes, ``woken`` models to be started.

    As long as one has said nothing, or fewer than ``least`` have, it is not known that nothing is asked; with None that
    is never known, since requests go by ways that say nothing.
    """

    def __init__(self, leads: Leads, *, least: int | None = 1) -> None:
        self._leads = leads
        self._least = least
        self._sources: dict[object, _Source] = {}
        self.told: Callable[[FleetLoad], None] = lambda _load: None
        self.woken: Callable[[Collection[int]], None] = lambda _models: None

    def expect(self, source: object) -> None:
        """Know of a gateway that is about to say what it has to do."""
        self._sources[source] = _Source()
        self._tell(frozenset())

    def take(self, source: object, load: Load) -> None:
        """Take in what has changed at a gateway."""
        known = self._sources.setdefault(source, _Source())
        first = known.routes is None
        routes = known.routes = known.routes or {}
        asked = {
            name
            for name, (_, _, count) in load.routes.items()
            # What it was asked before it came to us may be long ago.
            if not first and count != routes.get(name, (0, 0, 0))[2]
        }
        routes.update(load.routes)
        # A gateway says of a route that is gone that it has nothing to do, and then nothing more.
        for name, (running, waiting, _) in load.routes.items():
            if not (running or waiting or self._leads(name)):
                del routes[name]
        known.instances.update(load.instances)
        for number in [number for number, count in load.instances.items() if not count]:
            del known.instances[number]
        self._tell(frozenset(model for name in asked for model in self._leads(name)))

    def forget(self, source: object) -> None:
        """Forget a gateway that is gone."""
        if self._sources.pop(source, None) is not None:
            self._tell(frozenset())

    def wake(self, route: str) -> None:
        """Have the models started that a route leads to, as far as they are asleep."""
        models = [model for model, share in self._leads(route).items() if share > 0]
        log.info("route %s: somebody waits for it", route)
        self.woken(models)

    def _tell(self, asked: frozenset[int]) -> None:
        waiting: dict[int, float] = {}
        running: dict[int, int] = {}
        for source in self._sources.values():
            for name, (_, count, _) in (source.routes or {}).items():
                if count:
                    for model, share in self._leads(name).items():
                        waiting[model] = waiting.get(model, 0.0) + count * share
            for number, count in source.instances.items():
                running[number] = running.get(number, 0) + count
        all_told = all(each.routes is not None for each in self._sources.values())
        known = all_told and self._least is not None and len(self._sources) >= self._least
        rounded = {model: round(count) or 1 for model, count in waiting.items() if count}
        self.told(FleetLoad(waiting=rounded, running=running, asked=asked, known=known))


async def tell(teller: LoadTeller, loads: Loads) -> NoReturn:
    """Say what the data path of this process has to do, whenever that is otherwise."""
    source = object()
    loads.take(source, teller.news() or Load())
    while True:
        await asyncio.sleep(_EVERY)
        if (news := teller.news()) is not None:
            loads.take(source, news)
