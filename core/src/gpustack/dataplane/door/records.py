"""What a door knows: where engines listen, which processes they are, and what opens the way to each."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpustack.dataplane.http import host_header, request_line
from gpustack.kit.net import LOOPBACK
from gpustack.kit.process import ProcessId, is_running, pid_space

log = logging.getLogger(__name__)

#: Seconds for which an engine that was just seen to run counts as running.
_SURE = 1.0
#: First lines of requests to one engine that are kept: it is asked for the same few things again and again.
_KEPT = 64


def instance_credential(door_token: str, instance_id: int) -> str:
    """Return what opens the door to one instance: an HMAC, so that it tells nothing of the other instances'."""
    return hmac.new(door_token.encode(), b"instance:%d" % instance_id, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Engine:
    """What a record tells: where an engine listens, and which process it is."""

    port: int
    who: ProcessId | None
    space: str
    #: Until then it counts as running without another look.
    _sure_until: float = 0.0
    _first_lines: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)

    def runs(self) -> bool:
        """Tell whether it runs; without it, another program may have its port."""
        now = time.monotonic()
        if now >= self._sure_until:
            if self.who is None or self.space not in ("", pid_space()) or not is_running(self.who):
                return False
            self._sure_until = now + _SURE
        return True

    def first_lines(self, method: bytes, path: bytes) -> bytes:
        """Return how a request to it begins: request line and Host."""
        key = (method, path)
        known = self._first_lines.get(key)
        if known is None:
            if len(self._first_lines) >= _KEPT:
                self._first_lines.clear()
            known = self._first_lines[key] = request_line(method, path, host_header(LOOPBACK, self.port))
        return known


@dataclass(slots=True)
class _Remembered:
    """What a file said, as long as it is the same file."""

    stamp: tuple[int, int, int]
    value: object


@dataclass(slots=True)
class Records:
    """What lies in the data directory, read again whenever it has changed.

    They are small files that are replaced as a whole; looking whether one has changed takes a microsecond, so that
    happens on the event loop.
    """

    #: Holds ``<id>.json`` with ``port``, ``pid``, ``started`` and ``pid_space`` of each engine.
    instances: Path
    #: Holds the secret that the instances' credentials are made of.
    door_token: Path
    _seen: dict[str, _Remembered] = field(default_factory=dict)
    #: Of those that were shown here, so that nobody fills it with guesses; all made of ``_token``.
    _credentials: dict[int, bytes] = field(default_factory=dict)
    _token: str = ""

    def token(self) -> str:
        """Return the door token, empty as long as there is none."""
        return str(self._read(str(self.door_token), str.strip) or "")

    def opens(self, token: str, instance_id: int, shown: bytes) -> bool:
        """Tell whether ``shown`` is the credential of an instance here, where ``token`` is the door's."""
        if token != self._token:
            self._token = token
            self._credentials.clear()
        known = self._credentials.get(instance_id)
        expected = known or instance_credential(token, instance_id).encode()
        right = hmac.compare_digest(shown, expected)
        if right and known is None:
            self._credentials[instance_id] = expected
        return right

    def engine(self, instance_id: int) -> Engine | None:
        """Return the engine of an instance, which need not run any more; None when it is not here."""
        found = self._read(f"{self.instances}/{instance_id}.json", _engine_of)
        if not isinstance(found, Engine):
            self._credentials.pop(instance_id, None)
            return None
        return found

    def _read(self, path: str, understand: Callable[[str], object]) -> object:
        try:
            status = os.stat(path)  # noqa: PTH116  # half as dear as Path's, for every request
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._seen.get(path)
            if known is None or known.stamp != stamp:
                known = _Remembered(stamp, understand(Path(path).read_text(encoding="utf-8")))
                self._seen[path] = known
        except (OSError, ValueError) as error:
            self._seen.pop(path, None)
            if not isinstance(error, FileNotFoundError):
                log.warning("%s cannot be read: %s", path, error)
            return None
        return known.value


def _engine_of(text: str) -> Engine | None:
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(port := document.get("port"), int):
        return None
    pid, started = document.get("pid"), document.get("started")
    who = None
    if isinstance(pid, int) and isinstance(started, int | float) and pid > 0:
        who = ProcessId(pid=pid, started=started)
    return Engine(port, who, str(document.get("pid_space") or ""))
