"""A fake of the Hugging Face Hub on loopback, since the real one cannot be reached, or made to misbehave, in tests.

    with FakeHub() as hub:
        hub.add("org/tiny", {"config.json": b"{}", "model.safetensors": Path("…")})
        hub.faults.errors = 2          # the next two requests are answered with 500
        …                              # HF_ENDPOINT=hub.url

Paths, headers, redirects and error codes are those that ``huggingface_hub`` 1 and 2 work with: files of any size are
found by ``/resolve/``, small ones behind a redirect on the hub itself, large ones (LFS) behind one to a content
server of another origin, which must never be shown the user's token. ``python -m gpustack.testing.hub DIRECTORY``
serves the folders ``DIRECTORY/ORG/NAME`` as repositories.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from gpustack.testing.hub_handlers import Asked, ContentHandler, HubHandler, Server

#: Files with more bytes are LFS, as are all with these endings.
_LFS_FROM = 1 << 20
_LFS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a commit."""

    content: bytes | Path
    size: int
    #: Digest of the content: SHA-256 of a large file, git's own of a small one.
    etag: str
    lfs: bool

    def read(self, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``."""
        if isinstance(self.content, bytes):
            return self.content[start : start + count]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(count)


@dataclass(slots=True)
class Repository:
    """A repository: its commits by id, and what branches and tags stand for."""

    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        """Return the commit that ``revision`` stands for."""
        return revision if revision in self.commits else self.names.get(revision)


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong. Counts go down by one with each answer that they spoil."""

    #: Repositories whose files need an account that has accepted a licence, and those that need any right at all.
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    #: Tokens that are known, and those of them that may read what is gated or private.
    tokens: set[str] = field(default_factory=set)
    trusted: set[str] = field(default_factory=set)
    #: Requests answered with 429, and what Retry-After says then.
    throttled: int = 0
    retry_after: int = 1
    #: Requests answered with 500.
    errors: int = 0
    #: Bodies of large files that break off after ``cut_after`` bytes.
    truncated: int = 0
    #: Bodies of large files that stay silent after ``cut_after`` bytes, until the hub ends.
    stalled: int = 0
    cut_after: int = 0
    #: Bodies of large files of which one byte is wrong.
    corrupted: int = 0
    #: Requests for large files that are answered with something else, without an end.
    endless: int = 0
    #: Bytes per second of each large body; None is as fast as it goes.
    rate: float | None = None


class FakeHub:
    """The hub and its content server, each on a port of its own, while the context is open."""

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []
        #: Bytes of large files that were sent.
        self.sent = 0
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._servers = [
            Server(("127.0.0.1", number), partial(handler, self))
            for number, handler in ((port, HubHandler), (0, ContentHandler))
        ]
        self.url, self.content_url = (f"http://127.0.0.1:{each.server_port}" for each in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, repo: str, files: Mapping[str, bytes | Path] | Path, *, branch: str = "main") -> str:
        """Make a commit of ``files`` (a folder: all below it), let ``branch`` stand for it, and return its id."""
        if isinstance(files, Path):
            folder = files
            files = {
                each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()
            }
        made = {name: _file(name, content) for name, content in sorted(files.items())}
        text = json.dumps([repo, {name: each.etag for name, each in made.items()}])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        known = self.repositories.setdefault(repo, Repository())
        known.commits[commit] = made
        known.names[branch] = commit
        return commit

    def requests(self, part: str = "", *, at: str = "") -> list[Asked]:
        """Return the requests whose path holds ``part``."""
        with self._lock:
            return [each for each in self.asked if part in each.path and at in ("", each.at)]

    def note(self, asked: Asked) -> None:
        """Remember a request."""
        with self._lock:
            self.asked.append(asked)

    def spoils(self, fault: str) -> bool:
        """Tell whether the fault of this name strikes now, and count it."""
        with self._lock:
            left: int = getattr(self.faults, fault)
            if left > 0:
                setattr(self.faults, fault, left - 1)
            return left > 0

    def large(self, etag: str) -> HubFile | None:
        """Return the large file of this digest."""
        every = (
            file
            for repo in self.repositories.values()
            for files in repo.commits.values()
            for file in files.values()
        )
        return next((file for file in every if file.lfs and file.etag == etag), None)


def _file(name: str, content: bytes | Path) -> HubFile:
    data = content.read_bytes() if isinstance(content, Path) else content
    lfs = len(data) > _LFS_FROM or name.endswith(_LFS)
    blob = f"blob {len(data)}\0".encode() + data
    etag = hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    return HubFile(content=content, size=len(data), etag=etag, lfs=lfs)


def main() -> int:
    """Serve the repositories below a directory until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m gpustack.testing.hub", description=__doc__.splitlines()[0]
    )
    parser.add_argument("directory", type=Path, help="holds ORG/NAME folders, each a repository")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.directory.is_dir():
        parser.error(f"{arguments.directory} is not a directory")
    with FakeHub(arguments.port) as hub, contextlib.suppress(KeyboardInterrupt):
        for folder in sorted(arguments.directory.glob("*/*")):
            if folder.is_dir():
                hub.add(folder.relative_to(arguments.directory).as_posix(), folder)
        sys.stdout.write(f"HF_ENDPOINT={hub.url}\n")
        sys.stdout.flush()
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
