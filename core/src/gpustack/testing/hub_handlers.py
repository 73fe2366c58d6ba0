"""How :mod:`gpustack.testing.hub` answers: the hub itself, and the content server that has the large files."""

from __future__ import annotations

import contextlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from gpustack.testing.hub import FakeHub, HubFile

_PIECE = 64 << 10
_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request that came in. ``at`` is ``hub`` or ``content``."""

    at: str
    method: str
    path: str
    headers: Mapping[str, str]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler, ABC):
    """What both servers do alike."""

    protocol_version = "HTTP/1.1"
    at = ""

    def __init__(self, hub: FakeHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer, unless a fault does."""
        self.hub.note(Asked(at=self.at, method=self.command, path=self.path, headers=dict(self.headers)))
        with contextlib.suppress(ConnectionError):
            if self.hub.spoils("throttled"):
                self._error(429, "", "rate limit reached", {"Retry-After": str(self.hub.faults.retry_after)})
            elif self.hub.spoils("errors"):
                self._error(500, "", "internal error")
            else:
                self.answer(unquote(urlsplit(self.path).path))

    do_HEAD = do_GET

    @abstractmethod
    def answer(self, path: str) -> None:
        """Answer a request for ``path``."""

    def log_message(self, *args: object) -> None:
        """Stay silent."""

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str, more: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {**headers, "X-Error-Message": message, **(more or {})})

    def _span(self, size: int) -> tuple[int, int] | None:
        """Return first byte and end of what is asked for; None for a range that is not there."""
        match = _RANGE.match(self.headers.get("Range", ""))
        if match is None:
            return 0, size
        start, end = int(match[1]), min(int(match[2] or size) + 1, size) if match[2] else size
        return (start, end) if start < end else None

    def _file_head(self, file: HubFile, headers: Mapping[str, str]) -> tuple[int, int] | None:
        """Send the head of an answer that carries ``file``; return the span that is to follow."""
        if (span := self._span(file.size)) is None:
            self._send(416, b"", {"Content-Range": f"bytes */{file.size}"})
            return None
        start, end = span
        part = "Range" in self.headers
        more = {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"} if part else {}
        more |= {"Content-Length": str(end - start), "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        self._head(206 if part else 200, {**headers, **more})
        return span


class HubHandler(_Handler):
    """The hub itself."""

    at = "hub"

    def answer(self, path: str) -> None:
        """Find the repository and what is asked of it."""
        if match := re.match(r"^/api/models/(.+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?$", path):
            repo, kind, revision = match[1], match[2] or "revision", match[3] or "main"
            if (commit := self._commit(repo, revision, files=False)) is not None:
                self._json(repo, commit, kind)
        elif match := re.match(r"^/api/resolve-cache/models/(.+?)/([0-9a-f]{40})/(.+)$", path):
            if self._commit(match[1], match[2], files=True) is not None:
                self._small(match[1], match[2], match[3])
        elif match := re.match(r"^/(.+?)/resolve/([^/]+)/(.+)$", path):
            if (commit := self._commit(match[1], match[2], files=True)) is not None:
                self._resolve(match[1], commit, match[3])
        else:
            self._error(404, "", "Sorry, we can't find the page you are looking for.")

    def _commit(self, repo: str, revision: str, *, files: bool) -> str | None:
        """Return the commit after looking at the caller's rights; answer the error otherwise."""
        faults, token = self.hub.faults, self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = self.hub.repositories.get(repo)
        if token and token not in faults.tokens | faults.trusted:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif known is None or (repo in faults.private and token not in faults.trusted):
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        elif files and repo in faults.gated and token not in faults.trusted:
            self._error(403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        elif (commit := known.commit(revision)) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit
        return None

    def _json(self, repo: str, commit: str, kind: str) -> None:
        files = self.hub.repositories[repo].commits[commit]
        value: Any
        if kind == "tree":
            value = [
                {"type": "file", "path": name, "oid": file.etag[:40], "size": file.size, **_lfs(file, "oid")}
                for name, file in files.items()
            ]
        else:
            siblings = [
                {"rfilename": name, "size": file.size, "blobId": file.etag[:40], **_lfs(file, "sha256")}
                for name, file in files.items()
            ]
            gated = "manual" if repo in self.hub.faults.gated else False
            about = {"private": repo in self.hub.faults.private, "gated": gated, "disabled": False}
            value = {"id": repo, "modelId": repo, "sha": commit, "tags": [], "siblings": siblings, **about}
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, commit: str, name: str) -> None:
        file = self.hub.repositories[repo].commits[commit].get(name)
        headers = {"X-Repo-Commit": commit}
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", headers)
        elif file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            self._send(302, b"", {**headers, "Location": f"{self.hub.content_url}/{file.etag}?signed=yes"})
        else:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
            self._send(307, b"", {**headers, "Location": f"/api/resolve-cache/models/{repo}/{commit}/{name}"})

    def _small(self, repo: str, commit: str, name: str) -> None:
        file = self.hub.repositories[repo].commits[commit].get(name)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        elif (span := self._file_head(file, {"X-Repo-Commit": commit})) and self.command != "HEAD":
            self.wfile.write(file.read(span[0], span[1] - span[0]))


def _lfs(file: HubFile, digest: str) -> dict[str, Any]:
    return {"lfs": {digest: file.etag, "size": file.size, "pointerSize": 134}} if file.lfs else {}


class ContentHandler(_Handler):
    """The content server, which has the large files by their digests."""

    at = "content"

    def answer(self, path: str) -> None:
        """Send a large file, or a span of it, as badly as the faults say."""
        if (file := self.hub.large(path.removeprefix("/"))) is None:
            self._error(403, "", "the signature is wrong")
        elif self.hub.spoils("endless"):
            self._endless()
        elif (span := self._file_head(file, {})) and self.command != "HEAD":
            try:
                self._body(file, *span)
            except _CutOff:
                self.close_connection = True

    def _body(self, file: HubFile, start: int, end: int) -> None:
        cut = next((name for name in ("truncated", "stalled") if self.hub.spoils(name)), "")
        stop = min(end, start + self.hub.faults.cut_after) if cut else end
        wrong = self.hub.spoils("corrupted")
        for piece in self._pieces(file, start, stop):
            self.wfile.write(bytes([piece[0] ^ 1]) + piece[1:] if wrong else piece)
            wrong = False
            self.hub.sent += len(piece)
        if cut == "stalled":
            self.hub.ending.wait()
        if cut:
            raise _CutOff

    def _endless(self) -> None:
        """Send a page that was not asked for, as a portal in between may."""
        self.close_connection = True
        self._head(200, {"Content-Type": "text/html"})
        while not self.hub.ending.is_set():
            self.wfile.write(b"<p>" * (_PIECE // 3))
            self.hub.sent += _PIECE

    def _pieces(self, file: HubFile, start: int, stop: int) -> Iterator[bytes]:
        position = start
        while position < stop:
            rate = self.hub.faults.rate
            count = _PIECE if rate is None else max(1, min(_PIECE, int(rate / 20)))
            yield (piece := file.read(position, min(count, stop - position)))
            position += len(piece)
            if rate is not None:
                time.sleep(len(piece) / rate)


class _CutOff(Exception):
    """The connection is to be broken."""
