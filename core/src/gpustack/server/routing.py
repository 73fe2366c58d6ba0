"""The routing table, kept in memory from the database's events, so that inference requests touch no database.

routing = Routing(store, feed, upstream, balancer, built_in=config.built_in_worker)
await routing.load()
unsubscribe = routing.listen(lambda table, delta: ...)
await routing.run()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn, TypeVar

from gpustack.db import Feed, Store, StoredEvent
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.plugin.routing import Principal, RoutingDelta, RoutingTable
from gpustack.schemas import EventType, ModelInstancePublic, ModelPublic, ModelRoutePublic
from gpustack.server.routing_keys import Handle, Principals, Row
from gpustack.server.routing_routes import Routes
from gpustack.server.routing_targets import Fleet

log = logging.getLogger(__name__)

_TOPICS = frozenset({"models", "model-routes", "model-instances", "workers", "api-keys", "sessions", "users"})
#: What of a user matters to its keys and sessions.
_OF_PRINCIPALS = frozenset({"username", "is_admin", "is_active"})

#: Is told of each new table, and of what differs from the one before; None: everything may.
Listener = Callable[[RoutingTable, RoutingDelta | None], None]
_Thing = TypeVar("_Thing", ModelPublic, ModelRoutePublic, ModelInstancePublic)


class Routing:
    """Holds the present table. :meth:`load` fills it, :meth:`run` keeps it up to date.

    Tables of one load share their mappings, which change in place between two steps of the event loop: a change costs
    what it concerns, whatever else there is. Read a table without waiting in between, or copy what you keep.

    ``built_in`` returns the uuid of the worker that runs beside the server, empty as long as there is none.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        *,
        built_in: Callable[[], str],
    ) -> None:
        self._store, self._feed = store, feed
        self._built_in = built_in
        self._routes = Routes()
        self._principals = Principals()
        self._number = 0
        self._keys = asyncio.Lock()
        self._listeners: dict[object, Listener] = {}
        self.table = RoutingTable()
        #: True once everything was read.
        self.loaded = False

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Have ``callback`` called with every table from the next one on; the function returned ends that.

        It is called on the event loop right after the change and must be quick. What it raises is logged, and keeps
        nobody else from being told.
        """
        key = object()
        self._listeners[key] = callback
        return lambda: self._drop_listener(key)

    def add_fixed(self, digest: str, principal: Principal) -> None:
        """Know a credential that is in no database, such as the local one of the command line."""
        self._publish(principals=self._principals.add_fixed(digest, principal))

    def leads(self, route: str) -> Mapping[int, float]:
        """Return the models that a route leads to, by id, each with its share of the requests; none for no route."""
        return self._routes.models_of(route)

    async def load(self) -> None:
        """Read everything. Events since then are applied on top by :meth:`run`; applying some twice is harmless."""
        number = await self._store.events.last_number()
        models = (await self._store.models.list(page=-1)).items
        rows = (await self._store.model_routes.list(page=-1)).items
        instances = (await self._store.instances.list(page=-1)).items
        fleet = Fleet(
            models={model.id: model for model in models},
            doors=await self._store.workers.doors(),
            built_in=await asyncio.to_thread(self._built_in),
        )
        for instance in instances:
            fleet.instances.setdefault(instance.model_id, {})[instance.id] = instance
        async with self._keys:
            keys: list[Row] = [*await self._store.api_keys.principals()]
            self._principals.replace([*keys, *await self._store.sessions.principals()])
        self._routes.replace(fleet, rows)
        # Not before: what could not be read has to come by its events.
        self._number = number
        self._tell(None)
        self.loaded = True

    async def refresh_keys(self, keys: Collection[int]) -> None:
        """Read these API keys anew: one that was made or changed counts so from here on."""
        # One after the other: an answer from before a key was revoked must not come last.
        async with self._keys:
            rows = await self._store.api_keys.principals(keys=keys)
            self._publish(principals=self._principals.update(_keys(keys), rows))

    async def forget_keys(self, keys: Collection[int], *, close: bool = False) -> None:
        """Let these API keys, which were removed, count no longer; ``close`` ends what they have begun, too."""
        async with self._keys:
            closed = frozenset(keys) if close else frozenset()
            self._publish(principals=self._principals.update(_keys(keys), ()), closed=closed)

    async def refresh_session(self, number: int) -> None:
        """Read a session anew: one that has begun counts from here on."""
        async with self._keys:
            rows = await self._store.sessions.principals(sessions=[number])
            over = self._principals.sessions_over(time.time())
            self._publish(principals=self._principals.update({("session", number), *over}, rows))

    async def forget_sessions(self, numbers: Collection[int]) -> None:
        """Let sessions that have ended count no longer."""
        async with self._keys:
            self._publish(principals=self._principals.update({("session", each) for each in numbers}, ()))

    async def run(self) -> NoReturn:
        """Follow the events for ever; after a loss of the database, catch up by reading everything."""
        backoff = Backoff(first=0.2, limit=5.0)
        while True:
            try:
                async with self._feed.subscribe(set(_TOPICS), since=self._number) as events:
                    async for event in events:
                        await self.apply(event)
                        backoff.reset()
            except NotFound:
                log.info("routing: events were removed meanwhile; reading everything anew")
            except GPUStackError as error:
                log.warning("routing: keeps the last table: %s", error)
            await asyncio.sleep(backoff.next())
            try:
                await self.load()
            except GPUStackError as error:
                log.warning("routing: keeps the last table: %s", error)

    # One event ----------------------------------------------------------------------------------------

    async def apply(self, event: StoredEvent) -> None:
        """Bring the table up to date with one event."""
        if event.topic == "api-keys":
            await self._apply_key(event)
        elif event.topic == "sessions":
            await self._apply_session(event)
        elif event.topic == "users":
            await self._apply_user(event)
        elif event.topic == "workers":
            await self._apply_worker(event)
        elif event.topic in ("models", "model-routes", "model-instances"):
            self._publish(routes=self._applied(event))
        self._number = max(self._number, event.number)

    async def _apply_key(self, event: StoredEvent) -> None:
        if event.type == EventType.DELETED:
            await self.forget_keys({event.id})
        else:
            await self.refresh_keys({event.id})

    async def _apply_session(self, event: StoredEvent) -> None:
        if event.type == EventType.DELETED:
            await self.forget_sessions([event.id])
        else:
            await self.refresh_session(event.id)

    async def _apply_user(self, event: StoredEvent) -> None:
        """Read the keys and sessions of a user whom something happened to that they have a part in."""
        # One that is new has none yet, and each of them has an event of its own.
        if event.type == EventType.CREATED or (
            event.type == EventType.UPDATED and not _OF_PRINCIPALS & event.changed_fields.keys()
        ):
            return
        async with self._keys:
            rows: list[Row] = []
            if event.type != EventType.DELETED:
                rows += await self._store.api_keys.principals(user_id=event.id)
                rows += await self._store.sessions.principals(user_id=event.id)
            self._publish(principals=self._principals.update(self._principals.of_user(event.id), rows))

    async def _apply_worker(self, event: StoredEvent) -> None:
        """Learn how a worker is reached; its secret is in no event."""
        try:
            door = None if event.type == EventType.DELETED else await self._store.workers.door(event.id)
        except NotFound:
            door = None  # removed meanwhile
        if door == self._routes.fleet.doors.get(event.id):
            return
        # The built-in worker wrote down who it is before it registered.
        built_in = await asyncio.to_thread(self._built_in)
        self._publish(routes=self._routes.put_door(event.id, door, built_in))

    def _applied(self, event: StoredEvent) -> set[str]:
        """Take in what happened to a model, a route or an instance, and return the names that it concerns."""
        gone = event.type == EventType.DELETED
        routes = self._routes
        if event.topic == "models":
            return routes.drop_model(event.id) if gone else routes.put_model(_read(ModelPublic, event))
        if event.topic == "model-routes":
            return routes.drop_route(event.id) if gone else routes.put_route(_read(ModelRoutePublic, event))
        if gone:
            return routes.drop_instance(event.id)
        return routes.put_instance(_read(ModelInstancePublic, event))

    # Telling ------------------------------------------------------------------------------------------

    def _publish(
        self,
        *,
        routes: Collection[str] = (),
        principals: Collection[str] = (),
        closed: frozenset[int] = frozenset(),
    ) -> None:
        """Make a new table of what changed under these names and digests; none when nothing did."""
        if not (routes or principals or closed):
            return
        removed = frozenset(name for name in routes if name not in self._routes.by_name)
        revoked = frozenset(each for each in principals if each not in self._principals.by_digest)
        delta = RoutingDelta(
            since=self.table.version,
            changed=frozenset(routes) - removed,
            removed=removed,
            principals_changed=frozenset(principals) - revoked,
            principals_removed=revoked,
            closed=closed,
        )
        self._tell(delta)

    def _tell(self, delta: RoutingDelta | None) -> None:
        self.table = RoutingTable(
            version=self.table.version + 1,
            routes=self._routes.by_name,
            principals=self._principals.by_digest,
        )
        for callback in list(self._listeners.values()):
            try:
                callback(self.table, delta)
            except Exception:
                log.exception("routing: a listener failed with table %d", self.table.version)

    def _drop_listener(self, key: object) -> None:
        self._listeners.pop(key, None)


def _keys(numbers: Collection[int]) -> set[Handle]:
    return {("key", each) for each in numbers}


def _read(kind: type[_Thing], event: StoredEvent) -> _Thing:
    return kind.model_validate(event.data)
