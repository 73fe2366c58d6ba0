"""What earlier starts measured, and how it corrects the next estimate.

One :class:`Learned` is kept for each :class:`MemoryKey`: architecture, engine, version and digest of the arguments. The
digest also has the model's size and the kind of GPUs, so that what is learned of a small model is not said of a large
one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpustack.plugin.values import GpuDevice, ModelFacts, ResourceClaim

#: An estimate of GPU memory is lowered by this part at most. Engines take that at their start; RAM they take as requests
#: come, so that a low peak there proves nothing and lowers nothing.
MOST_LOWERED = 0.15
#: Room above what was measured, for what differs from start to start.
MARGIN = 0.03
#: A peak is forgotten by this part of what a later start stays below it, so one start that took less proves little.
FORGOTTEN = 0.1
#: A peak is taken for a fault of measuring beyond so many times the estimate, and as much is believed.
MOST_RAISED = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKey:
    """A kind of instance: those of one kind take the same."""

    architecture: str
    backend: str
    version: str
    #: As :func:`arguments_digest` makes it.
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Peaks of one kind of instance in bytes, ``vram`` of all its GPUs together, and how many starts told them."""

    ram: int = 0
    vram: int = 0
    starts: int = 0


def arguments_digest(
    model: ModelFacts, parameters: Sequence[str], devices: Sequence[GpuDevice], env: Sequence[str] = ()
) -> str:
    """Return what stands for all that an estimate depends on, besides architecture, engine and version."""
    content = [
        list(parameters),
        sorted(env),
        [(each.vendor, each.type, each.name, each.memory_total) for each in devices],
        [model.weight_bytes, model.parameters, model.layers, model.hidden_size, model.quantization],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def learn(before: Learned | None, measured: Learned, *, new_start: bool) -> Learned:
    """Return what is known after ``measured``.

    Peaks of the start that was known before only rise. A ``new_start`` that stays below an old peak lowers it slowly.
    """
    if before is None:
        return replace(measured, starts=1)
    if not new_start:
        return replace(before, ram=max(before.ram, measured.ram), vram=max(before.vram, measured.vram))
    return Learned(
        ram=_faded(before.ram, measured.ram),
        vram=_faded(before.vram, measured.vram),
        starts=before.starts + 1,
    )


def corrected(claim: ResourceClaim, learned: Learned | None) -> ResourceClaim:
    """Return ``claim`` as what was measured has it.

    Never below what was measured, unless that is more than :data:`MOST_RAISED` times the estimate; GPU memory is
    lowered by :data:`MOST_LOWERED` at most, RAM not at all. What is 0 in either stays as it is: nothing was estimated,
    or nothing measured.
    """
    if learned is None:
        return claim
    ram = _corrected(claim.ram, learned.ram, lowered=0.0)
    if claim.pieces:
        return replace(_pieces_corrected(claim, learned), ram=ram)
    vram = _corrected(claim.vram, learned.vram, lowered=MOST_LOWERED)
    return replace(claim, ram=ram, vram=vram)


def _pieces_corrected(claim: ResourceClaim, learned: Learned) -> ResourceClaim:
    """Raise what pieces take; on how many GPUs the peak was is not known, so that it lowers nothing."""
    estimate = claim.gpus * claim.each + claim.pieces * claim.piece + claim.last
    wanted = _corrected(estimate, learned.vram, lowered=0.0)
    if wanted <= estimate:
        return claim
    return ResourceClaim.in_pieces(
        claim.pieces,
        -(-claim.piece * wanted // estimate),
        gpus=claim.gpus,
        ram=claim.ram,
        each=-(-claim.each * wanted // estimate),
        last=-(-claim.last * wanted // estimate),
        mapped=claim.mapped,
        partial=claim.partial,
    )


def _corrected(estimate: int, peak: int, *, lowered: float) -> int:
    if not estimate or not peak:
        return estimate
    wanted = math.ceil(peak * (1 + MARGIN)) if peak > estimate * (1 - lowered) else 0
    lowest = math.ceil(estimate * (1 - lowered))
    return min(max(wanted, lowest), int(estimate * MOST_RAISED))


def _faded(before: int, now: int) -> int:
    return now if now >= before else before - int((before - now) * FORGOTTEN)
