"""llama-box's command lines: of a server, of a server that uses GPUs of other workers, and of what lends those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from gpustack.plugin import GpuDevice, LaunchPlan, LaunchRequest, Member, ModelFacts, Probe, Refused
from gpustack.plugin.memory.llama import (
    Engine,
    Flags,
    Parameters,
    Shape,
    is_whole_input,
    with_companions,
)

#: How its memory differs from that of llama.cpp's own server, which is newer.
ENGINE = Engine(parallel_inputs=1, shares=True, kept_prompts=0, checkpoints=False, maps=False)

_RPC = "the GPUs of other workers"
FLAGS = Flags(
    ours={
        **dict.fromkeys(
            (
                *("--rpc-server-host", "--rpc-server-port", "--rpc-server-main-gpu", "--rpc-server-threads"),
                *("--rpc-server-reserve-memory", "--rpc-server-cache", "--rpc-server-cache-dir"),
            ),
            _RPC,
        ),
        "--images": "what the model is for",
        "--rerank": "what the model is for",
        "--reranking": "what the model is for",
    },
    values={"--lora-scaled": 2, "--control-vector-scaled": 2, "--control-vector-layer-range": 2},
    # It takes what follows a flag as one word for a flag that it does not know, and goes on without it.
    equals=False,
)
#: All layers, where nobody knows how many there are.
_ALL_LAYERS = 999


def parameters_of(model: ModelFacts, items: Sequence[str], path: str) -> Parameters:
    """Return the user's parameters, with the files beside the model at ``path``. Raises Refused."""
    return with_companions(model, Parameters.parse(items, FLAGS), path)


def is_painter(model: ModelFacts) -> bool:
    """Tell whether it makes pictures."""
    return model.categories[:1] == ("image",)


def server(request: LaunchRequest, lent: Sequence[Member] = (), shares: Sequence[int] = ()) -> LaunchPlan:
    """Return the server's process. ``lent`` are the members whose GPUs it uses besides its own, before those.

    ``shares`` are those of the model that each GPU gets, in that order.
    """
    model = request.model
    parameters = parameters_of(model, request.parameters, request.model_path)
    shape = Shape.of(model, parameters, ENGINE)
    argv = [
        *(request.command, "--host", request.host, "--port", str(request.port)),
        *("--model", request.model_path, "--alias", request.model_name, "--metrics"),
        *(_picture(request, shape) if is_painter(model) else _language(model, parameters, shape)),
        *_gpus(request, lent, shares),
        *("--no-mmap", "--no-warmup"),
        *parameters.without("--ctx-size", "--no-mmproj"),
    ]
    return LaunchPlan(argv=tuple(argv), env=_libraries(request.command))


def lender(request: LaunchRequest, member: Member) -> LaunchPlan:
    """Return the process of a member that lends its GPU to the leader. Raises Refused when it has no port for it."""
    if not member.ports:
        raise Refused(f"member {member.number} has no port for its RPC server")
    argv = [
        *(request.command, "--rpc-server-host", member.host, "--rpc-server-port", str(member.ports[0])),
        # Of those that it sees; -1 lends the processor and its memory.
        *("--rpc-server-main-gpu", "0" if member.devices else "-1"),
    ]
    ready = Probe(path="", address=(member.host, member.ports[0]))
    return LaunchPlan(argv=tuple(argv), env=_libraries(request.command), ready=ready)


def _language(model: ModelFacts, parameters: Parameters, shape: Shape) -> tuple[str, ...]:
    sizes = ("--parallel", str(shape.parallel), "--ctx-size", str(shape.total))
    if not is_whole_input(model):
        projected = ("--max-projected-cache", "10") if parameters.has("--mmproj") else ()
        return ("--embeddings", *sizes, *projected)
    rerank = ("--rerank",) if model.categories[0] == "reranker" else ()
    return (
        *("--embeddings", *rerank, *sizes),
        *("--batch-size", str(shape.batch), "--ubatch-size", str(shape.ubatch)),
    )


def _picture(request: LaunchRequest, shape: Shape) -> tuple[str, ...]:
    # All its parts on the first GPU, which the claim is of.
    split = ("--tensor-split", "1") if request.devices else ()
    return ("--images", "--image-vae-tiling", "--parallel", str(shape.parallel), *split)


def _gpus(request: LaunchRequest, lent: Sequence[Member], shares: Sequence[int]) -> tuple[str, ...]:
    if is_painter(request.model):
        return ()
    devices = len(request.devices) + len(lent)
    if not devices:
        return ("--gpu-layers", "0")
    layers = sum(request.pieces) or (request.model.layers + 1 if request.model.layers else _ALL_LAYERS)
    found = ["--gpu-layers", str(layers)]
    if lent:
        found += ["--rpc", ",".join(_address(each) for each in lent)]
    if devices > 1:
        parts = shares or request.pieces or (1,) * devices
        found += ["--tensor-split", ",".join(map(str, parts))]
    return tuple(found)


def _address(member: Member) -> str:
    if not member.ports:
        raise Refused(f"member {member.number} has no port for its RPC server")
    host = f"[{member.host}]" if ":" in member.host else member.host
    return f"{host}:{member.ports[0]}"


def _libraries(command: str) -> dict[str, str]:
    """Return where the libraries of a dynamic build are; the worker adds where it has others.

    A bare name is a program of an image, which knows where its own libraries are.
    """
    program = PurePath(command)
    return {"LD_LIBRARY_PATH": str(program.parent)} if program.is_absolute() else {}


def devices_of(members: Sequence[Member]) -> list[GpuDevice]:
    """Return the GPUs in the order in which the leader sees them: one of each other member, then its own."""
    leader, *others = members
    return [*(each.devices[0] for each in others if each.devices), *leader.devices]
