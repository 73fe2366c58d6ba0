"""The facts of a model that lies on the hub: its headers are read by spans, its weights stay where they are.

The readers of local files do the work. They are given a folder with files of the right names and sizes, which hold
nothing, and open them here: each span comes from the hub when it is read.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from gpustack.kit.errors import InvalidInput
from gpustack.plugin import ModelFacts
from gpustack.worker.artifacts.hub.api import HubApi, Listing, RepoFile
from gpustack.worker.artifacts.hub.choice import Choice
from gpustack.worker.facts import read_facts

#: Read as a whole; of other small files it only counts that they are there.
_READ = ("config.json", "model_index.json", "tokenizer_config.json", "model.safetensors.index.json")
_LONGEST = 32 << 20
#: Bytes of the first span of a file, and of the longest.
_FIRST, _MOST = 256 << 10, 8 << 20
#: Bytes of one model's headers together.
_BUDGET = 512 << 20
_AT_ONCE = 8


def read_remote(api: HubApi, listing: Listing, choice: Choice) -> ModelFacts:
    """Return the facts of what was chosen; ``path`` is its name on the hub. Blocks.

    Raises InvalidInput when it is no model or damaged, and the errors of :mod:`.errors`.
    """
    source = _Source(api, listing)
    with tempfile.TemporaryDirectory(prefix="gpustack-hub-") as temporary:
        folder = Path(temporary) / PurePosixPath(listing.repo).name
        _lay_out(source, folder, choice)
        heads = _first_spans(source, choice)

        def opener(path: Path) -> IO[bytes]:
            name = path.relative_to(folder).as_posix()
            raw = _Remote(source, name, path.stat().st_size, heads.get(name, b""))
            return cast("IO[bytes]", io.BufferedReader(raw, _FIRST))

        try:
            facts = read_facts(folder / choice.main, opener)
        except InvalidInput as error:
            raise InvalidInput(error.message.replace(str(folder), listing.repo)) from error
    return replace(facts, path=f"{listing.repo}/{choice.main}".rstrip("/"))


class _Source:
    """Spans of the files of one commit, within a budget."""

    def __init__(self, api: HubApi, listing: Listing) -> None:
        self._api = api
        self._listing = listing
        self._left = _BUDGET

    def span(self, name: str, start: int, count: int) -> bytes:
        """Return ``count`` bytes from ``start``."""
        self._left -= count
        if self._left < 0:
            raise InvalidInput(f"the headers of {self._listing.repo} are too long; its files are damaged")
        return self._api.read(self._listing, name, start, count)


class _Remote(io.RawIOBase):
    """A file on the hub, read in spans that grow while they follow each other."""

    def __init__(self, source: _Source, name: str, size: int, head: bytes) -> None:
        self._source = source
        self._name = name
        self._size = size
        self._window = head
        self._start = 0
        self._position = 0
        self._next = _FIRST

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that one can go on elsewhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the present byte."""
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill as much of ``buffer`` as is there."""
        view = memoryview(buffer)
        offset = self._position - self._start
        if not 0 <= offset < len(self._window):
            self._fetch()
            offset = 0
        piece = self._window[offset : offset + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fetch(self) -> None:
        follows = self._position == self._start + len(self._window)
        self._next = min(_MOST, self._next * 2) if follows else _FIRST
        count = max(0, min(self._next, self._size - self._position))
        self._window = self._source.span(self._name, self._position, count) if count else b""
        self._start = self._position


def _lay_out(source: _Source, folder: Path, choice: Choice) -> None:
    for file in choice.files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name in _READ:
            if file.size > _LONGEST:
                raise InvalidInput(f"{file.path} is too long for a file of its kind")
            path.write_bytes(source.span(file.path, 0, file.size) if file.size else b"")
        else:
            with path.open("wb") as empty:
                # Of this size, but without a block on the disk.
                empty.truncate(file.size if _is_weights(file) else 0)


def _first_spans(source: _Source, choice: Choice) -> Mapping[str, bytes]:
    """Return the beginnings of all weights, asked for side by side: there may be hundreds of shards."""
    names = [(each.path, min(_FIRST, each.size)) for each in choice.files if _is_weights(each) and each.size]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="hub heads") as pool:
        return dict(pool.map(lambda each: (each[0], source.span(each[0], 0, each[1])), names))


def _is_weights(file: RepoFile) -> bool:
    return file.path.endswith((".gguf", ".safetensors"))
