"""What an answer that did not come says: to the client, and of the instance."""

from __future__ import annotations

from gpustack.dataplane import errors
from gpustack.dataplane.choosing import Outcome
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.hops import DIED, DOOR_SAYS
from gpustack.dataplane.http import Failure, KnownAnswer, Stage
from gpustack.plugin.routing import Route


def is_plain(known: KnownAnswer) -> bool:
    """Tell whether what begins so is an answer in JSON, which may tell what it took."""
    fields = dict(known.headers(b""))
    json = fields.get(b"content-type") == b"application/json" and not fields.get(b"content-encoding")
    return json and known.status < 400 and DOOR_SAYS not in fields


def obstacle(route: Route) -> str:
    """Return why nobody answers for ``route``, as the end of a sentence on it."""
    return "does not accept connections" if route.targets else route.obstacle


def outcome_of(failure: Failure | None) -> Outcome:
    """Return what ``failure`` tells of the instance; None stands for an answer that is not whole."""
    if failure is None:
        return Outcome.SERVER_ERROR
    if failure.stage is Stage.CONNECT and not failure.started:
        return Outcome.CONNECT_FAILED
    return Outcome.TIMEOUT if failure.timed_out else Outcome.SERVER_ERROR


def trouble_of(failure: Failure, route: Route) -> ApiError:
    """Return what a client hears of ``failure`` when no other instance is asked."""
    if failure.timed_out and failure.stage is not Stage.CONNECT:
        return ApiError(504, f"the engine of model {route.name} {failure.message}", code="engine_timeout")
    if failure.stage is Stage.CONNECT and not failure.started:
        return errors.not_running(route.name, "does not accept connections")
    return errors.engine_failed(route.name, failure.message)


def told_by_door(word: bytes, content: bytes) -> Failure:
    """Return what the ``word`` of a worker's door stands for; ``content`` is the answer it came with."""
    if word == DIED:
        return Failure(Stage.HEAD, True, "ended before it answered")
    return Failure(Stage.CONNECT, False, f"cannot be reached: {errors.engine_message(content)}")


def leads_to_fallback(route: Route, status: int) -> bool:
    """Tell whether ``route`` has its fallback asked in place of an engine's ``status``."""
    codes = route.fallback_status_codes
    return bool(codes) and (str(status) in codes or f"{status // 100}xx" in codes)
