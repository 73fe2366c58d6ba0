"""The routes of the table by their public names, brought up to date one thing at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from gpustack.db import Door
from gpustack.plugin.routing import Route
from gpustack.schemas import ModelInstancePublic, ModelPublic, ModelRoutePublic
from gpustack.server.routing_targets import Fleet, route_of


class Routes:
    """Knows which route leads to which model, so that a change builds only the routes that it concerns.

    What changes returns the public names that are new, others or gone. Routes that are equal stay the same objects.
    """

    def __init__(self) -> None:
        #: Changed in place. A route is here under its name and under each alias.
        self.by_name: dict[str, Route] = {}
        self.fleet = Fleet()
        self._rows: dict[int, ModelRoutePublic] = {}
        self._built: dict[int, Route] = {}
        #: Routes by their own names.
        self._numbers: dict[str, int] = {}
        #: Routes by the models they lead to, and models by their instances.
        self._leading: dict[int, set[int]] = {}
        self._owners: dict[int, int] = {}

    def replace(self, fleet: Fleet, rows: Iterable[ModelRoutePublic]) -> None:
        """Take everything anew. The mapping is another one afterwards; routes that are equal stay."""
        before = self._built
        self.fleet = fleet
        self.by_name, self._built, self._numbers = {}, {}, {}
        self._rows = {row.id: row for row in rows}
        self._owners = {number: model for model, held in fleet.instances.items() for number in held}
        self._leading = {}
        for row in self._rows.values():
            self._lead(row)
        for number, row in self._rows.items():
            made = self._made(row)
            old = before.get(number)
            self._exchange(number, old if made == old else made)

    def put_route(self, row: ModelRoutePublic) -> set[str]:
        """Take in a route that is new or another."""
        concerned = self._forget(row.id) | {row.id}
        self._rows[row.id] = row
        self._lead(row)
        return self._build(concerned | self._concerned(row))

    def drop_route(self, number: int) -> set[str]:
        """Forget a route."""
        return self._build(self._forget(number) | {number})

    def put_model(self, model: ModelPublic) -> set[str]:
        """Take in a model that is new or another."""
        self.fleet.models[model.id] = model
        return self._build(self._leading.get(model.id, ()))

    def drop_model(self, number: int) -> set[str]:
        """Forget a model; its instances are still to be told of."""
        self.fleet.models.pop(number, None)
        return self._build(self._leading.get(number, ()))

    def put_instance(self, instance: ModelInstancePublic) -> set[str]:
        """Take in an instance that is new or another."""
        self.fleet.instances.setdefault(instance.model_id, {})[instance.id] = instance
        self._owners[instance.id] = instance.model_id
        return self._build(self._leading.get(instance.model_id, ()))

    def drop_instance(self, number: int) -> set[str]:
        """Forget an instance."""
        owner = self._owners.pop(number, None)
        if owner is None:
            return set()
        held = self.fleet.instances[owner]
        del held[number]
        if not held:
            del self.fleet.instances[owner]
        return self._build(self._leading.get(owner, ()))

    def put_door(self, worker_id: int, door: Door | None, built_in: str) -> set[str]:
        """Take in how a worker is reached, None for not at all, and which one is the built-in one."""
        if door is None:
            self.fleet.doors.pop(worker_id, None)
        else:
            self.fleet.doors[worker_id] = door
        self.fleet.built_in = built_in
        there = {
            owner
            for owner, held in self.fleet.instances.items()
            if any(each.worker_id == worker_id for each in held.values())
        }
        return self._build({route for model in there for route in self._leading.get(model, ())})

    def models_of(self, name: str) -> Mapping[int, float]:
        """Return the models that a route of this name leads to, each with its share of the requests."""
        row = self._rows.get(self._numbers.get(name, 0))
        if row is None:
            return {}
        counted = [each for each in row.targets if each.model_id is not None and not each.is_fallback]
        total = sum(each.weight for each in counted)
        return {
            each.model_id: each.weight / total if total else 1 / len(counted)
            for each in counted
            if each.model_id is not None
        }

    # What leads where -------------------------------------------------------------------------------

    def _lead(self, row: ModelRoutePublic) -> None:
        for target in row.targets:
            if target.model_id is not None:
                self._leading.setdefault(target.model_id, set()).add(row.id)

    def _forget(self, number: int) -> set[int]:
        """Forget what is known of a route, and return the routes that its being there may matter to."""
        row = self._rows.pop(number, None)
        if row is None:
            return set()
        concerned = self._concerned(row)
        for target in row.targets:
            leading = self._leading.get(target.model_id or 0)
            if leading is not None:
                leading.discard(number)
                if not leading:
                    del self._leading[target.model_id or 0]
        return concerned - {number}

    def _concerned(self, row: ModelRoutePublic) -> set[int]:
        """Return the routes that may fall back to this one: those that lead to the model whose own it is."""
        return set(self._leading.get(row.created_model_id or 0, ()))

    def _fallback_of(self, row: ModelRoutePublic) -> str:
        """Return the name of the route that the fallback's model has of its own, unless that is this one."""
        spare = next((each.model_id for each in row.targets if each.is_fallback), None)
        for number in self._leading.get(spare or 0, ()):
            other = self._rows[number]
            if other.created_model_id == spare and other.id != row.id:
                return other.name
        return ""

    # Building ---------------------------------------------------------------------------------------

    def _made(self, row: ModelRoutePublic) -> Route:
        return route_of(row, self.fleet, fallback=self._fallback_of(row))

    def _build(self, numbers: Collection[int]) -> set[str]:
        touched: set[str] = set()
        for number in numbers:
            row = self._rows.get(number)
            touched |= self._exchange(number, None if row is None else self._made(row))
        return touched

    def _exchange(self, number: int, new: Route | None) -> set[str]:
        """Put ``new`` where the route was, and return the names that this concerns."""
        old = self._built.get(number)
        if new == old:
            return set()
        names = _names(old) | _names(new)
        for name in _names(old) - _names(new):
            # Another route may have taken the name already.
            if self.by_name.get(name) is old:
                del self.by_name[name]
        if old is not None and self._numbers.get(old.name) == number:
            del self._numbers[old.name]
        if new is None:
            self._built.pop(number, None)
        else:
            self._built[number] = new
            self._numbers[new.name] = number
            self.by_name.update(dict.fromkeys(_names(new), new))
        return names


def _names(route: Route | None) -> set[str]:
    return set() if route is None else {route.name, *route.aliases}
