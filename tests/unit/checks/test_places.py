"""Directories: there or to be made, writable, and with room."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gpustack.app.checks import Examined
from gpustack.app.disks import FULL

Look = Callable[..., Examined]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_places_that_are_not_there_yet_are_right_and_not_made(look: Look, tmp_path: Path) -> None:
    found = look(cache_dir=str(tmp_path / "a" / "b"))
    assert (found.problems, found.warnings) == ((), ())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["data_dir", "cache_dir", "bin_dir", "log_dir"])
@pytest.mark.parametrize("below", [(), ("one", "two")])
def test_a_file_in_the_way(name: str, below: tuple[str, ...], look: Look, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = (tmp_path / "file").joinpath(*below)
    (line,) = look(**{name: str(place)}).problems
    flag = "--" + name.replace("_", "-")
    assert line == f"{flag} {place}: {tmp_path / 'file'} is not a directory; name another place"


def test_each_place_in_the_way_is_said_once(look: Look, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).touch()
    flags = {"data_dir": "one", "log_dir": "two", "cache_dir": "two", "bin_dir": "data"}
    lines = look(**{name: str(tmp_path / place) for name, place in flags.items()}).problems
    assert [line.split()[0] for line in lines] == ["--data-dir", "--log-dir"]


def test_a_link_to_nowhere_is_no_directory(look: Look, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (line,) = look(data_dir=str(tmp_path / "link")).problems
    assert line.endswith(f"{tmp_path / 'link'} is not a directory; name another place")


@pytest.mark.skipif(sys.platform != "linux", reason="has no such places")
@pytest.mark.parametrize("place", ["/proc", "/proc/gpustack", "/sys/gpustack"])
def test_what_the_kernel_makes_up_is_no_place(place: str, look: Look) -> None:
    (line,) = look(data_dir=place).problems
    assert line.startswith(f"--data-dir {place}: ")
    assert "not writable" in line


def test_a_name_that_no_file_can_have_is_one_line(look: Look) -> None:
    (line,) = look(data_dir="/" + "x" * 300).problems
    assert line.endswith(
        ": it cannot be looked at: File name too long; change the owner or name another place"
    )


@pytest.mark.parametrize("flags", [{"disable_worker": "true"}])
def test_a_server_alone_has_no_place_for_models(flags: dict[str, str], look: Look, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not look(**flags, cache_dir=str(tmp_path / "file"), bin_dir=str(tmp_path / "file")).problems


def test_the_place_is_named_by_its_origin(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPUSTACK_DATA_DIR", str(tmp_path / "file"))
    (line,) = look(data_dir="").problems
    assert line.startswith(f"GPUSTACK_DATA_DIR {tmp_path / 'file'}: ")


# Rights -------------------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that every user may go through; those of pytest are for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("mode", "below", "words"),
    [
        (0o755, "", "it is not writable; change the owner or name another place"),
        (
            0o755,
            "new",
            "it cannot be made in PLACE, which is not writable; change the owner or name another place",
        ),
        (0o700, "", "it is not writable; change the owner or name another place"),
        (0o700, "new", "it cannot be looked at: Permission denied; change the owner or name another place"),
        (0o666, "new", "it cannot be looked at: Permission denied; change the owner or name another place"),
        (0o777, "new", ""),
    ],
)
def test_what_another_user_may_not_write_to(
    mode: int, below: str, words: str, look: Look, open_to_all: Path
) -> None:
    place = open_to_all / "place"
    place.mkdir()
    place.chmod(mode)
    data_dir = str(place / below)
    lines = _as_nobody(lambda: look(data_dir=data_dir).problems)
    assert lines[:1] == ([f"--data-dir {data_dir}: {words}".replace("PLACE", str(place))] if words else [])


def _as_nobody(look: Callable[[], tuple[str, ...]]) -> list[str]:
    """Return the lines that another user gets; ``access`` asks for who we really are."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, "\n".join(look()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return said.splitlines()


# Room ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "warned"), [(FULL - 1, True), (FULL, False)])
def test_a_full_disk_is_said_once(
    room: int, warned: bool, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 40, (1 << 40) - room, room))
    found = look(cache_dir=str(tmp_path / "cache"))
    assert not found.problems
    line = f"--data-dir {tmp_path / 'data'}: its disk is full (20.0 MiB left); make room"
    assert list(found.warnings) == [line] * warned


def test_a_disk_that_does_not_tell_is_not_full(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: object) -> Usage:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", silent)
    assert not look().warnings
