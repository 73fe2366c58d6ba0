"""How a route is reached: what is in the database about it, as the value that gateways work with. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gpustack.dataplane.door import instance_credential
from gpustack.db import Door
from gpustack.kit.net import LOOPBACK
from gpustack.plugin.routing import Route, Target, Timeouts
from gpustack.schemas import InstanceState, ModelInstancePublic, ModelPublic, ModelRoutePublic

_S = InstanceState
_Number = TypeVar("_Number", int, float)
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
_RANKS = {state: rank for rank, state in enumerate(_OBSTACLES)}
#: Of a model without a say of its instances: it is about to get some, is stopped, or is gone.
_COMING, _STOPPED, _GONE = len(_RANKS), len(_RANKS) + 1, len(_RANKS) + 2
#: A target's weight is its model's, shared by the model's instances: whole numbers, whatever their count is.
_FINE = 1_000_000


@dataclass(slots=True)
class Fleet:
    """What the routes lead to. Models by id, instances by model and id, doors by worker."""

    models: dict[int, ModelPublic] = field(default_factory=dict)
    instances: dict[int, dict[int, ModelInstancePublic]] = field(default_factory=dict)
    doors: dict[int, Door] = field(default_factory=dict)
    #: The uuid of the worker that runs beside the server; empty as long as there is none.
    built_in: str = ""


def target_of(instance: ModelInstancePublic, built_in: str, doors: Mapping[int, Door]) -> Target | None:
    """Return where an instance answers, or None when it answers nowhere.

    Engines listen on loopback of their worker: those of the server's ``built_in`` worker are asked there, others by
    way of their worker's door. The one decision about addresses is made here.
    """
    door = doors.get(instance.worker_id or 0)
    if not instance.port or door is None:
        return None
    ready_at = instance.state_since.timestamp() if instance.state is _S.RUNNING else 0.0
    here = Target(
        instance_id=instance.id,
        host=LOOPBACK,
        port=instance.port,
        model=instance.model_name,
        ready_at=ready_at,
    )
    if door.runs_beside(built_in):
        return here
    if not door.port:
        return None
    return replace(
        here,
        host=door.ip,
        port=door.port,
        path_prefix=f"/instances/{instance.id}",
        credential=instance_credential(door.token, instance.id),
    )


def route_of(route: ModelRoutePublic, fleet: Fleet, *, fallback: str = "") -> Route:
    """Return how ``route`` is reached.

    ``fallback`` is the name of the route that its fallback target's model has of its own. Where that is empty, the
    instances of the fallback are targets here, with a weight of 0: they get what no other one can take.
    """
    counted = [each for each in route.targets if not each.is_fallback]
    models = [fleet.models.get(each.model_id or 0) for each in counted]
    targets: list[Target] = []
    for target, model in zip(counted, models, strict=True):
        running = _running(model, fleet) if model is not None else []
        weight = 100 if len(counted) == 1 else target.weight * _FINE // max(1, len(running))
        targets += [replace(each, weight=weight) for each in running]
    if not fallback:
        for spare in (each for each in route.targets if each.is_fallback):
            model = fleet.models.get(spare.model_id or 0)
            targets += [replace(each, weight=0) for each in (_running(model, fleet) if model else [])]
    known = [each for each in models if each is not None]
    if route.aliases or any(each.model != route.name for each in targets):
        targets = [replace(each, served_name=each.model) for each in targets]
    made = Route(
        name=route.name,
        created=int(route.created_at.timestamp()),
        targets=tuple(targets),
        models=tuple(each.name for each in sorted(known, key=lambda each: not _may_wake(each, fleet))),
        categories=_categories(models),
        aliases=tuple(route.aliases),
        fallback=fallback,
        fallback_status_codes=_fallback_codes(route),
        **_serving(known),
    )
    if targets:
        return made
    asleep = any(_may_wake(each, fleet) for each in known)
    return replace(made, obstacle=_obstacle(route, fleet), asleep=asleep)


def _fallback_codes(route: ModelRoutePublic) -> tuple[str, ...]:
    """Return the errors that lead to the fallback; none where there is no fallback."""
    return tuple(route.fallback_status_codes) if any(each.is_fallback for each in route.targets) else ()


def _serving(models: list[ModelPublic]) -> dict[str, Any]:
    """Return times and bounds of a route: its model's, and the most generous of several."""
    if not models:
        return {}
    times = [each.timeouts for each in models]
    queues = [each.queue for each in models]
    return {
        "timeouts": Timeouts(
            connect=max(each.connect for each in times),
            first_byte=max(each.first_byte for each in times),
            between=max(each.between for each in times),
        ),
        "queue_tokens": _most([each.tokens for each in queues]),
        "queue_requests": _most([each.requests for each in queues]),
        "queue_seconds": _most([each.wait_seconds for each in queues]),
        "start_seconds": max(
            (each.autoscaling.start_seconds for each in models if each.sleeps), default=None
        ),
    }


