"""A worker's door: the one port by which other machines reach its engines, which listen on loopback only.

``/instances/<id>/<path>`` goes to the engine of that instance, for whoever shows the instance's credential. Anything
else goes to the worker's own API, which checks for itself. The records of running engines are the only source of truth,
so a door serves on while the worker, the server and the supervisor are gone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.dataplane import body
from gpustack.dataplane.app import MAX_BODY
from gpustack.dataplane.asgi import Message, Receive, Scope, Send, answer, bearer, header, while_listening
from gpustack.dataplane.errors import ApiError
from gpustack.dataplane.hops import DIED, DOOR_SAYS, UNREACHED, Header, for_clients, for_engines
from gpustack.dataplane.upstream import ConnectFailed, Exchange, Upstream, UpstreamDied
from gpustack.kit.net import LOOPBACK
from gpustack.kit.process import ProcessId, is_running, pid_space

log = logging.getLogger(__name__)

_TO_ENGINE = re.compile(r"/instances/([0-9]{1,18})(/.*)")
#: Bytes of a request for the worker itself, which takes next to nothing.
_WORKER_BODY = 1 << 20
#: Seconds for which an engine that was just seen to run counts as running.
_SURE = 1.0


def instance_credential(door_token: str, instance_id: int) -> str:
    """Return what opens the door to one instance: an HMAC, so that it tells nothing of the other instances'."""
    return hmac.new(door_token.encode(), b"instance:%d" % instance_id, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class _Remembered:
    """What a file said, as long as it is the same file."""

    stamp: tuple[int, int, int]
    value: object


@dataclass(slots=True)
class _Engine:
    """What a record tells: where an engine listens, and which process it is."""

    port: int
    who: ProcessId | None
    space: str
    #: Until then it counts as running without another look.
    _sure_until: float = 0.0

    def runs(self) -> bool:
        """Tell whether it runs; without it, another program may have its port."""
        now = time.monotonic()
        if now >= self._sure_until:
            if self.who is None or self.space not in ("", pid_space()) or not is_running(self.who):
                return False
            self._sure_until = now + _SURE
        return True


@dataclass(slots=True)
class Records:
    """What lies in the data directory, read again whenever it has changed.

    Both are small files that are replaced as a whole; looking whether one has changed takes a microsecond, so that
    happens on the event loop.
    """

    #: Holds ``<id>.json`` with ``port``, ``pid``, ``started`` and ``pid_space`` of each engine.
    instances: Path
    #: Holds the secret that the instances' credentials are made of.
    door_token: Path
    _seen: dict[Path, _Remembered] = field(default_factory=dict)

    def token(self) -> str:
        """Return the door token, empty as long as there is none."""
        return str(self._read(self.door_token, lambda text: text.strip()) or "")

    def engine(self, instance_id: int) -> _Engine | None:
        """Return the engine of an instance, which need not run any more; None when it is not here."""
        found = self._read(self.instances / f"{instance_id}.json", _engine_of)
        return found if isinstance(found, _Engine) else None

    def _read(self, path: Path, understand: Callable[[str], object]) -> object:
        try:
            status = os.stat(path)  # noqa: PTH116  # half as dear as Path's, for every request
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._seen.get(path)
            if known is None or known.stamp != stamp:
                known = _Remembered(stamp, understand(path.read_text(encoding="utf-8")))
                self._seen[path] = known
        except (OSError, ValueError) as error:
            self._seen.pop(path, None)
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read: %s", path, error)
            return None
        return known.value


def _engine_of(text: str) -> _Engine | None:
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(port := document.get("port"), int):
        return None
    pid, started = document.get("pid"), document.get("started")
    who = None
    if isinstance(pid, int) and isinstance(started, int | float) and pid > 0:
        who = ProcessId(pid=pid, started=started)
    return _Engine(port, who, str(document.get("pid_space") or ""))


class DoorApp:
    """The ASGI application. ``worker`` gives the loopback port of the worker's own API, None when there is none."""

    def __init__(
        self,
        records: Records,
        upstream: Upstream,
        worker: Callable[[], int | None],
        *,
        max_body: int = MAX_BODY,
    ) -> None:
        self._records = records
        self._upstream = upstream
        self._worker = worker
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an answer that is cut off leaves its connection unfinished."""
        if scope["type"] != "http":
            return
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._serve(scope, receive, noting_send)
        except body.ClientGone:
            return
        except _Refused as refused:
            if not begun:
                await answer(send, refused.error.status, refused.headers(), refused.error.body())
        except UpstreamDied as error:
            log.warning("%s: %s", scope["path"], error)  # in the middle of an answer: the connection ends

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path == "/healthz":
            await answer(send, 200, [(b"content-type", b"text/plain; charset=utf-8")], b"ok")
        elif path.startswith("/instances/"):
            await self._to_engine(scope, receive, send)
        else:
            await self._to_worker(scope, receive, send)

    async def _to_engine(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _TO_ENGINE.fullmatch(_target(scope))
        if found is None:
            raise _refusal(404, "there is nothing here", "unknown_path")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise _refusal(405, "engines are asked by GET and POST", "method_not_allowed")
        instance, target = int(found[1]), found[2]
        if not (token := self._records.token()):
            raise _refusal(503, "this worker has no door token yet; it joins its server first", "not_ready")
        if not hmac.compare_digest(
            bearer(scope).encode("latin-1"), instance_credential(token, instance).encode()
        ):
            raise _refusal(401, "the credential of the instance is missing or wrong", "invalid_credential")
        if (engine := self._records.engine(instance)) is None:
            raise _refusal(404, f"instance {instance} is not on this worker", "unknown_instance")
        if not engine.runs():
            raise _refusal(503, f"the engine of instance {instance} does not run now", "not_reached")
        headers = for_engines(scope["headers"])
        if request_id := header(scope, b"x-request-id"):
            headers.append((b"x-request-id", request_id.encode("latin-1")))
        try:
            content = await body.read(receive, limit=self._max_body, announced=_announced(scope))
        except ApiError as error:
            raise _Refused(error) from error
        await while_listening(self._pass(scope, send, engine.port, target, headers, content), receive)

    async def _to_worker(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (port := self._worker()) is None:
            raise _refusal(503, "the worker does not run", "not_ready")
        headers = for_engines(scope["headers"])
        # The worker checks who asks; no engine ever sees this header.
        headers += [(name, value) for name, value in scope["headers"] if name == b"authorization"]
        try:
            content = await body.read(receive, limit=_WORKER_BODY, announced=_announced(scope))
        except ApiError as error:
            raise _Refused(error) from error
        await while_listening(self._pass(scope, send, port, _target(scope), headers, content), receive)

    async def _pass(
        self, scope: Scope, send: Send, port: int, target: str, headers: list[Header], content: bytes
    ) -> None:
        begin = _Begin(send)
        try:
            async with self._upstream.request(
                scope["method"], LOOPBACK, port, target, headers, content
            ) as exchange:
                await _pass_back(begin, exchange, empty=scope["method"] == "HEAD")
        except ConnectFailed as error:
            raise _refusal(503, str(error), "not_reached") from error
        except UpstreamDied as error:
            if begin.done:
                raise
            raise _refusal(502, str(error), "engine_failed", says=DIED) from error


@dataclass(slots=True)
class _Begin:
    """Sends, and knows whether the answer has begun."""

    _send: Callable[[Message], Awaitable[None]]
    done: bool = False

    async def send(self, message: Message) -> None:
        self.done = True
        await self._send(message)


async def _pass_back(begin: _Begin, exchange: Exchange, *, empty: bool) -> None:
    headers = for_clients(exchange.headers)
    headers += [(name, value) for name, value in exchange.headers if name == b"x-request-id"]
    await begin.send({"type": "http.response.start", "status": exchange.status, "headers": headers})
    if not empty:
        async for piece in exchange:
            await begin.send({"type": "http.response.body", "body": piece, "more_body": True})
    await begin.send({"type": "http.response.body", "body": b"", "more_body": False})


class _Refused(Exception):
    """The door's own answer."""

    def __init__(self, error: ApiError, says: bytes = UNREACHED) -> None:
        super().__init__(error.message)
        self.error = error
        self.says = says

    def headers(self) -> list[Header]:
        return [*self.error.headers(), (DOOR_SAYS, self.says)]


def _refusal(status: int, message: str, code: str, *, says: bytes = UNREACHED) -> _Refused:
    return _Refused(ApiError(status, message, code=code, retry_after=1 if status == 503 else 0), says)


def _target(scope: Scope) -> str:
    """Return path and query as they were sent: what was escaped stays so."""
    path = bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query = bytes(scope["query_string"]).decode("latin-1")
    return f"{path}?{query}" if query else path


def _announced(scope: Scope) -> int | None:
    value = header(scope, b"content-length")
    return int(value) if value.isdigit() else None
