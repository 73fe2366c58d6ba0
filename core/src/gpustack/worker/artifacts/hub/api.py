"""The few requests to the hub that we make ourselves: list a repository, read spans of its files. Blocks.

The token goes to the hub's own origin only: httpx drops it when a redirect leads elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from gpustack import __version__
from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.kit.paths import stays_below
from gpustack.kit.trust import authorities
from gpustack.worker.artifacts.hub.config import HubConfig
from gpustack.worker.artifacts.hub.errors import refusal, unreachable

MAIN = "main"
_CONNECT = 15.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: A listing of a repository with 100,000 files has some 30 MB.
_LONGEST_LISTING = 64 << 20
_MOST_FILES = 100_000
_LARGEST_FILE = 1 << 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """One file of a commit; ``sha256`` is empty for small files, which git itself holds."""

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a repository holds at one commit."""

    repo: str
    commit: str
    files: tuple[RepoFile, ...]


def is_commit(revision: str) -> bool:
    """Tell whether ``revision`` names one commit for good, unlike a branch or a tag."""
    return bool(_COMMIT.fullmatch(revision))


class HubApi:
    """A connection pool to the hub. Methods raise the errors of :mod:`.errors`."""

    def __init__(self, config: HubConfig) -> None:
        self._endpoint = config.endpoint.rstrip("/")
        self._token = config.token
        url = urlsplit(self._endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise InvalidInput(f"HF_ENDPOINT {self._endpoint!r} is not a URL such as https://huggingface.co")
        headers = {"User-Agent": f"gpustack/{__version__}", "Accept-Encoding": "identity"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        self._http = httpx.Client(
            headers=headers,
            follow_redirects=True,
            timeout=httpx.Timeout(config.stall, connect=min(_CONNECT, config.stall)),
            trust_env=not _is_loopback(url.hostname),
            verify=authorities() if url.scheme == "https" else False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def listing(self, repo: str, revision: str = "") -> Listing:
        """Return the files at ``revision``, a branch, tag or commit; empty is the main branch."""
        wanted = revision or MAIN
        url = f"{self._endpoint}/api/models/{repo}/revision/{quote(wanted, safe='')}?blobs=true"
        with self._asked(url, {}, repo, wanted, "") as response:
            pieces, length = [], 0
            for piece in response.iter_bytes():
                pieces.append(piece)
                if (length := length + len(piece)) > _LONGEST_LISTING:
                    raise InvalidInput(
                        f"the list of files of {repo} is too long; it is no repository of a model"
                    )
        return _listing(repo, self._endpoint, b"".join(pieces))

    def read(self, listing: Listing, path: str, start: int, count: int) -> bytes:
        """Return ``count`` bytes of a file from ``start``, fewer where it ends."""
        with self.stream(listing.repo, listing.commit, path, start, count) as pieces:
            data = b""
            for piece in pieces:
                data += piece
                if len(data) >= count:
                    break
        return data[:count]

    @contextmanager
    def stream(
        self, repo: str, commit: str, path: str, start: int = 0, count: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Give the bytes of a file from ``start`` in pieces as they come."""
        headers = {}
        if start or count is not None:
            headers["Range"] = f"bytes={start}-{'' if count is None else start + count - 1}"
        url = f"{self._endpoint}/{repo}/resolve/{commit}/{quote(path)}"
        with self._asked(url, headers, repo, commit, path) as response:
            if start and response.status_code != 206:
                raise Unavailable(
                    f"{self._endpoint} does not send parts of files; a proxy may be in between",
                    retry_after=60.0,
                )
            yield self._pieces(response)

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_bytes()
        except httpx.HTTPError as error:
            raise unreachable(self._endpoint, error) from error

    @contextmanager
    def _asked(
        self, url: str, headers: dict[str, str], repo: str, revision: str, path: str
    ) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                if response.status_code >= 400:
                    raise refusal(
                        response,
                        endpoint=self._endpoint,
                        repo=repo,
                        revision=revision,
                        path=path,
                        token=bool(self._token),
                    )
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(self._endpoint, error) from error


def _listing(repo: str, endpoint: str, content: bytes) -> Listing:
    strange = Unavailable(
        f"{endpoint} answers for {repo} with something that is no list of files; is it a Hugging Face Hub?",
        retry_after=60.0,
    )
    try:
        value = httpx.Response(200, content=content).json()
        commit = value["sha"]
        files = tuple(_file(each) for each in value["siblings"][:_MOST_FILES])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise strange from None
    if not isinstance(commit, str) or not is_commit(commit):
        raise strange
    return Listing(repo=repo, commit=commit, files=tuple(each for each in files if stays_below(each.path)))


def _file(value: Any) -> RepoFile:
    lfs = value.get("lfs") or {}
    digest = lfs.get("sha256") or ""
    size = lfs.get("size") or value.get("size") or 0
    if not isinstance(size, int) or not 0 <= size <= _LARGEST_FILE or not isinstance(value["rfilename"], str):
        raise TypeError
    return RepoFile(path=value["rfilename"], size=size, sha256=digest if _SHA256.fullmatch(digest) else "")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
