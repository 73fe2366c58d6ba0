"""What earlier starts measured, as far as it bears on the next placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpustack.plugin import ResourceClaim
from gpustack.plugin.memory import Learned, MemoryKey, arguments_digest, corrected, learn
from gpustack.schemas import InstanceMemory, ModelInstancePublic
from gpustack.server.reconcile.questions import Answer, Question


def key_of(question: Question) -> MemoryKey:
    """Return the kind of the instances that ``question`` is about."""
    return MemoryKey(
        architecture=question.facts.architecture,
        backend=question.backend,
        version=question.version,
        arguments=arguments_digest(question.facts, question.parameters, question.devices),
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
        return corrected(claim, self._known.get(key_of(question))) if self._known else claim


def first_peak(memory: InstanceMemory) -> bool:
    """Tell whether nothing was measured since the instance was placed."""
    return not (memory.peak_ram or memory.peak_vram)


def memory_of(
    asked: Sequence[Question], answers: Mapping[Question, Answer], way: tuple[str, str, int]
) -> InstanceMemory:
    """Return what is noted of an instance that is placed in one ``way``: its backend, its version, how many GPUs."""
    backend, version, gpus = way
    for question in asked:
        claim = answers[question].claim if question in answers else None
        if claim is None or (question.backend, question.version, claim.gpus) != (backend, version, gpus):
            continue
        key = key_of(question)
        return InstanceMemory(
            estimated_ram=claim.ram,
            estimated_vram=claim.vram,
            mapped=claim.mapped,
            architecture=key.architecture,
            arguments=key.arguments,
        )
    return InstanceMemory()
