"""What would have to be different for a refused request to fit; each answer was placed, none is guessed.

    for each in remedies(fleet, refused, alternatives, movable): print(each.what, each.placed.worker_id)

This searches, so it is for when somebody asks, and on a fleet of one's own: see :meth:`Fleet.trial`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gpustack.scheduling.fleet import Fleet
from gpustack.scheduling.plan import Placed, Refused
from gpustack.scheduling.request import Request
from gpustack.scheduling.snapshot import Holding

#: Workers that are looked at for an instance whose move would help, and instances that are tried on each.
_NEAREST = 8
_MOST_TRIED = 16
#: Answers of one kind.
_MOST_MOVES = 2
_MOST_READY = 2
#: Workers that are not ready and are tried as if they were.
_MOST_NOT_READY = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """The request with something of the model changed. ``what`` completes "it would fit with …"."""

    what: str
    request: Request
    #: What the model's parameters would have to be; None where they stay.
    parameters: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """An instance that would have to run elsewhere, and where it would find room."""

    instance_id: int
    to: Placed


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Something that would help, and where the request went then. ``what`` completes "it would fit …"."""

    what: str
    placed: Placed
    moves: tuple[Movement, ...] = ()
    parameters: tuple[str, ...] | None = None


def remedies(
    fleet: Fleet,
    refused: Refused,
    alternatives: Iterable[Sequence[Alternative]] = (),
    movable: Mapping[int, Request] | None = None,
    relaxed: Request | None = None,
) -> list[Remedy]:
    """Return what would help, the smallest changes of the model first.

    Each sequence of ``alternatives`` goes from the least change to the greatest; the first that fits is the answer.
    ``movable`` asks anew for instances that run; others are not moved. ``relaxed`` is the request with what is known of
    workers that it was not for: not selected, or not ready. The fleet is afterwards as it was before, but for
    its count of changes; it must not be in use elsewhere.
    """
    relaxed = relaxed or refused.request
    found = [*_changed(fleet, alternatives)]
    if refused.for_room_only:
        found += _moved(fleet, refused, movable or {})
    else:
        found += _unselected(fleet, relaxed)
    found += _on_others(fleet, refused.request)
    return [*found, *_if_ready(fleet, relaxed)]


def _changed(fleet: Fleet, alternatives: Iterable[Sequence[Alternative]]) -> Iterator[Remedy]:
    for some in alternatives:
        for each in some:
            answer = fleet.place(each.request)
            if isinstance(answer, Placed):
                yield Remedy(what=f"with {each.what}", placed=answer, parameters=each.parameters)
                break


def _unselected(fleet: Fleet, request: Request) -> Iterator[Remedy]:
    if not request.selector:
        return
    anywhere = fleet.place(replace(request, selector={}))
    if not isinstance(anywhere, Placed):
        return
    yield from _labelled(fleet, request, anywhere)
    for key in sorted(request.selector) if len(request.selector) > 1 else ():
        rest = {name: value for name, value in request.selector.items() if name != key}
        answer = fleet.place(replace(request, selector=rest))
        if isinstance(answer, Placed):
            label = f"{key}={request.selector[key]}"
            yield Remedy(what=f"if its worker selector did not ask for {label}", placed=answer)
            return
    yield Remedy(what="without its worker selector", placed=anywhere)


def _labelled(fleet: Fleet, request: Request, placed: Placed) -> Iterator[Remedy]:
    """Name the labels that the worker would need on which it was placed without asking for any."""
    worker = fleet.worker(placed.worker_id)
    if worker is None or placed.followers:
        return
    lacking = [f"{k}={v}" for k, v in sorted(request.selector.items()) if worker.labels.get(k) != v]
    labels = f"the label{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
    yield Remedy(what=f"with {labels} on worker {worker.name}", placed=placed)


def _on_others(fleet: Fleet, request: Request) -> Iterator[Remedy]:
    """Try the other GPUs of the workers of those that were chosen by hand."""
    if request.gpus is None:
        return
    named = {
        each.name: frozenset(gpu.index for gpu in each.gpus)
        for each in fleet.workers()
        if each.name in request.gpus
    }
    answer = fleet.place(replace(request, gpus=named))
    if isinstance(answer, Placed):
        yield Remedy(what="on GPUs that were not chosen", placed=answer)


def _if_ready(fleet: Fleet, request: Request) -> Iterator[Remedy]:
    """Try workers that are not ready, one at a time, as if they were."""
    found = 0
    away = [each for each in fleet.workers() if not each.ready and each.cluster_id == request.cluster_id]
    for worker in away[:_MOST_NOT_READY]:
        fleet.put_worker(replace(worker, ready=True, state_message=""))
        answer = fleet.place(request)
        fleet.put_worker(worker)
        if isinstance(answer, Placed):
            yield Remedy(what=f"once worker {worker.name} is ready", placed=answer)
            found += 1
        if found == _MOST_READY:
            return


def _moved(fleet: Fleet, refused: Refused, movable: Mapping[int, Request]) -> list[Remedy]:
    found: list[Remedy] = []
    tried: set[int] = set()
    for worker_id in list(refused.deficits)[:_NEAREST]:
        for holding in _smallest_first(fleet.held_on(worker_id))[:_MOST_TRIED]:
            number = holding.instance_id
            if number in tried or number == refused.request.instance_id or number not in movable:
                continue
            tried.add(number)
            if (remedy := _without(fleet, refused.request, movable[number])) is not None:
                found.append(remedy)
                break
        if len(found) == _MOST_MOVES:
            break
    return found


def _without(fleet: Fleet, request: Request, other: Request) -> Remedy | None:
    """Return the remedy of moving one instance, None when that does not help or it fits nowhere else."""
    with fleet.trial():
        before = {each.worker_id for each in fleet.holdings(other.instance_id)}
        fleet.release(other.instance_id)
        answer = fleet.place(request)
        if not isinstance(answer, Placed):
            return None
        for each in answer.holdings():
            fleet.hold(each)
        to = fleet.place(other)
    if not isinstance(to, Placed):
        return None
    # On its own worker it takes another GPU than before, or less room than it had.
    stays = {each.worker_id for each in to.holdings()} == before
    what = f"if an instance of {other.model_name} {'changed its GPUs' if stays else 'moved'}"
    return Remedy(what=what, placed=answer, moves=(Movement(instance_id=other.instance_id, to=to),))


def _smallest_first(holdings: Iterable[Holding]) -> list[Holding]:
    return sorted(holdings, key=lambda each: (sum(each.vram.values()), each.ram, each.instance_id))
