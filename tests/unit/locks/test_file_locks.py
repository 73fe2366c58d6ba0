"""A lock that somebody has is waited for; one that the file system does not offer is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gpustack.kit.errors import GPUStackError
from gpustack.kit.locks import FileLock


def test_one_that_is_held_is_not_taken(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert second.holder() == os.getpid()
    first.release()
    assert second.acquire()
    second.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(GPUStackError) as caught:
        FileLock(tmp_path / "lock").acquire()
    assert str(tmp_path / "lock") in caught.value.message
    assert os.strerror(code) in caught.value.message
    assert "\n" not in caught.value.message
