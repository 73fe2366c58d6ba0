"""How a model is served beside what its engine runs: times, queues, and how many instances there are."""

from __future__ import annotations

from pydantic import Field, model_validator

from gpustack.schemas.common import Input

#: A day: the longest that anything here waits.
_DAY = 86_400.0
#: Instances of one model, the most.
MOST_REPLICAS = 1000


class ModelTimeouts(Input):
    """How long a gateway waits for an instance, in seconds. There is no limit for a whole answer."""

    #: For a connection.
    connect: float = Field(default=2.0, gt=0, le=60, allow_inf_nan=False)
    #: Until the first byte of the answer; a long prompt is read before it.
    first_byte: float = Field(default=600.0, gt=0, le=_DAY, allow_inf_nan=False)
    #: Between two pieces of an answer.
    between: float = Field(default=120.0, gt=0, le=_DAY, allow_inf_nan=False)


class ModelQueue(Input):
    """Which requests wait at the gateway, and how many. What comes beyond a bound is refused with Retry-After."""

    #: Requests that one instance works on at a time, so that others wait; null passes on all that come.
    slots: int | None = Field(default=None, ge=1, le=100_000)
    #: Tokens that may wait for each instance; null is the gateway's own bound, 200,000.
    tokens: int | None = Field(default=None, ge=0, le=1_000_000_000)
    #: Requests that may wait for each instance; null is as many as ``tokens`` has room for.
    requests: int | None = Field(default=None, ge=0, le=1_000_000)
    #: Seconds that a request waits for its turn at most; null is the gateway's own bound, 60.
    wait_seconds: float | None = Field(default=None, gt=0, le=_DAY, allow_inf_nan=False)


class Autoscaling(Input):
    """What the number of instances follows between ``min_replicas`` and ``max_replicas``."""

    #: Requests that each instance is to have, those that wait included: more of them make more instances. 0 counts none.
    outstanding: float = Field(default=4.0, ge=0, le=100_000, allow_inf_nan=False)
    #: Percent of the engines' KV caches that are to be in use, where engines tell; 0 looks at none.
    kv_cache: float = Field(default=80.0, ge=0, le=100, allow_inf_nan=False)
    #: Seconds for which more have to be needed before there are more.
    up_seconds: float = Field(default=5.0, ge=0, le=3600, allow_inf_nan=False)
    #: Seconds for which fewer have to be enough before there are fewer.
    down_seconds: float = Field(default=300.0, ge=0, le=_DAY, allow_inf_nan=False)
    #: Seconds without a request before the last instance ends, with a ``min_replicas`` of 0.
    idle_seconds: float = Field(default=600.0, gt=0, le=30 * _DAY, allow_inf_nan=False)
    #: Seconds that requests wait at most for the first instance to start.
    start_seconds: float = Field(default=600.0, gt=0, le=_DAY, allow_inf_nan=False)

    @model_validator(mode="after")
    def _follows_something(self) -> Autoscaling:
        if not self.outstanding and not self.kv_cache:
            raise ValueError("outstanding and kv_cache are both 0: then there is nothing to scale by")
        return self


class ModelTimeoutsPatch(Input):
    """What is to change of :class:`ModelTimeouts`."""

    connect: float | None = None
    first_byte: float | None = None
    between: float | None = None


class ModelQueuePatch(Input):
    """What is to change of a :class:`ModelQueue`."""

    slots: int | None = None
    tokens: int | None = None
    requests: int | None = None
    wait_seconds: float | None = None


class AutoscalingPatch(Input):
    """What is to change of :class:`Autoscaling`."""

    outstanding: float | None = None
    kv_cache: float | None = None
    up_seconds: float | None = None
    down_seconds: float | None = None
    idle_seconds: float | None = None
    start_seconds: float | None = None


def bounds(replicas: int, least: int | None, most: int | None) -> tuple[int, int] | None:
    """Return between how many instances a model is scaled; None when their number is fixed.

    One bound alone gives the other: up to as many as there are now, or down to one. Raises ValueError for bounds that
    leave no number.
    """
    if least is None and most is None:
        return None
    if most is None:
        most = max(least or 0, replicas, 1)
    if least is None:
        least = min(1, most)
    if most < least:
        raise ValueError(f"max_replicas {most} is below min_replicas {least}")
    return least, most
