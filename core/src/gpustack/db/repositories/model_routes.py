"""Model routes with their names and targets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from piccolo.columns import Column

from gpustack.db.connection import Session, Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import conflicts
from gpustack.db.repositories.base import Repository, now, sql
from gpustack.db.repositories.route_targets import (
    RouteTargets,
    Wanted,
    check,
    chosen_of,
    models_of,
    wanted_of,
)
from gpustack.db.tables import Model, ModelRoute, ModelRouteName
from gpustack.kit.errors import Conflict, NotFound
from gpustack.schemas.common import EventType, Page
from gpustack.schemas.model_routes import (
    ModelRouteCreate,
    ModelRoutePatch,
    ModelRoutePublic,
    ModelRouteTargetCreate,
    ModelRouteTargetPublic,
    ModelRouteTargetUpdate,
    ModelRouteUpdate,
)
from gpustack.schemas.models import ModelPublic

#: Inside the class below, `list` is the method.
_Routes = list[ModelRoutePublic]


class ModelRoutes(Repository[ModelRoutePublic]):
    """The names that requests ask for. A route is one thing with its targets: each change is one event of it.

    Whoever needs the rows of models and of routes locks those of the models first.
    """

    table = ModelRoute
    public = ModelRoutePublic
    noun = "model route"
    topic = "model-routes"

    @property
    def _targets(self) -> RouteTargets:
        return RouteTargets(self._session)

    # Reading ------------------------------------------------------------------------------------------

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
    ) -> Page[ModelRoutePublic]:
        """Return one page; ``page`` -1 is everything."""
        found = await self._page(page, per_page, search, sort_by, {})
        found.items = await self._whole(self._session, found.items)
        return found

    async def _find(self, session: Session, *where: Any, lock: bool = False) -> _Routes:
        return await self._whole(session, await super()._find(session, *where, lock=lock))

    async def _whole(self, session: Session, routes: _Routes) -> _Routes:
        """Return ``routes`` with their targets."""
        if not routes:
            return []
        targets = await self._targets.of_routes(session, [route.id for route in routes])
        return [route.model_copy(update={"targets": targets[route.id]}) for route in routes]

    # Writing ------------------------------------------------------------------------------------------

    async def create(self, wanted: ModelRouteCreate) -> ModelRoutePublic:
        """Add a route. NotFound for a target that is no model, Conflict for a name that is taken."""
        with conflicts(_taken(wanted.name)):
            async with self._session.writing() as tx:
                models = await models_of(tx, wanted.targets)
                targets = chosen_of(wanted.targets, models, ())
                check(wanted, targets)
                await self._check_names(tx, 0, [wanted.name, *wanted.aliases], targets)
                return await self._add(
                    tx, wanted.name, targets, wanted.description, wanted.aliases, wanted.fallback_status_codes
                )

    async def update(self, route_id: int, wanted: ModelRouteUpdate | ModelRoutePatch) -> ModelRoutePublic:
        """Change what ``wanted`` has that is not None; targets of the models that stay keep their ids."""
        with conflicts(_taken(wanted.name or "")):
            async with self._session.writing() as tx:
                models = await models_of(tx, wanted.targets or ())
                old = await self._get(tx, route_id, lock=True)
                targets = (
                    [wanted_of(each) for each in old.targets]
                    if wanted.targets is None
                    else chosen_of(wanted.targets, models, old.targets)
                )
                fields = wanted.model_dump(
                    include={"name", "description", "aliases", "fallback_status_codes"}, exclude_none=True
                )
                return await self._describe(tx, old, targets, fields)

    async def add_targets(self, route_id: int, more: Sequence[ModelRouteTargetCreate]) -> ModelRoutePublic:
        """Have more models answer for a route; Conflict for one that does so already."""
        async with self._session.writing() as tx:
            models = await models_of(tx, more)
            old = await self._get(tx, route_id, lock=True)
            added = chosen_of(more, models, ())
            present = {each.model_name for each in old.targets}
            for each in added:
                if each.model_name in present:
                    raise Conflict(f"model {each.model_name!r} is a target of route {old.name!r} already")
            return await self._describe(tx, old, [*map(wanted_of, old.targets), *added], {})

    async def update_target(self, target_id: int, changes: ModelRouteTargetUpdate) -> ModelRouteTargetPublic:
        """Change a target. Who becomes the fallback takes the place of the one before."""
        async with self._session.writing() as tx:
            old, target = await self._of_target(tx, target_id)
            others = [each for each in old.targets if each.id != target_id]
            if changes.is_fallback:
                others = [each.model_copy(update={"is_fallback": False}) for each in others]
            changed = target.model_copy(update=changes.model_dump(exclude_none=True))
            new = await self._describe(tx, old, [wanted_of(each) for each in [*others, changed]], {})
            return next(each for each in new.targets if each.id == target_id)

    async def remove_target(self, target_id: int) -> ModelRoutePublic:
        """Have a model answer for a route no longer, and return the route."""
        async with self._session.writing() as tx:
            old, _ = await self._of_target(tx, target_id)
            return await self._describe(
                tx, old, [wanted_of(each) for each in old.targets if each.id != target_id], {}
            )

    async def delete(self, route_id: int) -> ModelRoutePublic:
        """Remove a route and return what it was; its names are free at once."""
        async with self._session.writing() as tx:
            route = await self._get(tx, route_id, lock=True)
            await self._remove(tx, [route])
            return route

    # Models come and go -------------------------------------------------------------------------------

    async def model_added(self, tx: Writing, model: ModelPublic, *, own: bool) -> None:
        """Give a new model its ``own`` route, and its place in routes that an earlier one of its name has left.

        Conflict when its name leads to something else.
        """
        named = "SELECT route_id FROM model_route_names WHERE name = {}"
        left = "SELECT route_id FROM model_route_targets WHERE model_name = {} AND model_id IS NULL"
        either = sql(f"{named} UNION {left}", model.name, model.name)
        wanting = own
        for route in await self._find(tx, ModelRoute.id.is_in(either), lock=True):
            awaited = any(each.model_name == model.name for each in route.targets)
            if model.name in (route.name, *route.aliases):
                if not awaited:
                    raise Conflict(_said(model.name, route))
                wanting = False
            if awaited:
                await self._point(tx, route, model.name, model.id)
        if wanting:
            alone = Wanted(model_id=model.id, model_name=model.name, weight=100, is_fallback=False)
            with conflicts(_taken(model.name)):
                await self._add(tx, model.name, [alone])

    async def model_removed(self, tx: Writing, model: ModelPublic) -> None:
        """Remove the model's own route when it leads nowhere else; others say from now on that the model is gone."""
        leading = sql("SELECT route_id FROM model_route_targets WHERE model_id = {}", model.id)
        for route in await self._find(tx, ModelRoute.id.is_in(leading), lock=True):
            if route.created_model_id == model.id and len(route.targets) == 1:
                await self._remove(tx, [route])
            else:
                await self._point(tx, route, model.name, None)

    async def _point(self, tx: Writing, old: ModelRoutePublic, name: str, model_id: int | None) -> None:
        """Set which model the target of a name is."""
        targets = [
            each.model_copy(update={"model_id": model_id}) if each.model_name == name else each
            for each in old.targets
        ]
        await self._store(tx, old, [wanted_of(each) for each in targets], {})

    # How it is stored ---------------------------------------------------------------------------------

    async def _of_target(
        self, tx: Writing, target_id: int
    ) -> tuple[ModelRoutePublic, ModelRouteTargetPublic]:
        """Return a target, and its route, which is locked."""
        route = await self._get(tx, (await RouteTargets(tx).get(target_id)).route_id, lock=True)
        found = [each for each in route.targets if each.id == target_id]
        if not found:
            raise NotFound(f"there is no model route target {target_id}")
        return route, found[0]

    async def _add(
        self,
        tx: Writing,
        name: str,
        targets: Sequence[Wanted],
        description: str = "",
        aliases: Sequence[str] = (),
        fallback_status_codes: Sequence[str] = (),
    ) -> ModelRoutePublic:
        """Insert a route with its names and targets."""
        moment = now()
        row = {
            "name": name,
            "description": description,
            "aliases": [*aliases],
            "fallback_status_codes": [*fallback_status_codes],
        }
        stored = self._stored({"created_at": moment, "updated_at": moment, **row})
        number = (await tx.fetch(ModelRoute.insert(ModelRoute(**stored)).returning(ModelRoute.id)))[0]["id"]
        await _claim(tx, number, {name, *aliases})
        route = ModelRoutePublic(id=number, created_at=moment, updated_at=moment, **row)
        route.targets = await RouteTargets(tx).store(tx, number, [], targets)
        self._emit(tx, EventType.CREATED, route)
        return route

    async def _describe(
        self,
        tx: Writing,
        old: ModelRoutePublic,
        targets: Sequence[Wanted],
        fields: Mapping[str, Any],
    ) -> ModelRoutePublic:
        """Change a route, which is locked, as somebody wants it. Raises what is wrong with that."""
        new = old.model_copy(update=fields)
        check(new, targets)
        before, after = {old.name, *old.aliases}, {new.name, *new.aliases}
        await self._check_names(tx, old.id, sorted(after - before), targets)
        if gone := before - after:
            await tx.fetch(
                ModelRouteName.delete().where(
                    ModelRouteName.route_id == old.id, ModelRouteName.name.is_in(filled(sorted(gone)))
                )
            )
        await _claim(tx, old.id, after - before)
        return await self._store(tx, old, targets, fields)

    async def _store(
        self,
        tx: Writing,
        old: ModelRoutePublic,
        targets: Sequence[Wanted],
        fields: Mapping[str, Any],
    ) -> ModelRoutePublic:
        values = self._stored({**fields, "updated_at": now()})
        assignments: dict[Column | str, Any] = {name: value for name, value in values.items()}  # noqa: C416  # widens the key
        await tx.fetch(ModelRoute.update(assignments).where(ModelRoute.id == old.id))
        stored = await RouteTargets(tx).store(tx, old.id, old.targets, targets)
        new = old.model_copy(update={**fields, "updated_at": values["updated_at"], "targets": stored})
        self._emit_change(tx, old, new)
        return new

    async def _check_names(
        self, tx: Writing, route_id: int, names: Collection[str], targets: Iterable[Wanted]
    ) -> None:
        """Raise Conflict when another route has one of ``names``, or a model that this route does not lead to."""
        if not names:
            return
        query = ModelRouteName.select(ModelRouteName.name, ModelRouteName.route_id)
        for row in await tx.fetch(query.where(ModelRouteName.name.is_in(filled([*names])))):
            if row["route_id"] != route_id:
                raise Conflict(_said(row["name"], await self._get(tx, row["route_id"])))
        own = {each.model_id for each in targets}
        for row in await tx.fetch(
            Model.select(Model.id, Model.name).where(Model.name.is_in(filled([*names])))
        ):
            if row["id"] not in own:
                raise Conflict(
                    f"{row['name']!r} is the name of a model; choose another one, or make that model a target"
                )


async def _claim(tx: Writing, route_id: int, names: Collection[str]) -> None:
    """Store names of a route; in one order, so that two who want the same wait for each other and no more."""
    if names:
        rows = [ModelRouteName(name=name, route_id=route_id) for name in sorted(names)]
        await tx.fetch(ModelRouteName.insert(*rows))


def _said(name: str, route: ModelRoutePublic) -> str:
    """Return who has the name."""
    if name != route.name:
        return f"{name!r} is an alias of model route {route.name!r}; choose another name"
    return (
        f"a model route named {name!r} exists already; choose another name or remove that one with "
        f"`gpustack routes rm {name}`"
    )


def _taken(name: str) -> dict[str, str]:
    """Return what is said when somebody else took a name at the same moment."""
    line = f"another route has taken the name {name!r}, or one of the aliases, by now; choose another one"
    return {"model_route_names_pkey": line}
