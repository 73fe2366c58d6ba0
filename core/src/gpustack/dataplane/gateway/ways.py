"""What each request for a route needs of it, in one place: looked up once, where each part would be looked for by name."""

from __future__ import annotations

from gpustack.dataplane.admission import Room
from gpustack.dataplane.choosing import Known, prefix
from gpustack.dataplane.metering.metrics import ModelSeries
from gpustack.plugin.routing import Route


class Way:
    """One route of one table. Forgotten when the table has another one under its name."""

    __slots__ = ("known", "room", "route", "salt", "series")

    def __init__(self, route: Route, room: Room, known: Known) -> None:
        self.route = route
        #: What admission and the chooser know of it.
        self.room = room
        self.known = known
        #: What the marks of its requests start from.
        self.salt = prefix.salt(route.name)
        #: What its requests are counted in, once one has ended.
        self.series: ModelSeries | None = None
