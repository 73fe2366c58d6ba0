"""What a gateway serves: models with their targets, and who may ask for them. Values, no behaviour of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One running instance and where it answers: its engine itself, or behind the door of another machine's worker."""

    instance_id: int
    host: str
    port: int
    #: What stands before the path at a door; empty for an engine.
    path_prefix: str = ""
    #: What the door wants to see; empty for an engine.
    credential: str = field(default="", repr=False)
    #: The model that the instance belongs to, for metering; empty: the route's own name.
    model: str = ""
    #: What the engine calls the model; empty: whatever the client wrote.
    served_name: str = ""
    #: Its share of the requests, relative to the other targets'; 0 gets none that another one can take.
    weight: int = 100
    #: Requests that the engine works on at the same time; None when that is not known.
    slots: int | None = None
    #: When it became ready, in seconds since the epoch: it gets less at first, until its caches are warm. 0 is long ago.
    ready_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a gateway waits for each step, in seconds. There is no limit for a whole answer."""

    connect: float = 2.0
    #: Until the first byte of the answer; a long prompt is read before it.
    first_byte: float = 600.0
    #: Between two pieces of an answer.
    between: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one principal may take; None is without limit. A gateway of several processes holds them over all of them."""

    requests_per_minute: int | None = None
    #: Tokens of prompts and answers together.
    tokens_per_minute: int | None = None
    #: Requests at the same time, those that wait in a queue included.
    concurrency: int | None = None
    #: Who has a higher one goes first when requests wait.
    priority: int = 0
    #: Among equal priorities, the share of the tokens relative to others'.
    weight: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One public model name. Without targets, ``obstacle`` says why in words that follow the model's name."""

    name: str
    created: int
    targets: tuple[Target, ...] = ()
    obstacle: str = "has no running instance"
    #: The models that it leads to, those first that may start when they are asked; routes to the same model have its
    #: slots and its queue in common. Empty: one that is called like the route.
    models: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    #: Other names of the same.
    aliases: tuple[str, ...] = ()
    #: The route that is asked when no target of this one can answer; empty when there is none.
    fallback: str = ""
    #: Errors of an engine, such as ``5xx`` or ``429``, in whose place the fallback is asked as long as the client has been
    #: sent nothing; where ``fallback`` is empty, targets with a weight of 0.
    fallback_status_codes: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    #: Tokens that may wait for one instance; what comes beyond is refused. None: the gateway's own bound.
    queue_tokens: int | None = None
    #: Requests that may wait for one instance; None: as many as the tokens have room for.
    queue_requests: int | None = None
    #: Seconds that a request waits for its turn at most; None: the gateway's own bound.
    queue_seconds: float | None = None
    #: Seconds that requests wait at most for a route that is asleep to start; None: the gateway's own bound.
    start_seconds: float | None = None
    #: Scaled to zero, and started when somebody asks: requests wait meanwhile.
    asleep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. ``allowed`` None means every model; ``expires_at`` is seconds since the epoch, None is never."""

    user_id: int | None
    username: str
    is_admin: bool = False
    key_id: int | None = None
    allowed: frozenset[str] | None = None
    expires_at: float | None = None
    limits: Limits = Limits()

    def may_use(self, model: str) -> bool:
        """Tell whether this principal may ask ``model``."""
        return self.allowed is None or model in self.allowed

    def expired(self, now: float) -> bool:
        """Tell whether the credential is over at ``now``, in seconds since the epoch."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """One snapshot of everything the data path needs. ``version`` grows with every change."""

    version: int = 0
    #: By public name.
    routes: Mapping[str, Route] = field(default_factory=dict)
    #: By the digest of the credential, as :func:`digest` makes it; those of browsers as :func:`of_session` makes it of that.
    principals: Mapping[str, Principal] = field(default_factory=dict)

    def principal(self, credential: str, *, now: float) -> Principal | None:
        """Return who holds ``credential``, or None when it is unknown or over."""
        found = self.principals.get(digest(credential))
        return None if found is None or found.expired(now) else found


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingDelta:
    """What differs between two tables, for gateways that send changes on. A hint: the whole table is always there too."""

    #: The version of the table that it starts from.
    since: int
    #: Public names of models that are new or others, and of those that are gone.
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    #: Digests of credentials that are new or others, and of those that are gone.
    principals_changed: frozenset[str] = frozenset()
    principals_removed: frozenset[str] = frozenset()
    #: Keys, by their numbers, whose requests that are being answered shall end, too.
    closed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What one request took. Told at least once; ``id`` makes that exactly once. Counts are tokens, times seconds."""

    id: str
    #: When the request ended, in seconds since the epoch.
    at: float
    model: str
    instance_id: int | None = None
    user_id: int | None = None
    key_id: int | None = None
    #: The HTTP status; 499 when the client left before the answer was whole.
    status: int = 200
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    #: None when nothing was streamed.
    time_to_first_token: float | None = None
    duration: float = 0.0
    #: What was asked, as in ``/v1/chat/completions``.
    operation: str = ""
    #: The public name that was asked for; ``model`` is what answered.
    route: str = ""
    #: Seconds that the request waited for its turn.
    queued: float = 0.0
    #: Mean seconds between two pieces of a stream; None with less than two.
    between_tokens: float | None = None
    #: Whether the counts are the gateway's own, because the engine told none (a stream that was cut off, say).
    estimated: bool = False
    #: What the client got as ``x-request-id``, at most 128 characters. A client may give the same one many times.
    request_id: str = ""


def digest(credential: str) -> str:
    """Return what is kept of a credential instead of itself. Credentials are long and random: no salt is needed."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def of_session(digest: str) -> str:
    """Return what a browser's session is found by, from the digest of its token: no key is one, nor the reverse."""
    return f"session {digest}"
