"""The routing table, kept in memory from the database's events, so that inference requests touch no database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NoReturn

from gpustack.dataplane import Balancer, Principal, Route, RoutingTable, Target, Upstream
from gpustack.dataplane.door import instance_credential
from gpustack.db import Door, Feed, KeyRow, Store, StoredEvent
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, NotFound
from gpustack.kit.net import LOOPBACK
from gpustack.schemas import EventType, InstanceState, ModelInstancePublic, ModelPublic

log = logging.getLogger(__name__)

_TOPICS = frozenset({"models", "model-instances", "workers", "api-keys", "users"})
_S = InstanceState
#: What is said of a model whose furthest instance is in that state; furthest first.
_OBSTACLES = {
    _S.STARTING: "is starting",
    _S.DOWNLOADING: "is being downloaded",
    _S.INITIALIZING: "is starting: its engine is being installed",
    _S.SCHEDULED: "is starting",
    _S.ANALYZING: "is starting: its files are being read",
    _S.PENDING: "is waiting for a worker",
    _S.UNREACHABLE: "is on a worker that cannot be reached",
    _S.ERROR: "failed",
}


def target_of(instance: ModelInstancePublic, built_in: str, doors: Mapping[int, Door]) -> Target | None:
    """Return where an instance answers, or None when it answers nowhere.

    Engines listen on loopback of their worker: those of the server's ``built_in`` worker are asked there, others by
    way of their worker's door. The one decision about addresses is made here.
    """
    door = doors.get(instance.worker_id or 0)
    if not instance.port or door is None:
        return None
    if door.runs_beside(built_in):
        return Target(instance_id=instance.id, host=LOOPBACK, port=instance.port)
    if not door.port:
        return None
    return Target(
        instance_id=instance.id,
        host=door.ip,
        port=door.port,
        path_prefix=f"/instances/{instance.id}",
        credential=instance_credential(door.token, instance.id),
    )


def route_of(
    model: ModelPublic,
    instances: Iterable[ModelInstancePublic],
    built_in: str,
    doors: Mapping[int, Door],
) -> Route:
    """Return how ``model`` is reached by way of its ``instances``."""
    targets, obstacle = [], None
    rank = list(_OBSTACLES)
    best = len(rank)
    staying = [each for each in instances if each.draining_since is None]
    for instance in sorted(staying, key=lambda each: each.id):
        target = target_of(instance, built_in, doors) if instance.state is _S.RUNNING else None
        if target is not None:
            targets.append(target)
        elif instance.state in _OBSTACLES and rank.index(instance.state) < best:
            best = rank.index(instance.state)
            obstacle = _OBSTACLES[instance.state] + _reason(instance)
    if obstacle is None:
        obstacle = "is stopped: it has 0 replicas" if model.replicas == 0 else "is starting"
    return Route(
        name=model.name,
        created=int(model.created_at.timestamp()),
        targets=tuple(targets),
        obstacle=obstacle,
        categories=tuple(model.categories),
    )


def _reason(instance: ModelInstancePublic) -> str:
    lines = instance.state_message.strip().splitlines()
    if instance.state in (_S.ERROR, _S.PENDING) and lines:
        return f": {lines[0][:300]}"
    return ""


def principal_of(key: KeyRow) -> Principal:
    """Return the principal behind an API key."""
    return Principal(
        user_id=key.user_id,
        username=key.username,
        is_admin=key.is_admin,
        key_id=key.id,
        allowed=frozenset(key.allowed_model_names) or None,
        expires_at=key.expires_at.timestamp() if key.expires_at else None,
    )


class Routing:
    """Holds the present table. :meth:`load` fills it, :meth:`run` keeps it up to date.

    ``built_in`` returns the uuid of the worker that runs beside the server, empty as long as there is none.
    """

    def __init__(
        self,
        store: Store,
        feed: Feed,
        upstream: Upstream,
        balancer: Balancer,
        *,
        built_in: Callable[[], str],
    ) -> None:
        self._store, self._feed = store, feed
        self._upstream, self._balancer = upstream, balancer
        self._built_in = built_in
        self._beside = ""
        self._models: dict[int, ModelPublic] = {}
        self._instances: dict[int, dict[int, ModelInstancePublic]] = {}
        self._doors: dict[int, Door] = {}
        self._fixed: dict[str, Principal] = {}
        self._number = 0
        self._keys = asyncio.Lock()
        self.table = RoutingTable()
        #: True once everything was read.
        self.loaded = False

    def add_fixed(self, digest: str, principal: Principal) -> None:
        """Know a credential that is in no database, such as the local one of the command line."""
        self._fixed[digest] = principal
        self.table = replace(self.table, principals={**self.table.principals, digest: principal})

    async def load(self) -> None:
        """Read everything. Events since then are applied on top by :meth:`run`; applying some twice is harmless."""
        self._number = await self._store.events.last_number()
        models = (await self._store.models.list(page=-1)).items
        instances = (await self._store.instances.list(page=-1)).items
        self._doors = await self._store.workers.doors()
        self._beside = await asyncio.to_thread(self._built_in)
        self._models = {model.id: model for model in models}
        self._instances = {}
        for instance in instances:
            self._instances.setdefault(instance.model_id, {})[instance.id] = instance
        routes = {model.name: self._route(model) for model in models}
        self._publish(routes)
        await self.load_keys()
        self.loaded = True

    async def load_keys(self) -> None:
        """Read the API keys anew; what was made or revoked counts from here on."""
        # One after the other: an answer from before a key was revoked must not come last.
        async with self._keys:
            keys: list[KeyRow] = await self._store.api_keys.principals()
            principals = {key.digest: principal_of(key) for key in keys} | self._fixed
            self.table = replace(self.table, version=self.table.version + 1, principals=principals)

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

    async def apply(self, event: StoredEvent) -> None:
        """Bring the table up to date with one event."""
        if event.topic in ("api-keys", "users"):
            await self.load_keys()
        elif event.topic == "workers":
            await self._apply_worker(event)
        elif event.topic == "models":
            self._apply_model(event)
        elif event.topic == "model-instances":
            self._apply_instance(event)
        self._number = max(self._number, event.number)

    def _apply_model(self, event: StoredEvent) -> None:
        routes = dict(self.table.routes)
        if (old := self._models.pop(event.id, None)) is not None:
            routes.pop(old.name, None)
        if event.type == EventType.DELETED:
            self._instances.pop(event.id, None)
        else:
            model = ModelPublic.model_validate(event.data)
            self._models[model.id] = model
            routes[model.name] = self._route(model)
        self._publish(routes)

    async def _apply_worker(self, event: StoredEvent) -> None:
        """Learn how a worker is reached; its secret is in no event."""
        try:
            door = None if event.type == EventType.DELETED else await self._store.workers.door(event.id)
        except NotFound:
            door = None  # removed meanwhile
        if door == self._doors.get(event.id):
            return
        # The built-in worker wrote down who it is before it registered.
        self._beside = await asyncio.to_thread(self._built_in)
        if door is None:
            del self._doors[event.id]
        else:
            self._doors[event.id] = door
        there = {
            owner
            for owner, held in self._instances.items()
            if any(each.worker_id == event.id for each in held.values())
        }
        models = [model for number in there if (model := self._models.get(number)) is not None]
        if models:
            self._publish({**self.table.routes, **{model.name: self._route(model) for model in models}})

    def _apply_instance(self, event: StoredEvent) -> None:
        if event.type == EventType.DELETED:
            owner = next((each for each, held in self._instances.items() if event.id in held), None)
            if owner is None:
                return
            del self._instances[owner][event.id]
            if not self._instances[owner] and owner not in self._models:
                del self._instances[owner]  # its model went before it
        else:
            instance = ModelInstancePublic.model_validate(event.data)
            owner = instance.model_id
            self._instances.setdefault(owner, {})[instance.id] = instance
        if (model := self._models.get(owner)) is not None:
            self._publish({**self.table.routes, model.name: self._route(model)})

    def _route(self, model: ModelPublic) -> Route:
        return route_of(model, self._instances.get(model.id, {}).values(), self._beside, self._doors)

    def _publish(self, routes: dict[str, Route]) -> None:
        self.table = replace(self.table, version=self.table.version + 1, routes=routes)
        targets = [target for route in routes.values() for target in route.targets]
        self._upstream.forget_all_but({(target.host, target.port) for target in targets})
        self._balancer.forget_all_but({target.instance_id for target in targets})
