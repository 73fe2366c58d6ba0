"""Ways to divide an instance over several workers, for a model that no single one could hold even when empty.

Backends that span workers are asked for each division of equal workers, from the fewest to :data:`MOST_MEMBERS`, with
some or all of their GPUs, then for small groups of the largest kinds, and for the largest workers of all together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement

from gpustack.plugin import GpuDevice, ModelFacts, ResourceClaim
from gpustack.scheduling import Offer, Refused, Way, place_of
from gpustack.schemas import ModelPublic, WorkerPublic
from gpustack.server.known_backends import Engine
from gpustack.server.reconcile import byhand
from gpustack.server.reconcile.choosing import in_order
from gpustack.server.reconcile.lore import Known, Lore
from gpustack.server.reconcile.questions import (
    Answer,
    Question,
    alike,
    devices_of,
    knows_members,
    question,
)
from gpustack.server.reconcile.state import State

#: Workers that one instance is divided over, at most.
MOST_MEMBERS = 8
#: Of different kinds of workers the largest kinds are tried with each other, in groups of up to so many members.
MOST_CLASSES = 4
MOST_MIXED = 3
#: Stands in the place of a way that a worker does not offer, so that the others keep theirs: no worker has its backend.
_NONE = Way(backend="", version="", claim=ResourceClaim(ram=0))


@dataclass(frozen=True, slots=True)
class Division:
    """Who could be a member: one class of workers for each, with the devices that are asked about."""

    classes: tuple[str, ...]
    devices: tuple[tuple[GpuDevice, ...], ...]


@dataclass(slots=True)
class Spread:
    """What is known with the divisions, and why there are not more of them."""

    known: Known
    reasons: dict[str, None] = field(default_factory=dict)


def may_span(state: State, model: ModelPublic, refused: Refused) -> bool:
    """Tell whether the model, for which a single worker was ``refused``, may be divided over several."""
    if not model.distributed_inference_across_workers or not _engines(state, model):
        return False
    # One that merely waits for its turn is not divided for that.
    return refused.too_large or not refused.for_room_only


def widened(state: State, lore: Lore, model: ModelPublic, known: Known, now: float) -> Spread | None:
    """Return ``known`` with the ways over several workers besides; None where there is nobody to divide it over."""
    facts, classes = _classes(state, lore, model, known)
    divisions = sorted(_divisions(model, classes), key=_size)
    older = [each.name for each in lore.workers(model) if not knows_members(each)]
    if facts is None or not (divisions or older):
        return None
    spread = Spread(replace(known, open=dict(known.open)))
    if older:
        spread.reasons[_too_old(older)] = None
    found: list[tuple[Division, Way]] = []
    for division in divisions:
        leader = classes[division.classes[0]][0]
        answers: list[tuple[Question, Answer]] = []
        for engine in _engines(state, model):
            asked = replace(question(engine, leader, facts, division.devices[0]), workers=division.devices)
            answer = state.answers.get(asked)
            if answer is None or (answer.expires is not None and answer.expires <= now):
                spread.known.open[asked] = None
            else:
                answers.append((asked, answer))
        for asked, answer in answers if model.backend else in_order(answers):
            if answer.claim is not None:
                way = Way(
                    backend=asked.backend,
                    version=asked.version,
                    claim=answer.claim,
                    followers=answer.followers,
                    # What is reckoned for one kind must not go to another.
                    places=division.classes if len(set(division.classes)) > 1 else (),
                )
                found.append((division, way))
            else:
                spread.reasons[answer.reason] = None
                spread.known.passing |= answer.refused_by == "trouble"
    _offer(state, model, spread.known, found)
    return spread


def _engines(state: State, model: ModelPublic) -> list[Engine]:
    return [each for each in state.known.engines(model) if each.served_by in state.spanning]


def _classes(
    state: State, lore: Lore, model: ModelPublic, known: Known
) -> tuple[ModelFacts | None, dict[str, list[WorkerPublic]]]:
    """Return what the files say, and the workers that know them and members, by what they are alike in."""
    facts: ModelFacts | None = known.facts
    found: dict[str, list[WorkerPublic]] = {}
    for worker in lore.workers(model):
        there = known.facts or lore.facts_on(worker, model)
        facts = facts or there
        if there is not None and there == facts and knows_members(worker):
            found.setdefault(class_of(state, model, worker), []).append(worker)
    return facts, found


def _too_old(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the GPUStack of worker {names[0]}{more} is too old to take part; upgrade it there"


def class_of(state: State, model: ModelPublic, worker: WorkerPublic) -> str:
    """Return what a worker is alike others in; of GPUs chosen by hand each has its own."""
    return state.kinds[worker.id] if model.gpu_selector is None else place_of(worker.id)


def _divisions(model: ModelPublic, classes: Mapping[str, Sequence[WorkerPublic]]) -> Iterator[Division]:
    devices = {name: _devices(model, workers[0]) for name, workers in classes.items()}
    for name, workers in classes.items():
        for members in range(2, min(len(workers), MOST_MEMBERS) + 1):
            for count in _counts(len(devices[name])):
                yield Division((name,) * members, (devices[name][:count],) * members)
    if len(classes) < 2:
        return
    yield from dict.fromkeys(_mixed(classes, devices))


def _mixed(
    classes: Mapping[str, Sequence[WorkerPublic]], devices: Mapping[str, tuple[GpuDevice, ...]]
) -> Iterator[Division]:
    """Yield the divisions over more than one class: some of the largest ones, and the largest workers of all."""

    def size(name: str, worker: WorkerPublic) -> tuple[int, int, int]:
        return *_memory(devices[name], worker), -worker.id

    names = sorted(classes, key=lambda name: max(size(name, each) for each in classes[name]), reverse=True)
    for members in range(2, MOST_MIXED + 1):
        # Which of a class's workers have room is for the scheduler to find out.
        for some in combinations_with_replacement(names[:MOST_CLASSES], members):
            if len(set(some)) > 1 and all(some.count(name) <= len(classes[name]) for name in set(some)):
                yield Division(some, tuple(devices[name] for name in some))
    largest = sorted(
        ((name, worker) for name, workers in classes.items() for worker in workers[:MOST_MEMBERS]),
        key=lambda each: size(*each),
        reverse=True,
    )
    for members in range(2, min(len(largest), MOST_MEMBERS) + 1):
        some = tuple(name for name, _ in largest[:members])
        if len(set(some)) > 1:
            yield Division(some, tuple(devices[name] for name in some))


def _size(division: Division) -> tuple[int, int]:
    return len(division.classes), sum(len(each) for each in division.devices)


def _devices(model: ModelPublic, worker: WorkerPublic) -> tuple[GpuDevice, ...]:
    found = devices_of(worker)
    if model.gpu_selector is not None:
        wanted = byhand.chosen_on(worker, model.gpu_selector)
        found = tuple(each for each in found if each.index in wanted)
    return alike(found)


def _counts(gpus: int) -> list[int]:
    """Return how many of so many GPUs a member may be asked to take: 1, 2, 4 and so on, and all; 0 where there are none."""
    powers = [1 << each for each in range(gpus.bit_length())]
    return sorted({each for each in powers if each <= gpus} | {gpus})


def _memory(devices: Sequence[GpuDevice], worker: WorkerPublic) -> tuple[int, int]:
    return sum(each.memory_total for each in devices), worker.status.memory.total


def _offer(state: State, model: ModelPublic, known: Known, found: Sequence[tuple[Division, Way]]) -> None:
    """Add the ways to what the workers of each class offer, in the same place with all of them."""
    offers = [*known.kinds.values(), *known.offers.values()]
    before = max((len(each.ways) for each in offers), default=0)

    def more(offer: Offer, name: str) -> Offer:
        padding = (_NONE,) * (before - len(offer.ways))
        ways = (way if name in division.classes else _NONE for division, way in found)
        return replace(offer, ways=(*offer.ways, *padding, *ways))

    if not found:
        return
    known.kinds = {kind: more(offer, kind) for kind, offer in known.kinds.items()}
    known.offers = {
        number: more(offer, class_of(state, model, state.workers[number]))
        for number, offer in known.offers.items()
    }
