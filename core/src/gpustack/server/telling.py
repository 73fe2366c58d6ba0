"""Decisions of the scheduler as the API tells them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from gpustack.extensions import Guard
from gpustack.plugin import EstimateRequest, ModelFacts, PluginError, Refused, SuggestsLess, TryAgain
from gpustack.scheduling import Placed, explain
from gpustack.scheduling import Refused as NotPlaced
from gpustack.scheduling.explain import worker_lines
from gpustack.scheduling.filters import PIPELINE, Step
from gpustack.scheduling.remedies import Remedy as FoundRemedy
from gpustack.scheduling.snapshot import mib_free, mib_needed
from gpustack.schemas import InstanceState, ModelFilePublic, ModelInstancePublic
from gpustack.schemas.explanations import (
    FilterCount,
    GpuDeficit,
    InstanceExplanation,
    NearMiss,
    Outcome,
    ProposedMove,
    Remedy,
    Seat,
)
from gpustack.server.reconcile.questions import TIME_LIMIT, facts_of
from gpustack.server.reconcile.state import State

__all__ = [
    "FoundRemedy",
    "counts",
    "facts_in",
    "refusal",
    "remedy",
    "replacement",
    "seats",
    "suggestions",
    "where",
]

#: Kinds of changes that one backend may suggest, and suggestions of each: more is no help.
_MOST_KINDS, _MOST_OF_A_KIND = 8, 12
_S = InstanceState
_VERBS = {_S.RUNNING: "runs", _S.UNREACHABLE: "is lost from sight", _S.ERROR: "failed"}


def replacement(instance: ModelInstancePublic, seconds: float, now: datetime) -> str:
    """Return when an instance that is lost from sight is placed anew, ``seconds`` after it was missed."""
    when = instance.state_since + timedelta(seconds=seconds)
    left = (when - now).total_seconds()
    if left > 0:
        return (
            f"it is placed elsewhere at {when:%H:%M:%S} UTC, in {left:.0f} s, unless its worker is heard before; until "
            "then it may still be serving there"
        )
    return (
        f"its time of {seconds:.0f} s is over: it is placed elsewhere as soon as the server hears again of more than "
        "half of its workers, or has run for half a minute"
    )


def where(instance: ModelInstancePublic) -> InstanceExplanation:
    """Return where an instance is, by its row."""
    if instance.members:
        return _members(instance)
    claim = instance.computed_resource_claim
    gpus = ", ".join(map(str, sorted(claim.vram)))
    place = f"worker {instance.worker_name}" + (
        f", GPU {gpus}" if gpus else ", on the processor" if claim.ram else ""
    )
    return InstanceExplanation(
        instance_id=instance.id,
        instance_name=instance.name,
        state=instance.state,
        outcome=Outcome.PLACED,
        summary=f"{_VERBS.get(instance.state, 'starts')} on {place}{_why(instance)}",
        backend=instance.backend,
        backend_version=instance.backend_version,
        seats=[
            Seat(
                worker_id=instance.worker_id or 0,
                worker_name=instance.worker_name,
                ram_mib=mib_needed(claim.ram),
                vram_mib={index: mib_needed(size) for index, size in sorted(claim.vram.items())},
            )
        ],
    )


def _why(instance: ModelInstancePublic) -> str:
    """Return what an engine that does not run is waiting for or failed of, as the end of a line."""
    if instance.state in (_S.RUNNING, _S.UNREACHABLE):
        return ""
    said = instance.state_message.partition("\n")[0]
    return f": {said}" if said else ""


def _members(instance: ModelInstancePublic) -> InstanceExplanation:
    """Return where the members of an instance are."""
    names = ", ".join(each.worker_name for each in instance.members)
    return InstanceExplanation(
        instance_id=instance.id,
        instance_name=instance.name,
        state=instance.state,
        outcome=Outcome.PLACED,
        summary=f"{_VERBS.get(instance.state, 'starts')} on workers {names}, since it fits on no single one{_why(instance)}",
        backend=instance.backend,
        backend_version=instance.backend_version,
        seats=[
            Seat(
                worker_id=each.worker_id,
                worker_name=each.worker_name,
                ram_mib=mib_needed(each.computed_resource_claim.ram),
                vram_mib={
                    index: mib_needed(size)
                    for index, size in sorted(each.computed_resource_claim.vram.items())
                },
            )
            for each in instance.members
        ],
    )


def seats(placed: Placed, names: Mapping[int, str]) -> list[Seat]:
    """Return the room that ``placed`` takes, the leader's first."""
    return [
        Seat(
            worker_id=each.worker_id,
            worker_name=names.get(each.worker_id, ""),
            ram_mib=mib_needed(each.ram),
            vram_mib={index: mib_needed(size) for index, size in sorted(each.vram.items())},
        )
        for each in placed.holdings()
    ]


