"""Models, routes, keys and sessions as the database has them, and a routing table that reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from gpustack.db import Door, KeyRow, SessionRow, StoredEvent
from gpustack.plugin.routing import RoutingDelta, RoutingTable
from gpustack.schemas import (
    EventType,
    InstanceState,
    ModelInstancePublic,
    ModelPublic,
    ModelRoutePublic,
    ModelRouteTargetPublic,
)
from gpustack.server.routing import Routing
from gpustack.server.routing_targets import Fleet

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: The uuid of the built-in worker, and how workers are called.
OWN = "uuid-of-the-built-in-worker"
DOORS = {1: Door("10.0.0.1", 10150, "secret", OWN), 7: Door("10.0.0.2", 10150, "secret", "another")}


def a_model(**fields: Any) -> ModelPublic:
    return ModelPublic(
        **{"id": 1, "created_at": NOW, "updated_at": NOW, "name": "tiny", "cluster_id": 1, **fields}
    )


def an_instance(
    number: int = 1, state: InstanceState = InstanceState.RUNNING, **fields: Any
) -> ModelInstancePublic:
    base = {
        "id": number, "created_at": NOW, "updated_at": NOW, "name": f"tiny-{number}", "model_id": 1,
        "model_name": "tiny", "cluster_id": 1, "state": state, "state_since": NOW, "worker_id": 1,
        "port": 4000 + number,
    }  # fmt: skip
    return ModelInstancePublic(**{**base, **fields})


def a_route(
    name: str = "tiny", *targets: tuple[Any, ...], number: int = 1, **fields: Any
) -> ModelRoutePublic:
    """A route to models, each given as id, name, weight and, for the fallback, True; by default a model's own."""
    made = [
        ModelRouteTargetPublic(
            id=10 * number + at, created_at=NOW, updated_at=NOW, route_id=number, model_id=model,
            model_name=called, weight=weight, is_fallback=bool(spare),
        )
        for at, (model, called, weight, *spare) in enumerate(targets or [(1, name, 100)])
    ]  # fmt: skip
    return ModelRoutePublic(id=number, created_at=NOW, updated_at=NOW, name=name, targets=made, **fields)


def a_fleet(*instances: ModelInstancePublic, doors: Any = DOORS, **models: Any) -> Fleet:
    """Instances of ``tiny``, model 1, or of models by their names and ids."""
    fleet = Fleet(models={1: a_model(**models)}, doors=doors, built_in=OWN)
    for each in instances:
        fleet.instances.setdefault(each.model_id, {})[each.id] = each
    return fleet


def a_key(number: int = 1, user_id: int = 1, **fields: Any) -> KeyRow:
    base = {
        "id": number, "digest": f"digest-{number}", "user_id": user_id, "username": f"user-{user_id}",
        "is_admin": False, "allowed_model_names": (), "expires_at": None,
    }  # fmt: skip
    return KeyRow(**{**base, **fields})


class Keys:
    """API keys as the database has them. Counts what is asked and how many rows that takes; ``hold`` delays answers."""

    def __init__(self, *rows: KeyRow) -> None:
        self.rows = {row.id: row for row in rows}
        self.hold: asyncio.Event | None = None
        self.asked = self.read = 0

    async def principals(
        self, *, keys: Collection[int] | None = None, user_id: int | None = None
    ) -> list[KeyRow]:
        self.asked += 1
        found = (
            [*self.rows.values()] if keys is None else [self.rows[key] for key in keys if key in self.rows]
        )
        found = [row for row in found if user_id in (None, row.user_id)]
        self.read += len(found)
        hold, self.hold = self.hold, None
        if hold is not None:
            await hold.wait()
        return found


class Browsers:
    """Sessions as the database has them; those that are over count as there."""

    def __init__(self, *rows: SessionRow) -> None:
        self.rows = {row.id: row for row in rows}

    async def principals(
        self, *, sessions: Collection[int] | None = None, user_id: int | None = None
    ) -> list[SessionRow]:
        found = (
            [*self.rows.values()] if sessions is None else [r for r in self.rows.values() if r.id in sessions]
        )
        return [row for row in found if user_id in (None, row.user_id)]


def a_session(number: int, user_id: int = 1, minutes: float = 60, **fields: Any) -> SessionRow:
    base = {
        "id": number, "digest": f"digest-{number}", "user_id": user_id, "username": f"user-{user_id}",
        "is_admin": False, "expires_at": datetime.now(UTC) + timedelta(minutes=minutes),
    }  # fmt: skip
    return SessionRow(**{**base, **fields})


def of_new(number: int, **fields: Any) -> ModelInstancePublic:
    return an_instance(number, model_id=2, model_name="new", **fields)


def a_routing(store: Any, feed: Any = None) -> Routing:
    return Routing(store, feed, built_in=lambda: OWN)


async def a_loaded_routing(
    keys: Keys,
    models: Sequence[ModelPublic] = (),
    routes: Sequence[ModelRoutePublic] = (),
    sessions: Browsers | None = None,
) -> Routing:
    def listing(*items: Any) -> Any:
        async def answer(**_: object) -> Any:
            return SimpleNamespace(items=items)

        return SimpleNamespace(list=answer)

    async def last_number() -> int:
        return 0

    async def doors() -> dict[int, Door]:
        return dict(DOORS)

    store = SimpleNamespace(
        events=SimpleNamespace(last_number=last_number), models=listing(*models),
        model_routes=listing(*routes), instances=listing(), workers=SimpleNamespace(doors=doors), api_keys=keys,
        sessions=sessions or Browsers(),
    )  # fmt: skip
    routing = a_routing(store)
    await routing.load()
    return routing


_TOPICS: dict[type, str] = {
    ModelPublic: "models", ModelRoutePublic: "model-routes", ModelInstancePublic: "model-instances",
}  # fmt: skip


async def know(routing: Routing, *things: Any, door: int | None = None) -> None:
    """Tell ``routing`` of things by their events, and of the built-in worker's ``door`` if that is named."""
    if door is not None:
        routing._routes.put_door(door, DOORS[door], OWN)
    for thing in things:
        data = thing.model_dump(mode="json")
        await routing.apply(StoredEvent(0, _TOPICS[type(thing)], EventType.UPDATED, thing.id, data, {}))


class Told:
    """What a listener was told."""

    def __init__(self, routing: Routing) -> None:
        self.versions: list[int] = []
        self.deltas: list[Any] = []
        self.leave = routing.listen(self._take)

    def _take(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        self.versions.append(table.version)
        self.deltas.append(delta)
