"""Archives are taken apart below one folder, whatever is in them."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.worker.artifacts.unpacking import BadArchive, Bounds, unpack

Made = Callable[..., Path]


def zipped(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    """Make a zip of ``(name, content, mode)``; of a link, the content is its target."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.orig_filename = info.filename = name
            info.external_attr = mode << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def tarred(path: Path, *entries: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    mode = "w:gz" if path.suffix in (".gz", ".tgz") else "w:xz" if path.suffix == ".xz" else "w"
    with tarfile.open(path, mode) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return path


def info(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


LINK = stat.S_IFLNK | 0o777


def test_a_zip_keeps_what_can_be_executed(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "a.zip",
        ("llama-box", b"program", 0o100755),
        ("lib/libggml.so.1", b"library", 0o100644),
        ("lib/libggml.so", b"libggml.so.1", LINK),
        ("empty/", b"", 0o40755),
    )

    unpack(archive, tmp_path / "out")

    program, library = tmp_path / "out" / "llama-box", tmp_path / "out" / "lib" / "libggml.so"
    assert (program.read_bytes(), program.stat().st_mode & 0o777) == (b"program", 0o755)
    assert library.is_symlink()
    assert library.read_bytes() == b"library"
    assert library.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "out" / "empty").is_dir()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz"])
def test_a_tar_is_taken_apart_too(tmp_path: Path, name: str) -> None:
    archive = tarred(
        tmp_path / name,
        ("./bin/engine", b"x" * 100_000),
        info("bin/same", tarfile.LNKTYPE, "./bin/engine"),
        info("bin/link", tarfile.SYMTYPE, "../bin/engine"),
    )

    unpack(archive, tmp_path / "out")

    for each in ("engine", "same", "link"):
        assert (tmp_path / "out" / "bin" / each).read_bytes() == b"x" * 100_000


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/evil", "a/../b", "..", "C:evil", "C:\\evil", "a\\..\\..\\evil", ""],
)
def test_names_that_may_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    for archive in (
        zipped(tmp_path / "a.zip", ("good", b"1", 0o644), (name, b"evil", 0o644)),
        tarred(tmp_path / "a.tar", ("good", b"1"), (name, b"evil")),
    ):
        folder = tmp_path / f"out-{archive.suffix}"

        with pytest.raises(BadArchive, match="is no name below a folder"):
            unpack(archive, folder)

        assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "..", "sub/../../x", "C:\\x", ""])
def test_links_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    for archive in (
        zipped(tmp_path / "a.zip", ("link", target.encode(), LINK)),
        tarred(tmp_path / "a.tar", info("link", tarfile.SYMTYPE, target)),
    ):
        with pytest.raises(BadArchive, match="which leads out of it"):
            unpack(archive, tmp_path / f"out-{archive.suffix}")


def test_a_link_that_another_one_makes_lead_out_is_refused(tmp_path: Path) -> None:
    """``y`` means the folder itself until ``x`` is a link to it; then it means the folder around it."""
    archive = tarred(tmp_path / "a.tar", info("y", tarfile.SYMTYPE, "x/.."), info("x", tarfile.SYMTYPE, "."))

    with pytest.raises(BadArchive, match="which leads out of it"):
        unpack(archive, tmp_path / "out")


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "a.tar", info("a", tarfile.SYMTYPE, "b"), info("b", tarfile.SYMTYPE, "a"))

    with pytest.raises(BadArchive):
        unpack(archive, tmp_path / "out")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link to a folder and then a file below its name: the file is made first, and the link then finds it there."""
    archive = tarred(tmp_path / "a.tar", info("d", tarfile.SYMTYPE, "e"), ("d/file", b"1"))

    with pytest.raises((BadArchive, FileExistsError)):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(BadArchive, match="neither a file nor a folder nor a link"):
        unpack(tarred(tmp_path / "a.tar", info("dev", kind)), tmp_path / "out")


def test_a_device_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="neither a file nor a folder nor a link"):
        unpack(zipped(tmp_path / "a.zip", ("dev", b"", stat.S_IFCHR | 0o644)), tmp_path / "out")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="'a' is in it twice"):
        unpack(tarred(tmp_path / "a.tar", ("a", b"1"), ("./a", b"2")), tmp_path / "out")


def test_a_copy_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArchive, match="which is not there"):
        unpack(tarred(tmp_path / "a.tar", info("a", tarfile.LNKTYPE, "/etc/passwd")), tmp_path / "out")


def test_what_unpacks_without_end_is_stopped(tmp_path: Path) -> None:
    """4 MB of zeros in 4 kB: what is written counts, and not what the header says."""
    archive = zipped(tmp_path / "a.zip", ("zeros", bytes(4_000_000), 0o644))
    assert archive.stat().st_size < 5_000

    with pytest.raises(BadArchive, match=r"larger than 1\.0 MiB"):
        unpack(archive, tmp_path / "out", Bounds(total=1 << 20))

    assert (tmp_path / "out" / "zeros").stat().st_size <= 1 << 20


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", *((str(number), b"", 0o644) for number in range(20)))

    with pytest.raises(BadArchive, match="more than 10 entries"):
        unpack(archive, tmp_path / "out", Bounds(entries=10))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 nearly one", b"\x1f\x8b\x08 nearly"])
def test_what_is_no_archive_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)

    with pytest.raises(BadArchive):
        unpack(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_a_damaged_one_is_said(tmp_path: Path, at: float) -> None:
    whole = bytearray(zipped(tmp_path / "a.zip", ("a", os.urandom(20_000), 0o644)).read_bytes())
    whole[int(len(whole) * at)] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(whole)

    with pytest.raises(BadArchive):
        unpack(tmp_path / "a.zip", tmp_path / "out")


PARTS = st.sampled_from(["a", "b", ".", "..", "", "a b", "é", "\\", "C:", "\0"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)


@given(st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=6))
def test_whatever_is_in_it_nothing_outside_is_made_or_reached(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]]
) -> None:
    place = tmp_path_factory.mktemp("any")
    archive = tarred(place / "a.tar", *(info(name, kind, target) for name, kind, target in entries))
    outside = sorted(place.iterdir())

    try:
        unpack(archive, place / "in" / "out")
    except (BadArchive, OSError):
        links = []
    else:
        links = [each for each in (place / "in" / "out").rglob("*") if each.is_symlink()]

    assert sorted(place.iterdir()) == sorted([*outside, place / "in"])
    assert [each.name for each in (place / "in").iterdir()] == ["out"]
    root = (place / "in" / "out").resolve()
    assert all(each.resolve().is_relative_to(root) for each in links)
