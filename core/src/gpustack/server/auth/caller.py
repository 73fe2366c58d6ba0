"""Callers and the degrees of access that paths ask for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from litestar import Request
from litestar.datastructures import State

from gpustack.kit.errors import Forbidden


class Access(Enum):
    """What a path asks of its callers. A path that says nothing asks for ADMIN."""

    PUBLIC = auto()
    #: Anybody who is signed in.
    USER = auto()
    ADMIN = auto()
    #: A worker with its own token, or an administrator.
    WORKER = auto()
    #: Whoever has the registration token, a worker with its own, or an administrator.
    REGISTRATION = auto()


class Via(Enum):
    """How the caller proved who it is."""

    KEY = auto()
    SESSION = auto()
    LOCAL = auto()
    WORKER = auto()
    REGISTRATION = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes this request. Exactly one of user, worker and the registration token is behind it."""

    via: Via
    user_id: int = 0
    username: str = ""
    is_admin: bool = False
    worker_id: int = 0
    #: What the worker said it is when it registered.
    worker_version: str = ""
    #: The number of the worker's start that counts.
    worker_session: int = 0
    #: Digest of the session's token, for a caller who came with a cookie.
    session: str = ""
    #: A key that is limited to certain models serves inference and nothing else.
    inference_only: bool = False
    #: When the API key that the caller came with is over, in seconds since the epoch.
    expires_at: float | None = None

    def check(self, access: Access) -> None:
        """Raise Forbidden when this caller may not use a path that asks for ``access``."""
        if access is Access.PUBLIC or (self.is_admin and not self.inference_only):
            return
        if access is Access.WORKER and self.via is Via.WORKER:
            return
        if access is Access.REGISTRATION and self.via in (Via.REGISTRATION, Via.WORKER):
            return
        if access is Access.USER and self.user_id and not self.inference_only:
            return
        raise Forbidden(self._refusal())

    def only_own(self, worker_id: int | None) -> int | None:
        """Return the worker whose things a list shows: of a worker that asks only its own; None: everybody's.

        Raises Forbidden when a worker asks for another one's.
        """
        if self.via is not Via.WORKER:
            return worker_id
        if worker_id not in (None, self.worker_id):
            raise Forbidden("a worker's token shows what is on that worker and nothing else")
        return self.worker_id

    def may_see(self, worker_id: int | None) -> bool:
        """Tell whether this caller may see what is on a worker, or, None, on none."""
        return self.via is not Via.WORKER or worker_id == self.worker_id

    def may_see_any(self, worker_ids: Iterable[int]) -> bool:
        """Tell whether this caller may see what is on these workers together, or, with no ids, on none."""
        some: list[int | None] = [*worker_ids]
        return any(self.may_see(each) for each in some or [None])

    def _refusal(self) -> str:
        if self.inference_only:
            return "this API key is limited to certain models and serves the paths below /v1 only"
        if self.via is Via.WORKER:
            return "a worker's token may not do this"
        if self.via is Via.REGISTRATION:
            return "the registration token only lets workers join"
        return "this needs an administrator"


Req = Request[Caller, None, State]
