"""Limits of one principal, in one process and over several."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.dataplane.admission.buckets import Buckets
from gpustack.dataplane.admission.limits import RateLimits
from gpustack.dataplane.admission.values import Refusal
from gpustack.plugin.routing import Limits, Principal

People = Callable[..., Principal]


def test_requests_a_minute(gate: Any, a_principal: People) -> None:
    gate.serve(slots=None)
    who = a_principal(requests_per_minute=6)

    told = [gate.ask(who).told for _ in range(7)]
    assert told == ["goes on"] * 6 + ["429 rate_limit"]
    refused = gate.ask(who)
    assert refused.refusal.retry_after == pytest.approx(10)
    assert "may send 6 requests a minute" in refused.refusal.message
    assert refused.refusal.error().status == 429
    gate.time.pass_by(refused.refusal.retry_after)
    assert [gate.ask(who).told for _ in range(2)] == ["goes on", "429 rate_limit"]
    assert gate.ask(a_principal("another", requests_per_minute=6)).told == "goes on"


def test_tokens_a_minute_are_those_that_were_really_taken(gate: Any, a_principal: People) -> None:
    gate.serve(slots=None)
    who = a_principal(tokens_per_minute=600)

    first = gate.ask(who, 500)
    assert gate.ask(who, 200).told == "429 rate_limit"
    first.ticket.done(100)
    second = gate.ask(who, 500)
    assert second.told == "goes on"
    second.ticket.done(1100)
    refused = gate.ask(who, 10)
    assert refused.refusal.retry_after == pytest.approx(61)
    gate.time.pass_by(61.1)
    assert gate.ask(who, 10).told == "goes on"


def test_a_request_larger_than_the_limit_needs_a_full_bucket_and_is_owed(
    gate: Any, a_principal: People
) -> None:
    gate.serve(slots=None)
    who = a_principal(tokens_per_minute=100)

    assert gate.ask(who, 300).told == "goes on"
    assert gate.ask(who, 1).refusal.retry_after == pytest.approx(120.6)


def test_concurrency_counts_those_that_wait(gate: Any, a_principal: People) -> None:
    gate.serve()
    who = a_principal(concurrency=2)
    runs, waits = gate.ask(who), gate.ask(who)

    assert (runs.told, waits.told, gate.ask(who).told) == ("goes on", "waits", "429 rate_limit")
    waits.ticket.cancel()
    assert gate.ask(who).told == "waits"
    runs.ticket.done()
    assert gate.ask(who).told == "waits"


@pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute", "concurrency"])
def test_a_limit_of_nothing_lets_nothing_pass(gate: Any, a_principal: People, limit: str) -> None:
    gate.serve(slots=None)

    assert gate.ask(a_principal(**{limit: 0})).told == "429 rate_limit"


def test_what_is_refused_for_another_reason_costs_nothing(gate: Any, a_principal: People) -> None:
    gate.serve(queue_tokens=10)
    who = a_principal(requests_per_minute=4, tokens_per_minute=100, concurrency=4)
    gate.ask(who, 5)
    gate.ask(who, 10)

    for _ in range(20):
        assert gate.ask(who, 20).told == "503 queue_full"
    gate.time.pass_by(60)  # whoever waited is sent away
    gate.serve(slots=None)
    assert [gate.ask(who, 25).told for _ in range(3)] == ["goes on"] * 3


def test_a_key_has_limits_of_its_own(gate: Any, a_principal: People) -> None:
    gate.serve(slots=None)

    assert gate.ask(a_principal("anna", 1, requests_per_minute=1)).told == "goes on"
    assert gate.ask(a_principal("anna", 1, requests_per_minute=1)).told == "429 rate_limit"
    assert gate.ask(a_principal("anna", 2, requests_per_minute=1)).told == "goes on"


@settings(max_examples=40)
@given(st.integers(1, 100), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 150)), max_size=100))
def test_the_long_run_is_exact_and_a_minute_sees_twice_the_limit_at_most(
    limit: int, requests: list[tuple[float, int]]
) -> None:
    rates = RateLimits(Buckets.alone(4))
    who = Principal(user_id=1, username="x", limits=Limits(tokens_per_minute=limit))
    now, taken = 50.0, []
    for pause, tokens in requests:
        now += pause
        if not isinstance(rates.take(who, min(tokens, limit), now), Refusal):
            taken.append((now, min(tokens, limit)))
    for start, _ in taken:
        for end, _ in taken:
            if end >= start:
                total = sum(tokens for at, tokens in taken if start <= at <= end)
                assert total <= limit + (end - start) * limit / 60 + 1e-6


def test_processes_hold_limits_and_slots_together(
    a_gate: Any, time: Any, tmp_path: Path, a_principal: People
) -> None:
    gates = [
        a_gate(time, Buckets.mapped(tmp_path / "limits", seat=seat, seats=3, rows=64)) for seat in range(3)
    ]
    for gate in gates:
        gate.serve(slots=2, count=2)
        gate.serve("free", slots=None)
    who = a_principal(requests_per_minute=10)

    assert [gates[n % 3].ask(who, route="free").told for n in range(12)].count("goes on") == 10
    parallel = a_principal("p", concurrency=5)
    assert [gates[n % 3].ask(parallel, route="free").told for n in range(9)].count("goes on") == 5
    asked = [gates[n % 3].ask(a_principal()) for n in range(6)]
    assert [each.told for each in asked] == ["goes on"] * 4 + ["waits"] * 2
    asked[0].ticket.done()
    assert [each.told for each in asked[4:]] == ["waits"] * 2
    time.pass_by(0.02)
    assert [each.told for each in asked[4:]].count("goes on") == 1


def test_without_a_shared_file_each_process_has_its_share(
    a_gate: Any, time: Any, a_principal: People
) -> None:
    gates = [a_gate(time, processes=4) for _ in range(4)]
    for gate in gates:
        gate.serve(slots=None)
    who = a_principal(requests_per_minute=10)

    # A share is rounded up: at most three too many in all.
    assert [gates[n % 4].ask(who).told for n in range(40)].count("goes on") == 12


def test_what_a_killed_process_had_running_ends_with_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "limits"
    program = f"""
