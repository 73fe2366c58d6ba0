from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from gpustack.dataplane.choosing import Hints, Outcome, SharedOutstanding
from gpustack.dataplane.choosing.outstanding import TOKEN


def shared(folder: Path, seat: int, rows: int = 64) -> SharedOutstanding:
    return SharedOutstanding(folder / "outstanding", seat=seat, seats=3, rows=rows)


@pytest.fixture
def sites(site: Any, tmp_path: Path) -> list[Any]:
    """Three processes, as far as their counts are concerned."""
    return [type(site)(shared(tmp_path, seat)) for seat in range(3)]


def test_what_one_process_has_to_do_all_see(sites: list[Any]) -> None:
    for each in sites:
        each.serve(each.a_route(2))
        each.ask()
        each.now += 1
    busy = sites[0].pick(Hints(tokens=30_000))
    for each in sites[1:]:
        each.now += 1
        assert {each.ask(hints=Hints(tokens=10)) for _ in range(4)} == {3 - busy.target.instance_id}
    busy.done(Outcome.OK)
    sites[1].now += 1

    assert set(sites[1].asked(4)) == {1, 2}


def test_an_instance_that_others_begin_to_count_later_is_found(sites: list[Any]) -> None:
    first, second, _ = sites
    first.serve(first.a_route(2))
    first.ask()
    second.serve(second.a_route(2))
    second.pick(Hints(tokens=30_000), without={2})
    first.now += 1

    assert set(first.asked(4)) == {2}


def test_what_others_count_is_old_by_milliseconds_and_new_instances_of_theirs_by_two_tenths(
    sites: list[Any],
) -> None:
    first, second, _ = sites
    first.serve(first.a_route(2))
    first.ask()
    second.serve(second.a_route(2))
    begun = [second.pick(Hints(tokens=30_000), without={2})]
    first.now += 0.2
    assert set(first.asked(4)) == {2}

    begun.append(second.pick(Hints(tokens=90_000), without={1}))
    first.now += 0.002
    assert set(first.asked(4)) == {1}

    for lease in begun:
        lease.done(Outcome.OK)
    first.now += 0.002
    assert set(first.asked(4)) == {1, 2}


def test_prefixes_are_known_to_all_processes(sites: list[Any]) -> None:
    found = set()
    for each in sites:
        each.serve(each.a_route(8))
        found |= set(each.asked(3, Hints(4000, (11, 22, 33))))

    assert len(found) == 1


def test_what_a_dead_process_left_is_forgotten_by_its_successor(sites: list[Any], tmp_path: Path) -> None:
    for each in sites:
        each.serve(each.a_route(2))
        each.ask()
    dead, alive, _ = sites
    for _ in range(10):
        dead.pick(without={2})
    alive.now += 1
    assert set(alive.asked(4)) == {2}
    shared(tmp_path, 0)
    alive.now += 1

    assert set(alive.asked(4)) == {1, 2}


def test_anybody_may_clear_the_seat_of_a_dead_process(tmp_path: Path) -> None:
    first, second = shared(tmp_path, 0), shared(tmp_path, 1)
    first.tally(5).add(3 * TOKEN + 1)
    mine = second.tally(5)
    second.refresh([mine], 1.0)
    assert mine.total == 3 * TOKEN + 1
    assert mine.own == 0
    second.clear(0)
    second.refresh([mine], 2.0)

    assert mine.total == 0


def test_a_process_killed_in_the_middle_leaves_a_file_that_works(tmp_path: Path) -> None:
    mine = shared(tmp_path, 1)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        tally = shared(tmp_path, 0).tally(7)
        os.write(write, b"x")
        while True:
            tally.add(TOKEN + 1)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    tally = mine.tally(7)
    tally.add(1)
    shared(tmp_path, 0)
    mine.refresh([tally], 1.0)

    assert tally.total == 1


def test_rows_are_used_again_and_those_without_one_are_counted_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, other = shared(tmp_path, 0, rows=2), shared(tmp_path, 1, rows=2)
    one, two = mine.tally(1), mine.tally(2)
    two.add(5)
    three = mine.tally(3)
    three.add(7)
    assert "more than 2 instances" in caplog.text
    mine.release(1, one)
    mine.tally(4).add(9)
    seen = [other.tally(number) for number in (2, 4)]
    other.refresh(seen, 1.0)

    assert [each.total for each in seen] == [5, 9]
    assert three.total == 7


def test_a_file_of_another_shape_is_refused_and_the_file_is_private(tmp_path: Path) -> None:
    mine = shared(tmp_path, 0)
    path = tmp_path / "outstanding"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ValueError, match="remove it"):
        SharedOutstanding(path, seat=0, seats=3, rows=65)
    with pytest.raises(ValueError, match="no seat 3"):
        SharedOutstanding(path, seat=3, seats=3)
    mine.close()
