"""What a hub says, a revision names, or a file system lacks, does no harm."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from gpustack.kit.errors import InvalidInput, Unavailable
from gpustack.worker.artifacts.hub.api import RepoFile, _listing
from gpustack.worker.artifacts.hub.cache import HubCache, HubSource
from gpustack.worker.artifacts.hub.errors import DownloadError
from gpustack.worker.artifacts.hub.transfer import Meter, fetch_blob

SHA, COMMIT = "a" * 64, "b" * 40
FILE = RepoFile(path="m.gguf", size=3, sha256=SHA)


def listing(siblings: Any) -> Any:
    return _listing("org/m", "http://hub", json.dumps({"sha": COMMIT, "siblings": siblings}).encode())


@pytest.mark.parametrize(
    "siblings",
    [
        ["x"],
        [None],
        [[]],
        {"rfilename": "a"},
        "abc",
        [{"rfilename": "a", "lfs": ["x"]}],
        [{"rfilename": "a", "lfs": "x"}],
        [{"rfilename": "a", "lfs": {"sha256": 5}}],
        [{"rfilename": "a", "size": 1 << 80}],
        [{"rfilename": 5}],
    ],
)
def test_a_listing_of_another_shape_is_told_in_one_line(siblings: Any) -> None:
    with pytest.raises(Unavailable, match="is it a Hugging Face Hub"):
        listing(siblings)


def test_names_that_leave_the_folder_are_not_taken() -> None:
    names = ["../up", "/etc/passwd", "a/../../b", "a\\b", "a//b", "a\0b", "", ".", "good/m.gguf"]
    found = listing([{"rfilename": name, "size": 1} for name in names])
    assert [each.path for each in found.files] == ["good/m.gguf"]


@pytest.mark.parametrize("revision", ["../../../../escaped", "/escaped", ".."])
def test_a_revision_leaves_no_mark_outside_the_cache(tmp_path: Path, revision: str) -> None:
    cache = HubCache(tmp_path / "a" / "b" / "c" / "cache")
    (cache.repo("org/m") / "refs").mkdir(parents=True)
    source = HubSource(repo="org/m", revision=revision)
    with pytest.raises(InvalidInput, match="is no branch, tag or commit"):
        cache.point(source, COMMIT)
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]
    assert cache.whole(source) is None


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    nobody: Any = None
    with pytest.raises(DownloadError, match="--cache-dir") as caught:
        fetch_blob(nobody, HubCache(tmp_path), ("org/m", COMMIT), FILE, Meter(3))
    assert not caught.value.again
    assert "\n" not in caught.value.message


def test_what_nobody_goes_on_with_is_removed(tmp_path: Path) -> None:
    cache = HubCache(tmp_path)
    blobs = cache.repo("org/m") / "blobs"
    blobs.mkdir(parents=True)
    old = time.time() - 30 * 86400
    held = RepoFile(path="held.gguf", size=3, sha256="c" * 64)
    kept = [blobs / f"{'d' * 64}.gpustack.incomplete", blobs / f"{'e' * 40}.0123abcd.incomplete", blobs / SHA]
    gone = [cache.partial("org/m", FILE), blobs / f"{'f' * 40}.0123abcd.incomplete"]
    for path in (*kept, *gone, cache.partial("org/m", held)):
        path.write_bytes(b"x")
    for path in (*gone, cache.partial("org/m", held), blobs / SHA):
        os.utime(path, (old, old))
    from gpustack.kit.locks import FileLock

    lock = FileLock(cache.lock("org/m", held))
    lock.path.parent.mkdir(parents=True)
    assert lock.acquire()
    cache.sweep()
    lock.release()
    assert sorted(blobs.iterdir()) == sorted([*kept, cache.partial("org/m", held)])