from pathlib import Path
from gpustack.dataplane.admission.buckets import Buckets
buckets = Buckets.mapped(Path({str(path)!r}), seat=1, seats=2, rows=16)
buckets.run(buckets.row("a"), 3)
import os; os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    mine = Buckets.mapped(path, seat=0, seats=2, rows=16)
    row = mine.row("a")
    mine.run(row, 1)

    assert mine.running(row) == 4
    Buckets.mapped(path, seat=1, seats=2, rows=16)
    assert mine.running(row) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_rows_are_found_again_and_when_there_are_none_nobody_is_refused(tmp_path: Path) -> None:
    buckets = Buckets.mapped(tmp_path / "limits", seat=0, seats=1, rows=8)
    rows = {key: buckets.row(key) for key in range(8)}  # of routes: they stay

    assert sorted(rows.values()) == sorted(set(rows.values()) - {-1})
    assert {key: buckets.row(key) for key in range(8)} == rows
    assert buckets.row(9) == -1
    other = Buckets.mapped(tmp_path / "limits", seat=0, seats=1, rows=8)
    assert {key: other.row(key) for key in range(8)} == rows
    limits = RateLimits(buckets)
    who = Principal(user_id=77, username="x", limits=Limits(requests_per_minute=1))
    for _ in range(3):
        assert limits.take(who, 1, 5.0) == -1


@pytest.mark.parametrize(("seat", "seats", "rows"), [(2, 2, 8), (-1, 2, 8), (0, 3, 8), (0, 2, 9)])
def test_a_file_for_other_numbers_is_refused(tmp_path: Path, seat: int, seats: int, rows: int) -> None:
    Buckets.mapped(tmp_path / "limits", seat=0, seats=2, rows=8)

    with pytest.raises(ValueError, match=r"no seat|other numbers"):
        Buckets.mapped(tmp_path / "limits", seat=seat, seats=seats, rows=rows)


def test_rows_of_who_was_not_here_for_a_while_go_to_others() -> None:
    limits = RateLimits(Buckets.alone(8))
    limit = Limits(requests_per_minute=1)

    def take(number: int, now: float) -> object:
        return limits.take(Principal(user_id=number, username="x", limits=limit), 1, now)

    rows = [take(number, 10.0) for number in range(8)]
    limits.end(rows[3], limit, 1, 1, 10.0)  # type: ignore[arg-type]
    assert take(8, 69.0) == -1
    assert take(9, 71.0) == rows[3]
    assert isinstance(take(9, 71.0), Refusal)


def test_times_of_another_boot_hold_nobody_for_long(tmp_path: Path) -> None:
    buckets = Buckets.alone(4)
    limits = RateLimits(buckets)
    who = Principal(user_id=1, username="x", limits=Limits(requests_per_minute=1))
    assert limits.take(who, 1, 1e9) >= 0

    refusal = limits.take(who, 1, 10.0)
    assert isinstance(refusal, Refusal)
    assert refusal.retry_after <= 3600
