"""A refusal as lines that a person can act on."""

from __future__ import annotations

from gpustack.kit.text import human_bytes, plural
from gpustack.scheduling.fit import Deficit, GpuShort
from gpustack.scheduling.plan import Refused
from gpustack.scheduling.snapshot import Room


def explain(refused: Refused) -> list[str]:
    """Return a headline, then how many workers each filter left, then a line for each of the nearest workers.

    A single worker's reason is in the headline, which is all that a table has room for.
    """
    if refused.workers == 0:
        return ["no worker has joined yet; start one, or look at `gpustack workers`"]
    lines = [_headline(refused)]
    if refused.workers == 1:
        return [": ".join([*lines, *_worker_lines(refused)])]
    lines += [
        f"{step.matched} of {step.asked} workers {step.name}"
        for step in refused.steps
        if step.matched < step.asked
    ]
    lines += _worker_lines(refused)
    if len(refused.named) < refused.workers:
        lines.append(f"and {plural(refused.workers - len(refused.named), 'worker')} more")
    return lines


def _headline(refused: Refused) -> str:
    if not refused.for_room_only:
        return "no worker can take it now"
    if refused.too_large:
        return "no worker is large enough, even when empty"
    return "waiting for room: no worker has enough free memory now"


def worker_lines(refused: Refused) -> dict[int, str]:
    """Return of each worker that the refusal names, by id, what is missing there or why it was left out."""
    deficits, reasons, rooms = refused.deficits, refused.reasons, refused.rooms
    return {
        number: reasons[number]
        if number in reasons
        else "; ".join(parts(room, deficits[number], by_hand=refused.request.gpus is not None))
        for number, room in rooms.items()
    }


def _worker_lines(refused: Refused) -> list[str]:
    rooms = refused.rooms
    return [f"{rooms[number].worker.name}: {line}" for number, line in worker_lines(refused).items()]


def parts(room: Room, deficit: Deficit, *, by_hand: bool = False) -> list[str]:
    """Return what a claim lacks in ``room``, a part for each thing; ``by_hand`` for GPUs that somebody chose."""
    found = []
    if deficit.members > 1:
        found.append(f"one of {deficit.members} members")
    if deficit.gpus_needed > deficit.gpus_present:
        linked = "linked " if deficit.linked else ""
        found.append(
            f"needs {deficit.gpus_needed} {linked}{'GPU' if deficit.gpus_needed == 1 else 'GPUs'}, "
            f"has {deficit.gpus_present}{' of those chosen' if by_hand else ''}"
        )
    found += [_gpu_part(room, each, "the chosen GPU" if by_hand else "GPU") for each in deficit.gpus_short]
    if deficit.ram_missing:
        found.append(_ram_part(room, deficit.ram_needed))
    if deficit.members > 1 and len(found) == 1:
        return [f"has room for one of {deficit.members} members, too few others of its network have"]
    return found


def _ram_part(room: Room, needed: int) -> str:
    worker = room.worker
    taken = _taken(worker.ram_reserved, room.ram_claimed, worker.ram_others)
    return (
        f"needs {human_bytes(needed)} RAM, {human_bytes(room.ram_free)} of {human_bytes(worker.ram_total)} "
        f"is free{taken}"
    )


def _gpu_part(room: Room, short: GpuShort, which: str) -> str:
    gpu = short.gpu
    taken = _taken(room.worker.vram_reserved, room.vram_claimed.get(gpu.index, 0), gpu.others)
    return (
        f"needs {human_bytes(short.needed)} on {which} {gpu.index}, {human_bytes(short.free)} of "
        f"{human_bytes(gpu.total)} is free{taken}"
    )


def _taken(reserved: int, claimed: int, others: int) -> str:
    parts = [
        f"{human_bytes(size)} {what}"
        for size, what in ((reserved, "reserved"), (claimed, "claimed"), (others, "used by others"))
        if size
    ]
    return f" ({', '.join(parts)})" if parts else ""
