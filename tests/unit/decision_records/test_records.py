"""Records of decisions: each is made again from what was written down, whatever happened to the fleet in between."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.kit.text import GIB
from gpustack.plugin import ResourceClaim
from gpustack.scheduling import Holding, Packing, Placed, Preemption, Refused, Request, Worker
from gpustack.scheduling.records import (
    BadRecord,
    Entry,
    RecordedFleet,
    Replay,
    decode,
    encode,
    entries,
    replay,
    verdict,
)
from gpustack.scheduling.records import recorder as recorder_module
from support.fleets import Odds

SEEDS = st.integers(0, 2**32)


def written(fleet: RecordedFleet, packing: Packing = Packing.WHOLE) -> list[str]:
    return [each.write() for each in entries(fleet.take(100_000), packing)]


def churn(seed: int, decisions: int, fleet: RecordedFleet, count: int) -> list[Placed | Refused | Preemption]:
    """Let workers come, go and change and instances come and go; return what was decided."""
    dice, odds = random.Random(seed), Odds(seed)
    for worker in odds.workers(count):
        fleet.put_worker(worker)
    running: list[int] = []
    made: list[Placed | Refused | Preemption] = []
    while len(made) < decisions:
        chance = dice.random()
        if chance < 0.1:
            fleet.remove_worker(dice.randint(1, count))
        elif chance < 0.3:
            fleet.put_worker(odds.worker(dice.randint(1, count)))
        elif chance < 0.45 and running:
            fleet.release(running.pop(dice.randrange(len(running))))
        else:
            request = replace(odds.request(len(made) + 1, count), priority=dice.choice((0, 0, 1, 2)))
            answer = fleet.decide(request)
            made.append(answer)
            if isinstance(answer, Refused) and (preemption := fleet.preempt(request)) is not None:
                made.append(preemption)
                for victim in preemption.victims:
                    fleet.release(victim)
                    running.remove(victim)
            if isinstance(answer, Placed):
                for each in answer.holdings():
                    fleet.hold(each)
                running.append(answer.instance_id)
    return made


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 8), st.sampled_from(Packing))
def test_every_decision_of_a_run_is_made_again(seed: int, count: int, packing: Packing) -> None:
    fleet = RecordedFleet(packing=packing)
    made = churn(seed, 30, fleet, count)
    again = list(replay(map(Entry.read, written(fleet, packing))))
    assert [verdict(each.answer) for each in again] == [verdict(each) for each in made]
    assert all(each.same for each in again)


def test_who_had_to_leave_is_found_again() -> None:
    fleet = RecordedFleet()
    made = churn(2, 300, fleet, 3)
    again = list(replay(map(Entry.read, written(fleet))))
    assert sum(isinstance(each, Preemption) for each in made) >= 3
    assert [each.answer for each in again if each.entry.preempts] == [
        each for each in made if isinstance(each, Preemption)
    ]


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 8))
def test_values_come_back_as_they_were(seed: int, count: int) -> None:
    odds = Odds(seed)
    for worker in odds.workers(count):
        assert decode(Worker, encode(worker)) == worker
    request = odds.request(1, count)
    assert decode(Request, encode(request)) == request


def test_a_record_that_was_cut_anywhere_goes_on_from_the_next_whole_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder_module, "_WHOLE_AFTER", 10)
    fleet = RecordedFleet()
    churn(7, 200, fleet, 4)
    read = [Entry.read(line) for line in written(fleet)]
    starts = [place for place, each in enumerate(read) if each.whole]
    assert len(starts) > 5
    for start in starts:
        assert all(each.same for each in replay(read[start:]))
    with pytest.raises(BadRecord, match="begins in the middle"):
        list(replay(read[1:]))


def test_a_record_is_mostly_of_what_changed() -> None:
    fleet = RecordedFleet()
    churn(3, 100, fleet, 8)
    fleet.take(1000)
    fleet.put_worker(replace(next(fleet.workers()), ready=False, state_message="broken"))
    request = Odds(3).request(5, 8)
    fleet.decide(request)
    fleet.decide(request)
    first, second = entries(fleet.take(10))
    assert [each.state_message for each in first.workers] == ["broken"]
    assert not first.held
    assert not second.workers
    assert not second.held


def test_what_a_trial_has_undone_is_no_part_of_the_record() -> None:
    odds = Odds(11)
    fleet = RecordedFleet(odds.workers(6))
    request = odds.request(1, 6)
    fleet.decide(request)
    holding = Holding(instance_id=99, model_id=1, worker_id=1, ram=GIB)
    fleet.hold(holding)
    fleet.release(99)
    fleet.decide(request)
    assert not entries(fleet.take(10))[1].held


def test_whoever_takes_nothing_gets_a_record_that_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MOST_WAITING", 5)
    fleet = RecordedFleet()
    churn(5, 12, fleet, 3)
    kept = entries(fleet.take(100))
    assert fleet.lost == 10
    assert len(kept) == 2
    assert kept[0].whole
    assert all(each.same for each in replay(kept))


def test_after_a_gap_the_record_begins_anew() -> None:
    fleet = RecordedFleet()
    churn(5, 12, fleet, 3)
    fleet.take(100)
    fleet.gap()
    fleet.decide(Odds(1).request(1, 3))
    assert entries(fleet.take(1))[0].whole


def test_another_answer_than_the_recorded_one_is_told() -> None:
    fleet = RecordedFleet()
    churn(5, 40, fleet, 3)
    read = [Entry.read(line) for line in written(fleet)]
    number = next(place for place, each in enumerate(read) if each.placed is not None)
    claim = ResourceClaim(ram=10**15)
    offers = {
        key: replace(offer, ways=tuple(replace(way, claim=claim, followers=()) for way in offer.ways))
        for key, offer in read[number].request.offers.items()
    }
    kinds = {
        key: replace(offer, ways=tuple(replace(way, claim=claim, followers=()) for way in offer.ways))
        for key, offer in read[number].request.kinds.items()
    }
    read[number] = replace(read[number], request=replace(read[number].request, offers=offers, kinds=kinds))
    assert [place for place, each in enumerate(replay(read)) if not each.same] == [number]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "no JSON"),
        ("[]", "is an object"),
        ('{"at": 1, "request": {}}', "'verdict'"),
        ('{"at": 1, "request": {"instance_id": "x"}, "verdict": {}}', "Request"),
        ('{"at": 1, "request": {"later": 1}, "verdict": {}}', "newer version"),
        ('{"at": 1, "request": {"instance_id": true}, "verdict": {}}', "not of type int"),
    ],
)
def test_what_is_no_decision_is_told_in_one_line(line: str, message: str) -> None:
    with pytest.raises(BadRecord, match=message) as error:
        Entry.read(line)
    assert "\n" not in str(error.value)


def test_a_replay_knows_the_fleet_before_its_first_decision_not() -> None:
    with pytest.raises(BadRecord, match="no decision"):
        _ = Replay().fleet
