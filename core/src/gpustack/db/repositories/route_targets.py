"""Targets of model routes: which models answer, and with what share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpustack.db.connection import Session, Writing
from gpustack.db.dialect import filled
from gpustack.db.repositories.base import Repository
from gpustack.db.tables import Model, ModelRouteTarget
from gpustack.kit.errors import InvalidInput, NotFound
from gpustack.schemas.common import Page
from gpustack.schemas.model_routes import (
    ModelRouteCreate,
    ModelRoutePublic,
    ModelRouteTargetCreate,
    ModelRouteTargetPublic,
)

#: Routes in one statement, below the protocol's 32767 values.
_BATCH = 5000

#: Inside the class below, `list` is the method.
_Targets = list[ModelRouteTargetPublic]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A target as it is to be."""

    model_id: int | None
    model_name: str
    weight: int
    is_fallback: bool


class RouteTargets(Repository[ModelRouteTargetPublic]):
    """Targets by themselves, to be read; what changes one changes its route, which writes the event."""

    table = ModelRouteTarget
    public = ModelRouteTargetPublic
    noun = "model route target"
    searched = "model_name"
    sortable = frozenset({"id", "route_id", "model_name", "weight", "created_at", "updated_at"})

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        route_id: int | None = None,
        model_id: int | None = None,
    ) -> Page[ModelRouteTargetPublic]:
        """Return one page; ``page`` -1 is everything."""
        return await self._page(page, per_page, search, sort_by, {"route_id": route_id, "model_id": model_id})

    async def of_routes(self, session: Session, routes: Sequence[int]) -> dict[int, _Targets]:
        """Return the targets of each of the routes, in the order in which they were added."""
        found: dict[int, _Targets] = {number: [] for number in routes}
        for start in range(0, len(routes), _BATCH):
            part = routes[start : start + _BATCH]
            for target in await self._find(session, ModelRouteTarget.route_id.is_in(filled(part))):
                found[target.route_id].append(target)
        return found

    async def store(self, tx: Writing, route_id: int, old: _Targets, wanted: Sequence[Wanted]) -> _Targets:
        """Make the targets of a route, which the caller has locked, what is wanted; who stays keeps its id."""
        before = {target.model_name: target for target in old}
        gone = [before[name] for name in before.keys() - {each.model_name for each in wanted}]
        await self._remove(tx, gone)
        after = []
        for each in wanted:
            values = {
                "model_id": each.model_id,
                "model_name": each.model_name,
                "weight": each.weight,
                "is_fallback": each.is_fallback,
            }
            present = before.get(each.model_name)
            if present is None:
                after.append(await self._insert(tx, {"route_id": route_id, **values}))
            elif wanted_of(present) != each:
                after.append(await self._change(tx, present, values))
            else:
                after.append(present)
        return sorted(after, key=lambda target: target.id)


async def models_of(
    tx: Writing, targets: Iterable[ModelRouteTargetCreate]
) -> dict[int | str, tuple[int, str]]:
    """Return id and name of the models that are named, by both, and lock them: none is removed meanwhile."""
    ids = [each.model_id for each in targets if each.model_id is not None]
    names = [each.model_name for each in targets if each.model_name is not None]
    if not ids and not names:
        return {}
    named = Model.id.is_in(filled(ids or [0])) | Model.name.is_in(filled(names or [""]))
    query = Model.select(Model.id, Model.name).where(named).order_by(Model.id).lock_rows()
    found: dict[int | str, tuple[int, str]] = {}
    for row in await tx.fetch(query):
        found[row["id"]] = found[row["name"]] = (row["id"], row["name"])
    return found


def chosen_of(
    targets: Iterable[ModelRouteTargetCreate],
    models: Mapping[int | str, tuple[int, str]],
    present: Iterable[ModelRouteTargetPublic],
) -> list[Wanted]:
    """Return what is wanted with the models it names; a model that is gone may stay where it was."""
    gone = {each.model_name for each in present if each.model_id is None}
    chosen: dict[str, Wanted] = {}
    for target in targets:
        asked = target.model_name if target.model_id is None else target.model_id
        number, name = models.get(asked or 0, (None, target.model_name or ""))
        if number is None and name not in gone:
            raise NotFound(f"targets: there is no model {asked!r}")
        if name in chosen:
            raise InvalidInput(f"targets: model {name!r} is there twice; give it one weight")
        chosen[name] = Wanted(
            model_id=number, model_name=name, weight=target.weight, is_fallback=target.is_fallback
        )
    return [*chosen.values()]


def check(route: ModelRouteCreate | ModelRoutePublic, targets: Collection[Wanted]) -> None:
    """Raise InvalidInput when a route cannot be so."""
    if route.name in route.aliases:
        raise InvalidInput(f"aliases: {route.name!r} is the route's name already")
    if sum(each.is_fallback for each in targets) > 1:
        raise InvalidInput("targets: at most one is the fallback")
    if not any(each.weight and not each.is_fallback for each in targets):
        raise InvalidInput(
            "targets: none would take requests; one that is not the fallback needs a weight above 0"
        )


def wanted_of(target: ModelRouteTargetPublic) -> Wanted:
    """Return a target as it is, to be kept so."""
    return Wanted(
        model_id=target.model_id,
        model_name=target.model_name,
        weight=target.weight,
        is_fallback=target.is_fallback,
    )
