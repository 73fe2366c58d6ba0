"""A refusal as lines that a person can act on."""

from __future__ import annotations

from gpustack.kit.text import human_bytes, plural
from gpustack.scheduling.fit import Deficit, GpuShort, per_gpu
from gpustack.scheduling.plan import Refused
from gpustack.scheduling.snapshot import Room

#: Workers named one by one; of a large fleet the counts by filter say more.
MOST_WORKERS = 8


def explain(refused: Refused) -> list[str]:
    """Return a headline, then how many workers each filter left, then a line for each of the nearest workers.

    A single worker's reason is in the headline, which is all that a table has room for.
    """
    if refused.workers == 0:
        return ["no worker has joined yet; start one, or look at `gpustack workers`"]
    lines = [_headline(refused)]
    if refused.workers == 1:
        return [": ".join([*lines, *(_worker_line(refused, each) for each in refused.rooms)])]
    lines += [
        f"{step.matched} of {step.asked} workers {step.name}"
        for step in refused.steps
        if step.matched < step.asked
    ]
    near = sorted(refused.deficits, key=lambda key: (refused.deficits[key].missing, key))
    order = [step.name for step in refused.steps]
    left_out = sorted(refused.reasons, key=lambda key: (-order.index(refused.failed_at[key]), key))
    named = [*near, *left_out]
    lines += [_worker_line(refused, worker_id) for worker_id in named[:MOST_WORKERS]]
    if len(named) > MOST_WORKERS:
        lines.append(f"and {plural(len(named) - MOST_WORKERS, 'worker')} more")
    return lines


def _headline(refused: Refused) -> str:
    if not refused.for_room_only:
        return "no worker can take it now"
    if all(_never(refused.rooms[key], deficit) for key, deficit in refused.deficits.items()):
        return "no worker is large enough, even when empty"
    return "waiting for room: no worker has enough free memory now"


def _never(room: Room, deficit: Deficit) -> bool:
    """Tell whether the claim is more than the whole worker has to give."""
    worker = room.worker
    if deficit.ram_needed > worker.ram_total - worker.ram_reserved:
        return True
    fitting = [gpu for gpu in worker.gpus if gpu.total - worker.vram_reserved >= per_gpu(deficit.claim)]
    return len(fitting) < deficit.gpus_needed


def _worker_line(refused: Refused, worker_id: int) -> str:
    room = refused.rooms[worker_id]
    if worker_id in refused.reasons:
        return f"{room.worker.name}: {refused.reasons[worker_id]}"
    return f"{room.worker.name}: {'; '.join(_parts(room, refused.deficits[worker_id]))}"


def _parts(room: Room, deficit: Deficit) -> list[str]:
    parts = []
    if deficit.gpus_needed > deficit.gpus_present:
        parts.append(f"needs {plural(deficit.gpus_needed, 'GPU')}, has {deficit.gpus_present}")
    parts += [_gpu_part(room, each) for each in deficit.gpus_short]
    if deficit.ram_missing:
        parts.append(_ram_part(room, deficit.ram_needed))
    return parts


def _ram_part(room: Room, needed: int) -> str:
    worker = room.worker
    taken = _taken(worker.ram_reserved, room.ram_claimed, worker.ram_others)
    return (
        f"needs {human_bytes(needed)} RAM, {human_bytes(room.ram_free)} of {human_bytes(worker.ram_total)} "
        f"is free{taken}"
    )


def _gpu_part(room: Room, short: GpuShort) -> str:
    gpu = short.gpu
    taken = _taken(room.worker.vram_reserved, room.vram_claimed.get(gpu.index, 0), gpu.others)
    return (
        f"needs {human_bytes(short.needed)} on GPU {gpu.index}, {human_bytes(short.free)} of "
        f"{human_bytes(gpu.total)} is free{taken}"
    )


def _taken(reserved: int, claimed: int, others: int) -> str:
    parts = [
        f"{human_bytes(size)} {what}"
        for size, what in ((reserved, "reserved"), (claimed, "claimed"), (others, "used by others"))
        if size
    ]
    return f" ({', '.join(parts)})" if parts else ""
