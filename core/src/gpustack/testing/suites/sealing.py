"""Watches a plain method while it answers: what a pure one may not do is written down, and does not happen.

Reading the plugin's own files and those of the installed Python is fine: a method may import what it needs, and a
backend may carry the files of its launcher. Everything else of the machine is out of bounds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

#: What counts as looking at the machine or at the network, by the beginnings of Python's own audit events.
_LOOKS = ("os.listdir", "os.scandir", "glob.glob")
_CHANGES = (
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime"),
)
_NEVER = (
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostby", "socket.send"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile"),
    *("urllib.Request", "http.client.connect", "sqlite3.connect", "tempfile.", "shutil.", "ctypes.dlopen"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """What is seen in one thread while it is watched."""

    def __init__(self, own: tuple[str, ...]) -> None:
        self.own = own
        self.thread = threading.get_ident()
        self.seen: list[str] = []

    def hears(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            self._path("opens", args[0], writes=bool(flags & _WRITES))
        elif event.startswith(_LOOKS):
            self._path("looks into", args[0], writes=False)
        elif event.startswith(_CHANGES):
            self._path("changes", args[0], writes=True)
        elif event.startswith(_NEVER):
            self._forbid(f"does {event} ({', '.join(_short(each) for each in args[:2])})")

    def looks_at(self, path: Any) -> None:
        # Working out where an own file really is looks at the folders above it.
        above = f"{os.fsdecode(path).rstrip(os.sep)}{os.sep}" if not isinstance(path, int) else ""
        if not any(each.startswith(above) for each in self.own):
            self._path("looks for", path, writes=False)

    def _path(self, does: str, path: Any, *, writes: bool) -> None:
        if isinstance(path, int):
            return  # a descriptor that somebody opened before
        text = os.path.abspath(os.fsdecode(path) if path is not None else os.curdir)  # noqa: PTH100  # lexical
        if not text.startswith(self.own) or (writes and "__pycache__" not in text):
            self._forbid(f"{does} {text}")

    def _forbid(self, what: str) -> None:
        self.seen.append(what)
        raise PermissionError(f"a pure method {what}")


_watches: dict[int, _Watch] = {}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watches and (watch := _watches.get(threading.get_ident())) is not None:
        watch.hears(event, args)


_hooked = threading.Event()


@contextmanager
def sealed(own: tuple[str, ...]) -> Iterator[list[str]]:
    """Watch this thread; yield the list of what was done that a pure method does not do, each in a few words.

    Files below the folders ``own`` may be read. What is noted also fails with PermissionError.
    """
    if not _hooked.is_set():
        # It stays for good, as Python wants it, and does nothing while nobody watches.
        sys.addaudithook(_hook)
        _hooked.set()
    watch = _Watch(own)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "access"):
            patch.setattr(os, name, _noted(watch, getattr(os, name)))
        _watches[watch.thread] = watch
        try:
            yield watch.seen
        finally:
            del _watches[watch.thread]


def own_folders(cls: type) -> tuple[str, ...]:
    """Return where the files of Python, of what is installed, and of the distribution of ``cls`` are."""
    return _own_folders(cls, tuple(each or str(Path.cwd()) for each in sys.path))


@lru_cache(maxsize=16)
def _own_folders(cls: type, installed: tuple[str, ...]) -> tuple[str, ...]:
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, *installed}
    # What is installed for editing has files beside what is on the path.
    for each in installed:
        places.update(str(above) for above in Path(each).parents if (above / "pyproject.toml").is_file())
    module = sys.modules.get(cls.__module__)
    if (file := getattr(module, "__file__", None)) is not None:
        here = Path(file).resolve()
        places.add(str(here.parent))
        # One that is installed for editing: its files are those of its checkout.
        places.update(str(each) for each in here.parents if (each / "pyproject.toml").is_file())
    return tuple(
        sorted(
            {f"{path.rstrip(os.sep)}{os.sep}" for each in places for path in (each, os.path.realpath(each))}
        )
    )


def _noted(watch: _Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    def look(path: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == watch.thread:
            watch.looks_at(path)
        return original(path, *args, **kwargs)

    return look


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
