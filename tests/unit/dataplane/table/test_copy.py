"""A gateway's copy of the table: whole or not at all, kept on disk for nobody else, and used again at the next start."""

from __future__ import annotations

import logging
import stat
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.dataplane.table.copy import TableCopy, TableFile
from gpustack.dataplane.table.wire import Begin, Change, Kept, Part, Whole
from gpustack.plugin.routing import Principal, Route, RoutingTable

ALICE = Principal(user_id=1, username="alice")
BOB = Principal(user_id=2, username="bob")


def a_route(name: str = "tiny", **more: object) -> Route:
    return Route(name=name, created=1, **more)  # type: ignore[arg-type]


class Followed:
    """A copy, and what whoever serves by it was told."""

    def __init__(self) -> None:
        self.copy = TableCopy(self._apply)
        self.told: list[tuple[int, set[str], set[str], Collection[str] | None]] = []

    def _apply(self, table: RoutingTable, changed: Collection[str] | None) -> None:
        self.told.append((table.version, set(table.routes), set(table.principals), changed))

    def take(self, *messages: object) -> None:
        for message in messages:
            self.copy.take(message)  # type: ignore[arg-type]


def test_a_table_counts_when_all_of_it_has_come() -> None:
    followed = Followed()
    followed.take(Begin(4), Part({"tiny": a_route()}, {}), Part({}, {"a": ALICE}))
    assert followed.told == []
    assert not followed.copy.fresh
    followed.take(Whole(5))
    assert followed.told == [(5, {"tiny"}, {"a"}, None)]
    assert followed.copy.fresh


def test_what_has_not_changed_is_the_same_object_again() -> None:
    followed = Followed()
    followed.take(Begin(1), Part({"tiny": a_route(), "other": a_route("other")}, {}), Whole(1))
    known = followed.copy.table.routes["tiny"]
    followed.take(Begin(2), Part({"tiny": a_route(), "other": a_route("other", asleep=True)}, {}), Whole(2))
    assert followed.copy.table.routes["tiny"] is known
    assert followed.copy.table.routes["other"].asleep


def test_a_change_counts_at_once_and_names_the_routes_that_differ() -> None:
    followed = Followed()
    followed.take(Begin(1), Part({"a": a_route("a"), "b": a_route("b")}, {"x": ALICE, "y": BOB}), Whole(1))
    followed.take(Change(2, {"c": a_route("c")}, ["b", "nobody knows"], {}, ["x"]))
    version, routes, principals, changed = followed.told[-1]
    assert (version, routes, principals) == (2, {"a", "c"}, {"y"})
    assert set(changed or ()) == {"c", "b", "nobody knows"}


def test_a_change_amid_a_whole_table_counts_for_both() -> None:
    """A key that is revoked while the table comes is neither good now nor when the rest has come."""
    followed = Followed()
    followed.take(Begin(1), Part({"old": a_route("old")}, {"x": ALICE, "y": BOB}), Whole(1))
    followed.take(Begin(2), Part({"tiny": a_route()}, {"x": ALICE}))
    followed.take(Change(3, {"new": a_route("new")}, ["tiny"], {"z": ALICE}, ["x"]))
    assert followed.told[-1][:3] == (3, {"old", "new"}, {"y", "z"})
    followed.take(Part({}, {"y": BOB}), Whole(3))
    assert followed.told[-1][:3] == (3, {"new"}, {"y", "z"})


def test_a_table_that_begins_anew_mixes_with_none_before_it() -> None:
    followed = Followed()
    followed.take(Begin(1), Part({"gone": a_route("gone")}, {"x": ALICE}))
    followed.take(
        Begin(2), Part({"tiny": a_route()}, {}), Whole(2), Whole(9), Part({"late": a_route("late")}, {})
    )
    assert followed.told == [(2, {"tiny"}, set(), None)]
    followed.take(Kept(1))
    assert len(followed.told) == 1


# On disk --------------------------------------------------------------------------------------------------


def a_copy() -> TableCopy:
    copy = TableCopy(lambda table, changed: None)
    routes = {f"m{number}": a_route(f"m{number}") for number in range(700)}
    principals = {
        f"k{number}": replace(ALICE, key_id=number, allowed=frozenset({"m1"})) for number in range(1200)
    }
    for message in (Begin(3), Part(routes, principals), Whole(3)):
        copy.take(message)
    return copy


async def test_what_was_written_is_what_the_next_start_serves_by(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "table"
    copy = a_copy()
    await TableFile(path, copy).write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["table"]
    followed = Followed()
    assert TableFile(path, followed.copy).load()
    assert followed.copy.table == copy.table
    assert followed.told[0][0] == 3
    assert not followed.copy.fresh, "a server has told nothing yet"


async def test_a_file_that_anybody_could_read_is_closed_again(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_bytes(b"before")
    path.chmod(0o644)
    await TableFile(path, a_copy()).write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_only_what_a_server_has_told_and_what_is_new_is_written(tmp_path: Path) -> None:
    path = tmp_path / "table"
    await TableFile(path, TableCopy(lambda table, changed: None)).write()
    assert not path.exists()
    copy = a_copy()
    file = TableFile(path, copy)
    await file.write()
    path.unlink()
    await file.write()
    assert not path.exists()
    copy.take(Change(4, principals_removed=["k1"]))
    await file.write()
    followed = Followed()
    assert TableFile(path, followed.copy).load()
    assert "k1" not in followed.copy.table.principals


async def test_a_disk_that_takes_nothing_is_told_of_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gateway").write_text("no folder")
    file = TableFile(tmp_path / "gateway" / "table", a_copy())
    await file.write()
    assert "cannot be written" in caplog.text
    (tmp_path / "gateway").unlink()
    await file.write()
    assert (tmp_path / "gateway" / "table").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: data.replace(b"table 1\n", b"table 0\n"),
        lambda data: data.replace(b"table 1\n", b"table 11\n"),
        lambda data: b"\0" * len(data),
        lambda data: data[:25] + b"\xc1" + data[26:],
        lambda data: data[:25] + b"\x83\xa4type\xa6Change\xa7version\x01\xa1x" + b"\x91" * 5000 + b"\xc0",
        lambda data: data[:25] + b"\x82\xa4type\xa5Whole\xa7version\x01",
    ],
    ids=["empty", "cut", "half", "longer", "older", "newer", "zeros", "garbage", "nested", "another message"],
)
async def test_a_file_that_is_damaged_or_of_another_version_is_told_of_and_not_used(
    tmp_path: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table"
    await TableFile(path, a_copy()).write()
    path.write_bytes(damage(path.read_bytes()))
    followed = Followed()
    with caplog.at_level(logging.WARNING):
        assert not TableFile(path, followed.copy).load()
    assert followed.told == []
    assert len(caplog.records) == 1
    assert "Traceback" not in caplog.text
    # It is written anew as soon as a server has told the table.
    followed.take(Begin(1), Whole(1))
    await TableFile(path, followed.copy).write()
    assert TableFile(path, Followed().copy).load()


def test_no_file_and_one_that_cannot_be_read_are_no_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not TableFile(tmp_path / "nothing", Followed().copy).load()
    assert caplog.text == ""
    (tmp_path / "folder").mkdir()
    assert not TableFile(tmp_path / "folder", Followed().copy).load()
    assert "cannot be read" in caplog.text
