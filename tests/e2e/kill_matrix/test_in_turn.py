"""Each process is killed under load, one after the other, then all at once: nothing and nobody is lost."""

from __future__ import annotations

import time

import pytest

from support.house import House, key_names
from support.load import INFERENCE, load
from support.ordeal import cut_off, ordeal
from support.running import eventually

pytestmark = pytest.mark.xdist_group("e2e-kill-matrix")

#: Inference goes on without any of them.
BEHIND = ("server", "postgres", "worker")
OTHERS = ("gateway", "engine", "door", "supervisor")


@pytest.mark.timeout(400)
def test_without_server_database_and_worker_no_inference_fails_and_no_token_is_lost(
    house: House, key: str
) -> None:
    with ordeal(house, key) as running:
        for victim in BEHIND:
            running.kill(victim)
    failed = [each for each in running.traffic.report.failures if each.kind in INFERENCE]
    assert not failed
    assert running.traffic.report.tokens[1] > 10_000


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_fails_but_what_was_in_flight_on_the_killed(house: House, key: str) -> None:
    with ordeal(house, key) as running:
        for victim in OTHERS:
            running.kill(victim)


def test_what_clients_had_of_streams_through_a_killed_gateway_is_written_down(house: House, key: str) -> None:
    before = cut_off(house)
    with load(house.url, key, "tiny", rate=5, streams=8) as traffic:
        eventually(lambda: traffic.streams == 8 and traffic.answered > 20, "the load runs", seconds=60)
        house.kill_all(["gateway", "gateway-2"])  # one of them may have had no stream
        house.wait_whole(2)
        answered = traffic.answered
        eventually(lambda: traffic.answered > answered + 10, "the load runs again", seconds=60)
    assert traffic.report.cut > 0
    eventually(
        lambda: cut_off(house) - before >= traffic.report.cut,
        f"the {traffic.report.cut} pieces that clients had are in the database",
        seconds=60,
    )


@pytest.mark.slow
def test_after_a_power_cut_everything_serves_again_by_itself(house: House, key: str) -> None:
    with load(house.url, key, "tiny", streams=4) as traffic:
        eventually(lambda: traffic.answered > 100, "the load runs", seconds=60)
        house.cut_power()
        house.start()
        house.wait_whole(2)
        whole = time.monotonic()
        answered = traffic.answered
        eventually(lambda: traffic.answered > answered + 60, "the load runs again", seconds=60)
    assert [each for each in traffic.report.failures if each.sent > whole] == []
    traffic.report.check_rows(key_names(house))


def test_stop_leaves_nobody(house: House, key: str) -> None:
    house.stop()