def counts(steps: Iterable[Step]) -> list[FilterCount]:
    """Return how many workers passed each filter."""
    return [FilterCount(name=each.name, matched=each.matched, asked=each.asked) for each in steps]


def refusal(base: InstanceExplanation, refused: NotPlaced, *, failed: bool) -> InstanceExplanation:
    """Return ``base`` with all that is known of a refusal; ``failed`` says that nobody looks at it again by itself."""
    lines = explain(refused)
    waits = refused.for_room_only and not failed
    return base.model_copy(
        update={
            "outcome": Outcome.WAITING if waits else Outcome.REFUSED,
            "summary": lines[0],
            "workers": refused.workers,
            "filters": counts(refused.steps),
            "with_room": 0,
            "near_misses": _near_misses(refused),
        }
    )


def _near_misses(refused: NotPlaced) -> list[NearMiss]:
    lines, deficits = worker_lines(refused), refused.deficits
    found = []
    for each in refused.named:
        deficit = deficits.get(each.worker.id)
        gpus = () if deficit is None else deficit.gpus_short
        found.append(
            NearMiss(
                worker_id=each.worker.id,
                worker_name=each.worker.name,
                reason=lines[each.worker.id],
                failed="" if each.failed is None else PIPELINE[each.failed].name,
                ram_missing_mib=0 if deficit is None else mib_needed(deficit.ram_missing),
                gpus=[
                    GpuDeficit(
                        index=short.gpu.index,
                        needed_mib=mib_needed(short.needed),
                        free_mib=mib_free(short.free),
                        missing_mib=mib_needed(short.needed) - mib_free(short.free),
                    )
                    for short in gpus
                ],
                gpus_needed=0 if deficit is None else deficit.gpus_needed,
                gpus_present=0 if deficit is None else deficit.gpus_present,
            )
        )
    return found


def remedy(found: FoundRemedy, names: Mapping[int, str], state: State) -> Remedy:
    """Return what would help, with names."""
    moves = []
    for each in found.moves:
        instance = state.instances[each.instance_id]
        moves.append(
            ProposedMove(
                instance_id=instance.id,
                instance_name=instance.name,
                model_name=instance.model_name,
                to=seats(each.to, names),
            )
        )
    return Remedy(
        what=found.what,
        seats=seats(found.placed, names),
        moves=moves,
        backend_parameters=None if found.parameters is None else list(found.parameters),
    )


def facts_in(file: ModelFilePublic | None) -> ModelFacts | None:
    """Return what is known of a worker's files."""
    return None if file is None or file.facts is None else facts_of(file.facts)


async def suggestions(
    plugin: str, backend: SuggestsLess, request: EstimateRequest
) -> list[list[tuple[str, tuple[str, ...]]]]:
    """Return what a backend suggests; nothing when it cannot, or is in trouble: it has no part in what runs."""
    try:
        kinds = await Guard.call(plugin, backend.suggestions, request, timeout=TIME_LIMIT)
        return [
            [(each.what, tuple(each.parameters)) for each in list(kind)[:_MOST_OF_A_KIND]]
            for kind in list(kinds)[:_MOST_KINDS]
        ]
    except (PluginError, Refused, TryAgain, AttributeError, TypeError):
        return []
