"""What backends are asked of a model on a kind of worker, and what they answered.

A question holds everything that its answer depends on, so answers are kept by it and one answer serves all equal
workers and all replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2s
from operator import index
from typing import Any, Literal

from gpustack.extensions import Guard
from gpustack.kit.text import MOST_MEMORY, human_bytes
from gpustack.plugin import (
    ContainerImage,
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    ModelFacts,
    Platform,
    PluginError,
    Preference,
    Refused,
    ResourceClaim,
    SpansWorkers,
    TryAgain,
)
from gpustack.schemas import FactsDocument, GpuStatus, ModelPublic, WorkerPublic
from gpustack.schemas.workers import ABILITIES, MEMBERS
from gpustack.server.known_backends import Engine, KnownBackends
from gpustack.server.reconcile import byhand

#: Backend instances with the names of their plugins, by backend name, in the order in which they are asked.
Backends = Mapping[str, tuple[InferenceBackend[Any], str]]

#: Seconds after which a backend that failed, rather than refused, is asked again.
RETRY = 60.0
#: Seconds that one method of a backend may take.
TIME_LIMIT = 5.0

#: Ways that one backend may offer on the same devices.
_MOST_WAYS = 32

_FACTS = frozenset(each.name for each in fields(ModelFacts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Can ``backend`` serve these files with these devices there, and what does that take?

    The devices have no uuids: the answer is for all workers with such devices.
    """

    backend: str
    version: str
    facts: ModelFacts
    parameters: tuple[str, ...]
    devices: tuple[GpuDevice, ...]
    platform: Platform
    #: The instance is to get all of the devices, evenly, since their number was chosen by hand.
    by_hand: bool = False
    #: The plugin's backend that answers, when it is called something else: for a row, ``custom``.
    served_by: str = ""
    #: The plugin's engine is installed for it, rather than a command or an image of somebody's own used.
    installs: bool = True
    #: It runs in a container, as its version or its model says.
    contained: bool = False
    #: Why engines cannot run in containers there; empty where they can, or nobody says.
    no_containers: str = ""
    #: Of an instance over several workers, the devices of each member; ``devices`` are the leader's.
    workers: tuple[tuple[GpuDevice, ...], ...] = ()

    @property
    def asked(self) -> str:
        """The name of the plugin's backend that answers."""
        return self.served_by or self.backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The claim, or a refusal. ``expires`` is set for passing trouble: a time after which to ask again."""

    #: Of the best way.
    claim: ResourceClaim | None = None
    #: Of other ways, from the best to the least.
    others: tuple[ResourceClaim, ...] = ()
    #: How gladly it is taken for a model that names no backend.
    preference: Preference = field(default_factory=Preference)
    #: Of a question about several workers, the claims of the other members.
    followers: tuple[ResourceClaim, ...] = ()
    refused_by: Literal["", "model", "platform", "parameters", "trouble"] = ""
    reason: str = ""
    expires: float | None = None

    @property
    def claims(self) -> tuple[ResourceClaim, ...]:
        """Return the claims of all ways, the best first; nothing for a refusal."""
        return () if self.claim is None else (self.claim, *self.others)


def spanning(backends: Backends) -> frozenset[str]:
    """Return the names of the backends that span workers."""
    return frozenset(name for name, (backend, _) in backends.items() if isinstance(backend, SpansWorkers))


def facts_of(document: FactsDocument) -> ModelFacts:
    """Return the facts in ``document``; fields that a newer worker adds are left out."""
    # A question is looked up by its facts, and JSON knows no tuples.
    values = {key: _frozen(value) for key, value in document.model_dump().items() if key in _FACTS}
    values["categories"] = values.get("categories") or ("unknown",)
    return ModelFacts(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value


def platform_of(worker: WorkerPublic) -> Platform:
    """Return the platform that ``worker`` reports; x86-64 Linux where it says nothing."""
    kernel = worker.status.kernel
    return Platform.of(
        kernel.get("name", "linux").lower(),
        kernel.get("architecture", "x86_64"),
        [_device(gpu) for gpu in worker.status.gpu_devices],
    )


def devices_of(worker: WorkerPublic) -> tuple[GpuDevice, ...]:
    """Return the GPUs that ``worker`` reports, by index, without faulty ones."""
    gpus = sorted(worker.status.gpu_devices, key=lambda gpu: gpu.index)
    return tuple(_device(each) for each in gpus if not each.faults)


def kind_of(worker: WorkerPublic) -> str:
    """Return what workers have in common that the same ways are open to: platform, GPUs, containers, members."""
    devices = alike(devices_of(worker))
    what = repr((platform_of(worker), devices, no_containers(worker), knows_members(worker)))
    return blake2s(what.encode(), digest_size=8).hexdigest()


def knows_members(worker: WorkerPublic) -> bool:
    """Tell whether it can run one member of an instance; an older one would start the whole model, or nothing."""
    return MEMBERS in worker.catalogue.get(ABILITIES, ())


def no_containers(worker: WorkerPublic) -> str:
    """Return why engines cannot run in containers on ``worker``; empty where they can, or it does not say."""
    engine = worker.status.container_engine
    return "" if engine is None else engine.reason


def alike(devices: tuple[GpuDevice, ...]) -> tuple[GpuDevice, ...]:
    """Return the devices without what tells each from all others of its make."""
    return tuple(replace(each, uuid="", parent_uuid="") for each in devices)


def _device(gpu: GpuStatus) -> GpuDevice:
    return GpuDevice(
        uuid=gpu.uuid,
        index=gpu.index,
        vendor=gpu.vendor,
        name=gpu.name,
        memory_total=gpu.memory.total,
        type=gpu.type,
        driver_version=gpu.driver_version,
        runtime_version=gpu.runtime_version,
        compute_capability=gpu.compute_capability,
        architecture=gpu.arch_family,
        device_index=gpu.device_index,
        parent_uuid=gpu.parent_uuid,
        cores=gpu.core.total,
        power_limit_watts=gpu.power,
        numa_node=gpu.numa_node,
        topology=tuple(gpu.topology),
        link_group=gpu.link_group,
        unified_memory=gpu.memory.is_unified_memory,
    )


def questions(
    model: ModelPublic, worker: WorkerPublic, facts: ModelFacts, known: KnownBackends
) -> list[Question]:
    """Return what to ask for ``model`` on ``worker``: with its GPUs first, then without.

    With GPUs chosen by hand: with as many of them as one instance may get, the best number first, and not without.
    """
    engines = known.engines(model)
    devices = alike(devices_of(worker))
    by_hand = _chosen(model, worker)
    return [
        replace(question(engine, worker, facts, each), by_hand=by_hand is not None)
        for each in (by_hand if by_hand is not None else [devices, ()] if devices else [()])
        for engine in engines
    ]


def question(
    engine: Engine, worker: WorkerPublic, facts: ModelFacts, devices: tuple[GpuDevice, ...]
) -> Question:
    """Return what to ask ``engine`` for such files on ``devices`` of ``worker``."""
    return Question(
        backend=engine.backend,
        served_by="" if engine.served_by == engine.backend else engine.served_by,
        installs=engine.installs,
        contained=engine.config.runner == "container",
        version=engine.version,
        facts=facts,
        parameters=engine.parameters,
        devices=devices,
        platform=platform_of(worker),
        no_containers=no_containers(worker),
    )


def _chosen(model: ModelPublic, worker: WorkerPublic) -> list[tuple[GpuDevice, ...]] | None:
    """Return the sets of GPUs that one instance may get of those chosen on ``worker``; None when none were chosen."""
    if model.gpu_selector is None:
        return None
    wanted = byhand.chosen_on(worker, model.gpu_selector)
    devices = alike(tuple(each for each in devices_of(worker) if each.index in wanted))
    if not devices:
        return []
    # What the smallest can hold, all can. Where there are too few, the answer tells what more of them would take, and
    # the refusal that they are lacking.
    ranked = sorted(devices, key=lambda each: (each.memory_total, each.index))
    return [tuple((ranked * count)[:count]) for count in byhand.counts(model, len(ranked))]


async def ask(question: Question, backends: Backends, now: float) -> Answer:
    """Put ``question`` to its backend. Never raises: a backend's trouble is an answer too."""
    backend, plugin = backends[question.asked]
    refused_by: Literal["model", "platform", "parameters"] = "model"
    try:
        verdict = await _call(plugin, backend.accepts, question.facts, question.devices)
        if not verdict.ok:
            return Answer(refused_by="model", reason=f"{question.backend}: {verdict.reason}")
        preference = _preference(await _call(plugin, backend.preference, question.facts, question.devices))
        refused_by = "platform"
        contained = question.contained
        if question.installs:
            artifact = await _call(plugin, backend.artifact, question.version, question.platform)
            contained = contained or isinstance(artifact, ContainerImage)
        if contained and question.no_containers:
            raise Refused(f"its engine runs in a container, and {question.no_containers}")
        refused_by = "parameters"
        request = EstimateRequest(
            model=question.facts,
            version=question.version,
            parameters=question.parameters,
            devices=question.devices,
            platform=question.platform,
        )
        if question.workers:
            assert isinstance(backend, SpansWorkers), "only these are asked of several workers"
            members = await _call(plugin, backend.members, request, question.workers)
            return replace(_divided(members, question), preference=preference)
        if question.by_hand or type(backend).ways is InferenceBackend.ways:
            claims = [await _call(plugin, backend.estimate, request)]
        else:
            claims = list(await _call(plugin, backend.ways, request))[:_MOST_WAYS]
        if not claims:
            raise PluginError("it says neither how the model can run there nor why it cannot")
        for claim in claims:
            _check(claim, question)
        return Answer(claim=claims[0], others=tuple(claims[1:]), preference=preference)
    except Refused as error:
        return Answer(refused_by=refused_by, reason=f"{question.backend}: {error}")
    except TryAgain as error:
        return _trouble(question, error, now + error.after)
    except (PluginError, AttributeError, TypeError) as error:
        return _trouble(question, error, now + RETRY)