def _most(bounds: list[_Number | None]) -> _Number | None:
    """Return the largest; None, the gateway's own, when one of them leaves it to that."""
    given = [each for each in bounds if each is not None]
    return max(given) if given and len(given) == len(bounds) else None


def _may_wake(model: ModelPublic, fleet: Fleet) -> bool:
    """Tell whether the model is about to answer if somebody asks, so that requests wait for it."""
    return model.sleeps and not any(
        each.state is _S.ERROR and each.draining_since is None
        for each in fleet.instances.get(model.id, {}).values()
    )


def _running(model: ModelPublic, fleet: Fleet) -> list[Target]:
    """Return the instances of a model that take requests; engines know a model by its own name."""
    found = []
    for _, instance in sorted(fleet.instances.get(model.id, {}).items()):
        if instance.draining_since is None and instance.state is _S.RUNNING:
            target = target_of(instance, fleet.built_in, fleet.doors)
            if target is not None:
                found.append(replace(target, slots=model.queue.slots) if model.queue.slots else target)
    return found


def _categories(models: list[ModelPublic | None]) -> tuple[str, ...]:
    """Return what the models can do; nothing while that is not known of one of them."""
    each = [model.categories for model in models if model is not None]
    return tuple(dict.fromkeys(name for names in each for name in names)) if all(each) else ()


def _obstacle(route: ModelRoutePublic, fleet: Fleet) -> str:
    """Return what keeps the route from answering, in words that follow its name: of the model that is furthest."""
    found: list[tuple[int, str]] = []
    for target in route.targets:
        model = fleet.models.get(target.model_id or 0)
        rank, said = (_GONE, "was removed") if model is None else _state_of(model, fleet)
        if target.model_name != route.name or model is None:
            said = f"leads to model {target.model_name}, which {said}"
        found.append((rank, said))
    return min(found, key=lambda each: each[0])[1] if found else "leads to no model"


def _state_of(model: ModelPublic, fleet: Fleet) -> tuple[int, str]:
    """Return how far a model without a target is, the furthest lowest, and the words for it."""
    waiting = [
        each
        for each in fleet.instances.get(model.id, {}).values()
        if each.draining_since is None and each.state in _RANKS
    ]
    if waiting:
        furthest = min(waiting, key=lambda each: (_RANKS[each.state], each.id))
        return _RANKS[furthest.state], _OBSTACLES[furthest.state] + _reason(furthest)
    if model.replicas == 0:
        return _STOPPED, "is asleep" if model.sleeps else "is stopped: it has 0 replicas"
    return _COMING, "is starting"


def _reason(instance: ModelInstancePublic) -> str:
    lines = instance.state_message.strip().splitlines()
    if instance.state in (_S.ERROR, _S.PENDING) and lines:
        return f": {lines[0][:300]}"
    return ""
