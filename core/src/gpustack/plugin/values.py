"""The values that cross between GPUStack and its plugins.

All are frozen and made by keyword; they grow by new fields with a default, so a plugin built today runs
tomorrow. Sizes are bytes, times are seconds, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

#: What a model is for; decides which of the inference paths it serves.
Category = Literal["llm", "embedding", "reranker", "image", "speech_to_text", "text_to_speech", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Yes, or no with a reason that a user can act on."""

    ok: bool
    reason: str = ""

    @classmethod
    def yes(cls) -> Self:
        """Return agreement."""
        return cls(ok=True)

    @classmethod
    def no(cls, reason: str) -> Self:
        """Return a refusal; ``reason`` is shown to the user as it is."""
        return cls(ok=False, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """How gladly a backend is taken for a model that names none, and why: a few words, as in ``it is made for such``."""

    #: The highest one is asked first; below 0: only for models that name the backend.
    rank: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the headers of a model's files say, read before anything starts. Unknown numbers are 0."""

    format: Literal["gguf", "safetensors", "unknown"]
    #: Absolute path of what an engine is pointed at: the (first) GGUF file, or the directory.
    path: str
    #: Bytes of all weight files together.
    weight_bytes: int
    #: As the model names it: ``llama``, ``qwen2``, ``bert``, …
    architecture: str = ""
    name: str = ""
    quantization: str = ""
    parameters: int = 0
    #: Longest context the model was trained for, in tokens.
    context_length: int = 0
    layers: int = 0
    hidden_size: int = 0
    attention_heads: int = 0
    #: Key/value heads per layer (fewer than attention heads with grouped queries).
    kv_heads: int = 0
    #: Size of one head's key and of its value; they differ in a few models.
    key_length: int = 0
    value_length: int = 0
    vocabulary: int = 0
    #: What the model can do; the first is the main one.
    categories: tuple[Category, ...] = ("unknown",)
    has_chat_template: bool = False

    # Weights, in bytes of tensors; headers of files are not among them.
    tensor_bytes: int = 0
    #: By element type, as in ``(("BF16", 16060522496),)``; the largest first.
    bytes_by_type: tuple[tuple[str, int], ...] = ()
    #: Of each weight file, in their order.
    shard_bytes: tuple[int, ...] = ()
    #: Of each layer.
    layer_bytes: tuple[int, ...] = ()
    #: Of the table of token embeddings, and of the output head; the head is 0 where it is the same table.
    embedding_bytes: int = 0
    output_bytes: int = 0
    #: Of all experts that a router chooses among.
    expert_bytes: int = 0
    #: Of the parts that see and hear, when they lie in the same files.
    vision_bytes: int = 0
    #: Other model files beside a GGUF file, by name: projectors (mmproj), adapters, drafts.
    companions: tuple[tuple[str, int], ...] = ()

    # What a token leaves behind.
    #: Key/value heads of each layer where they differ; 0 for a layer without keys. Else :attr:`kv_heads` is for all.
    kv_heads_by_layer: tuple[int, ...] = ()
    #: Tokens that a layer with a sliding window looks back; 0: all layers see the whole context.
    sliding_window: int = 0
    #: How many layers have such a window.
    window_layers: int = 0
    #: The shape of their cache where it is another than that of the rest; 0: the same.
    window_kv_heads: int = 0
    window_key_length: int = 0
    window_value_length: int = 0
    #: Layers that keep a state of fixed size instead of keys (Mamba, linear attention).
    state_layers: int = 0
    #: Elements of the states of one sequence, over all layers.
    state_elements: int = 0
    #: Rank of the compressed vector and size of the rotary part that multi-head latent attention keeps for a token,
    #: the same for all heads; then :attr:`key_length` is their sum and :attr:`value_length` 0.
    latent_rank: int = 0
    rotary_length: int = 0
    #: Size of one head outside the compressed space, without the rotary part.
    latent_head_length: int = 0
    #: Size of the key that an index for sparse attention keeps besides.
    index_length: int = 0

    # What computing takes.
    #: Width of the feed-forward part; of one expert, and of those that every token passes, together.
    inner_size: int = 0
    expert_inner_size: int = 0
    shared_inner_size: int = 0
    experts: int = 0
    #: Experts that a token passes.
    experts_used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What people are told about a model before they deploy it."""

    #: A short name in plain words, as in ``GPUStack demo``.
    title: str
    #: One sentence: what it is, and what it is not.
    summary: str
    #: What it can do; the first is the main one.
    categories: tuple[Category, ...]
    #: Weights of the model, a count; 0 is unknown.
    parameters: int = 0
    #: Longest context in tokens; 0 is unknown.
    context_length: int = 0
    #: SPDX expression of the weights' licence, as in ``Apache-2.0``; empty is unknown.
    license: str = ""
    #: Where more is said: a URL; empty when there is none.
    home: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """One accelerator of a worker. ``uuid`` stays the same over restarts; ``index`` may not."""

    uuid: str
    index: int
    vendor: str
    name: str
    memory_total: int
    #: Kind of device as engines call it: ``cuda``, ``rocm``, ``npu``, ``mps``, …
    type: str = ""
    driver_version: str = ""
    runtime_version: str = ""
    compute_capability: str = ""
    #: The family of the chip, as in ``Hopper``.
    architecture: str = ""
    #: The number of the physical device as its driver counts; None where that is ``index``.
    device_index: int | None = None
    #: The uuid of the physical device that this one is a slice of (MIG); empty for a whole one.
    parent_uuid: str = ""
    cores: int = 0
    #: The most that it may draw; 0 is unknown.
    power_limit_watts: float = 0.0
    #: The memory node of the machine that it hangs on; None where it hangs on several, or nobody knows.
    numa_node: int | None = None
    #: Its place in the machine, as names of what it hangs below, widest first: two devices are the closer the more of
    #: the leading names they share. Empty is unknown.
    topology: tuple[str, ...] = ()
    #: Devices of a machine with the same one reach each other, all of them, over fast links of their own (NVLink).
    link_group: str = ""
    #: It uses the processor's memory, and has none of its own.
    unified_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that uses an accelerator, by the number that the driver knows it by."""

    pid: int
    #: Bytes of the accelerator's memory; None where the driver does not tell.
    memory_used: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUsage:
    """What one accelerator does now. ``utilization`` and temperature are percent and degrees Celsius."""

    memory_used: int
    utilization: float = 0.0
    temperature: float = 0.0
    power_watts: float = 0.0
    #: All that use it, each once; None where the driver does not tell.
    processes: tuple[GpuProcess, ...] | None = None
    #: Why nothing more is to be started on it, each in a few words for people; empty for a healthy one.
    faults: tuple[str, ...] = ()
    #: Errors of its memory that could not be corrected, since the driver was loaded.
    memory_errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """One mounted file system, in bytes."""

    mount_point: str
    mount_from: str
    total: int
    used: int
    free: int
    #: What an ordinary user may still take.
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemReading:
    """A machine's processor and memory now, in bytes and percent; limits of a container count as its size."""

    cores: int
    ram_total: int
    ram_used: int
    cpu_utilization: float = 0.0
    swap_total: int = 0
    swap_used: int = 0
    filesystems: tuple[Filesystem, ...] = ()
    #: GPUs use the same memory as the processor (Apple, DGX Spark).
    unified_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What a container's runtime is asked for, as Docker and Podman take it (``--gpus``, ``DeviceRequests``)."""

    #: As in ``nvidia``.
    driver: str
    ids: tuple[str, ...]
    capabilities: tuple[str, ...] = ("gpu",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceExposure:
    """How chosen devices are shown to a process and kept from it otherwise."""

    env: Mapping[str, str] = field(default_factory=dict)
    #: For a container, in which ``env`` is set as well; none for no device.
    requests: tuple[DeviceRequest, ...] = ()
    #: For a container: device files that it gets, as in ``/dev/kfd``, where the vendor's runtime needs no request.
    device_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """The machine an engine is to run on."""

    #: ``linux``, ``darwin`` or ``windows``.
    system: str
    #: ``x86_64``, ``aarch64``, …
    machine: str
    #: Kinds of accelerator there (``cuda``, ``rocm``, …); empty on a machine without.
    accelerators: tuple[str, ...] = ()
    #: The versions of their runtimes by kind, as in ``(("cuda", "12.8"),)``; of several devices' the lowest by text.
    runtimes: tuple[tuple[str, str], ...] = ()
    #: What the devices are called, as in ``Ascend 310P3``.
    chips: tuple[str, ...] = ()

    @classmethod
    def of(cls, system: str, machine: str, devices: Iterable[GpuDevice]) -> Self:
        """Return the platform that a machine with ``devices`` is."""
        devices = [each for each in devices if each.type]
        told = sorted(
            ((each.type, each.runtime_version) for each in devices if each.runtime_version), reverse=True
        )
        return cls(
            system=system,
            machine=machine,
            accelerators=tuple(sorted({each.type for each in devices})),
            runtimes=tuple(sorted(dict(told).items())),
            chips=tuple(sorted({each.name for each in devices if each.name})),
        )

    def runtime(self, kind: str) -> str:
        """Return the version of the runtime of a kind of accelerator; empty when nobody knows."""
        return dict(self.runtimes).get(kind, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceClaim:
    """Memory that an instance needs, in bytes."""

    ram: int
    #: GPU memory; 0 runs on the CPU.
    vram: int = 0
    #: Number of GPUs that ``vram`` is spread over evenly; 0 on the CPU. With ``pieces`` the most that may be used.
    gpus: int = 0
    #: The part of ``ram`` that is pages of mapped files which the engine goes on using. More of them may be in memory
    #: than that, as a cache that the system takes back; what is measured counts no more of them than this.
    mapped: int = 0
    #: So many pieces of ``piece`` bytes may be divided as GPUs have room, unevenly too: each GPU that gets any also gives
    #: ``each`` bytes, and the GPU with the last piece ``last`` bytes more. 0: evenly. See :meth:`in_pieces`.
    pieces: int = 0
    piece: int = 0
    each: int = 0
    last: int = 0
    #: A part of the model stays in RAM for want of room on GPUs: better than the CPU alone, worse than GPUs alone.
    partial: bool = False

    @classmethod
    def in_pieces(
        cls,
        count: int,
        piece: int,
        *,
        gpus: int,
        ram: int,
        each: int = 0,
        last: int = 0,
        mapped: int = 0,
        partial: bool = False,
    ) -> ResourceClaim:
        """Return a claim on up to ``gpus`` GPUs for ``count`` pieces of ``piece`` bytes, in order of their indexes.

        ``vram`` is what they take evenly divided, where each GPU has room for the largest share.
        """
        gpus = min(gpus, count)
        share = each + -(-count // gpus) * piece + last
        return cls(
            ram=ram,
            vram=gpus * share,
            gpus=gpus,
            mapped=mapped,
            pieces=count,
            piece=piece,
            each=each,
            last=last,
            partial=partial,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """A model with the parameters it is to run with, on these devices (none: on the CPU)."""

    model: ModelFacts
    version: str
    parameters: tuple[str, ...] = ()
    devices: tuple[GpuDevice, ...] = ()
    #: The machine; None where that is not known.
    platform: Platform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Parameters of a model under which it takes less memory."""

    #: What changes, as in "a context of 4096 tokens".
    what: str
    #: All of the parameters, changed and unchanged.
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipxPackage:
    """An engine that pipx installs into an environment of its own."""

    package: str
    version: str
    #: The console script that the package brings.
    command: str
    #: The package's wheel file when no index carries it; its file name is ``wheel_name``.
    wheel: bytes | None = None
    wheel_name: str = ""
    #: Arguments that make the installed command prove itself: it must exit with 0 and name its version.
    verify: tuple[str, ...] = ("--version",)
    #: More packages for the same environment, as pip's requirements name them.
    requirements: tuple[str, ...] = ()
    #: The lock of this version: lines of a pip constraints file, with hashes where they are known; empty for none.
    constraints: str = ""
    #: Modules that must import in the environment before the engine counts as installed.
    imports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseBinary:
    """An engine that comes as an archive with an executable in it."""

    url: str
    version: str
    #: Path of the executable inside the archive. Libraries that it needs may lie beside it.
    executable: str
    #: Of the archive, in hexadecimal; empty where the plugin does not know it.
    sha256: str = ""
    #: URL of a list, lines of ``SHA256  NAME``, that has the archive's where ``sha256`` does not say it. It may be that
    #: there is none: then nobody can tell whether the archive was changed.
    checksums: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerImage:
    """An engine that comes as a container image. One that is named without a registry comes from the configured one."""

    image: str
    version: str
    #: The program in it that the command line begins with; empty: the image's own entry point, which gets the rest.
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnWorker:
    """An engine that is on the worker already: its operator put it there, and nothing is fetched."""

    version: str


Artifact = PipxPackage | ReleaseBinary | ContainerImage | OnWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process of an instance that spans several workers; number 0 leads, and is the one that answers requests."""

    number: int
    #: An address by which the workers of the others reach it.
    host: str
    #: Ports of that worker that are this member's alone: for what the members say to each other, never for requests.
    ports: tuple[int, ...] = ()
    devices: tuple[GpuDevice, ...] = ()
    #: The network interface that has :attr:`host`, as in ``eth0``; empty is unknown.
    interface: str = ""
    #: What it was given there.
    claim: ResourceClaim = field(default_factory=lambda: ResourceClaim(ram=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """How the members of one instance come together; see :meth:`ArrangesMembers.arrangement`."""

    #: How many ports each member gets for itself.
    ports: int = 8
    #: Whose processes start first: with ``leader`` the others start once its process is there, with ``followers`` it
    #: starts once all of them are ready.
    first: Literal["any", "leader", "followers"] = "any"
    #: They run in a Ray of their own: its head is beside the leader, and no member but the leader has another process
    #: than Ray's, which gets the environment of the member's plan. The leader's process starts once all nodes are there,
    #: and finds them by ``RAY_ADDRESS``.
    ray: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter that is loaded beside a model, as its own files say."""

    path: str
    #: The highest that any of its matrices has.
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What to start: given to :meth:`InferenceBackend.launch`, which turns it into a command line."""

    instance_name: str
    #: The name under which requests ask for the model.
    model_name: str
    model: ModelFacts
    #: Path of the engine's executable; in a container its name there, or empty for the image's own entry point.
    command: str
    version: str
    #: Loopback address and port to listen on; nothing else may be opened.
    host: str
    port: int
    #: Absolute path of what to load.
    model_path: str
    #: The user's own engine parameters, one per item; they come last so that they win.
    parameters: tuple[str, ...] = ()
    claim: ResourceClaim = field(default_factory=lambda: ResourceClaim(ram=0))
    devices: tuple[GpuDevice, ...] = ()
    #: How many pieces of the claim each of the devices got; empty when it is spread evenly.
    pieces: tuple[int, ...] = ()
    #: All members of an instance that spans workers, the leader first; empty for one that does not.
    members: tuple[Member, ...] = ()
    #: Which of them this launch is for.
    member: int = 0
    #: The network interface by which this worker's processes talk to those of others; empty leaves it to the engine.
    interface: str = ""
    #: The adapters that the parameters name; see :class:`UsesAdapters`.
    adapters: tuple[Adapter, ...] = ()
    #: The command line that users describe in place of the backend's own, with placeholders; see
    #: :mod:`gpustack.plugin.commands`. Empty nearly always: what a backend does not look at, the worker sees to.
    run_command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How the worker learns that an engine answers: GET ``path``, where a status below 300 means yes.

    Of an instance that spans workers only the leader answers requests: the others are ready once ``address`` takes
    connections, and without one as soon as they run.
    """

    path: str = "/health"
    #: Host and port on this machine.
    address: tuple[str, int] | None = None
    #: Seconds one attempt may take.
    timeout: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One process: its command line, what it sees, and how its readiness is known."""

    argv: tuple[str, ...]
    #: Added to a small clean environment; the user's own variables for the model win over these.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Working directory; None uses the instance's own scratch folder.
    cwd: str | None = None
    ready: Probe = field(default_factory=Probe)