def _divided(claims: object, question: Question) -> Answer:
    """Return the answer to a question about several workers. Raises Refused or PluginError for one that is none."""
    found = list(claims) if isinstance(claims, list | tuple) else []
    if len(found) != len(question.workers):
        raise PluginError(
            f"its members {claims!r} are not one claim for each of {len(question.workers)} workers"
        )
    for claim, devices in zip(found, question.workers, strict=True):
        _check(claim, replace(question, devices=devices))
        if claim.pieces:
            raise PluginError("it claims pieces for a member; of several workers each takes its part evenly")
    return Answer(claim=found[0], followers=tuple(found[1:]))


async def _call(plugin: str, method: Any, *args: Any) -> Any:
    return await Guard.call(plugin, method, *args, timeout=TIME_LIMIT)


def _preference(said: Preference) -> Preference:
    """Return what a backend said in types that can be sorted and shown; TypeError and AttributeError when it is none."""
    return Preference(rank=index(said.rank), reason=str(said.reason))


def _check(claim: object, question: Question) -> None:
    """Refuse a claim that cannot be met or counted. Raises Refused for one that no machine could ever meet."""
    if not isinstance(claim, ResourceClaim) or not (
        all(isinstance(each, int) for each in (claim.ram, claim.vram, claim.gpus))
        and min(claim.ram, claim.vram, claim.gpus) >= 0
        and bool(claim.vram) == bool(claim.gpus)
        and claim.gpus <= len(question.devices)
        and _whole(claim)
    ):
        raise PluginError(f"its estimate {claim!r} makes no sense for {len(question.devices)} GPUs")
    if max(claim.ram, claim.vram) > MOST_MEMORY:
        raise Refused(
            f"with these parameters the model takes more than {human_bytes(MOST_MEMORY)} of memory, which no machine "
            "has; ask for less, such as a smaller context"
        )


def _whole(claim: ResourceClaim) -> bool:
    """Tell whether the pieces of a claim, if it has any, add up to it."""
    if not claim.pieces:
        return (claim.piece, claim.each, claim.last, claim.partial) == (0, 0, 0, False)
    if claim.gpus < 1 or claim.piece < 1 or min(claim.pieces, claim.each, claim.last) < 0:
        return False
    return claim.vram == claim.gpus * (claim.each + -(-claim.pieces // claim.gpus) * claim.piece + claim.last)


def _trouble(question: Question, error: Exception, expires: float) -> Answer:
    return Answer(refused_by="trouble", reason=f"{question.backend}: {error}", expires=expires)
