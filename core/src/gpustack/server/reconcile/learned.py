"""What earlier starts measured, as far as it bears on the next placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpustack.plugin import ResourceClaim
from gpustack.plugin.memory import Learned, MemoryKey, arguments_digest, corrected, learn
from gpustack.scheduling import Placed
from gpustack.schemas import InstanceMemory, ModelInstancePublic
from gpustack.server.reconcile.questions import Answer, Question


def key_of(question: Question, claim: ResourceClaim) -> MemoryKey:
    """Return the kind of the instances that run as ``claim`` answers ``question``."""
    # What runs with a part in RAM tells nothing of what runs on GPUs alone, nor one GPU of several.
    way = (f"gpus={claim.gpus}", f"pieces={claim.pieces}") if claim.gpus else ()
    return MemoryKey(
        architecture=question.facts.architecture,
        backend=question.backend,
        version=question.version,
        arguments=arguments_digest(question.facts, question.parameters, question.devices, way),
    )


def memory_key(instance: ModelInstancePublic) -> MemoryKey | None:
    """Return the kind of an instance that was placed; None where that was not noted."""
    memory = instance.memory
    if not memory.arguments:
        return None
    return MemoryKey(
        architecture=memory.architecture,
        backend=instance.backend,
        version=instance.backend_version,
        arguments=memory.arguments,
    )


class Peaks:
    """The peaks by kind. The rows are the truth; instances tell here what was added to them since."""

    def __init__(self) -> None:
        self._known: dict[MemoryKey, Learned] = {}

    def replace(self, known: Mapping[MemoryKey, Learned]) -> None:
        """Take what the database knows."""
        self._known = dict(known)

    def follow(self, old: ModelInstancePublic, new: ModelInstancePublic) -> None:
        """Take in that an instance has taken more than before."""
        before, now = old.memory, new.memory
        grown = now.peak_ram > before.peak_ram or now.peak_vram > before.peak_vram
        if grown and (key := memory_key(new)) is not None:
            peak = Learned(ram=now.peak_ram, vram=now.peak_vram)
            self._known[key] = learn(self._known.get(key), peak, new_start=first_peak(before))

    def corrected(self, question: Question, claim: ResourceClaim) -> ResourceClaim:
        """Return the answer to ``question`` as earlier starts correct it."""
        return corrected(claim, self._known.get(key_of(question, claim))) if self._known else claim


def first_peak(memory: InstanceMemory) -> bool:
    """Tell whether nothing was measured since the instance was placed."""
    return not (memory.peak_ram or memory.peak_vram)


def memory_of(
    asked: Sequence[Question], answers: Mapping[Question, Answer], placed: Placed, peaks: Peaks
) -> InstanceMemory:
    """Return what is noted of an instance that is ``placed``: the answer that it rests on."""
    way = placed.way
    for question in asked:
        if (question.backend, question.version) != (way.backend, way.version):
            continue
        for claim in answers[question].claims if question in answers else ():
            if peaks.corrected(question, claim) != way.claim:
                continue
            key = key_of(question, claim)
            return InstanceMemory(
                estimated_ram=claim.ram,
                estimated_vram=_on_so_many(claim, placed),
                mapped=claim.mapped,
                architecture=key.architecture,
                arguments=key.arguments,
            )
    return InstanceMemory()


def _on_so_many(claim: ResourceClaim, placed: Placed) -> int:
    """Return the GPU memory of ``claim`` on as many GPUs as were chosen."""
    if not claim.pieces:
        return claim.vram
    return len(placed.vram) * claim.each + claim.pieces * claim.piece + claim.last
