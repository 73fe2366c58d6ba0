"""One model on several workers: vLLM's own way from 0.11.1 on, Ray before it and where the user wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpustack.plugin import EstimateRequest, GpuDevice, LaunchPlan, LaunchRequest, Refused, ResourceClaim
from gpustack.plugin.memory import Division
from gpustack.plugin.memory.division import is_even
from gpustack_backends.vllm import versions
from gpustack_backends.vllm.command import Line, together
from gpustack_backends.vllm.memory import claim_on
from gpustack_backends.vllm.parameters import Asked

_EXECUTOR = "--distributed-executor-backend"


def division_over(
    asked: Asked, request: EstimateRequest | LaunchRequest, workers: Sequence[Sequence[GpuDevice]]
) -> tuple[Division, int]:
    """Return how the model is divided over ``workers``, and how many GPUs of each it takes: of all as many.

    Within a worker layers are cut, between workers they are dealt out, for that needs the slower network least. Raises
    Refused when they cannot be.
    """
    fewest = min((len(each) for each in workers), default=0)
    if not fewest:
        raise Refused("vLLM spans workers with GPUs only")
    if (division := asked.division) is not None:
        if division.data > 1:
            raise Refused(
                "--data-parallel-size is for one worker here; instances on several serve more requests (--replicas)"
            )
        if division.gpus % len(workers) or division.gpus // len(workers) > fewest:
            raise Refused(
                f"{division.gpus} GPUs cannot be taken evenly of {len(workers)} workers with {fewest} GPUs or more"
            )
        return division, division.gpus // len(workers)
    count = next(each for each in range(fewest, 0, -1) if is_even(request.model, each))
    division = Division(tensor=count, pipeline=len(workers))
    if not (verdict := division.fits(request.model)).ok:
        raise Refused(verdict.reason)
    return division, count


def members(request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]) -> list[ResourceClaim]:
    """Return the claim of each member."""
    asked = Asked.of(request.parameters, request.model, request.version)
    by_ray(request)  # raises Refused before anything is placed
    division, count = division_over(asked, request, workers)
    devices = tuple(device for each in workers for device in each[:count])
    whole = claim_on(request, asked, division, devices)
    one = replace(whole, ram=-(-whole.ram // len(workers)), vram=whole.vram // len(workers), gpus=count)
    return [one] * len(workers)


def by_ray(request: LaunchRequest | EstimateRequest) -> bool:
    """Tell whether Ray brings the members together. Raises Refused for what vLLM does not know."""
    asked = Asked.of(request.parameters, request.model, request.version)
    wanted = asked.flags.text(_EXECUTOR)
    native = versions.number(request.version) >= versions.NATIVE_NODES
    if wanted == "mp" and not native:
        since = versions.shown(versions.NATIVE_NODES)
        raise Refused(f"{_EXECUTOR} mp spans workers from vLLM {since} on, and this is {request.version}")
    if wanted not in (None, "mp", "ray"):
        raise Refused(f"{_EXECUTOR} {wanted} does not span workers; leave it out, or take mp or ray")
    return wanted == "ray" or not native


def launch_member(request: LaunchRequest) -> LaunchPlan:
    """Return the process of one member; with Ray only the leader has one."""
    asked = Asked.of(request.parameters, request.model, request.version)
    own, leader = request.members[request.member], request.members[0]
    division, _ = division_over(asked, request, [each.devices for each in request.members])
    devices = tuple(device for each in request.members for device in each.devices)
    line = Line(request, asked, division, devices)
    network, more = together(request, own), list[str]()
    if by_ray(request):
        if own.number:
            # Ray's node alone runs there, in this environment, and starts vLLM's processes.
            return replace(line.plan(network=network), argv=(request.command,))
        if not asked.flags.has(_EXECUTOR):
            more += [_EXECUTOR, "ray"]
        return line.plan(*more, network=network)
    if not leader.ports:
        raise Refused("the members of this instance have no ports to find each other by")
    more += ["--nnodes", str(len(request.members)), "--node-rank", str(own.number)]
    more += ["--master-addr", leader.host, "--master-port", str(leader.ports[0])]
    if len(own.ports) > 1:
        # The first of those that its processes open as they need them.
        network["VLLM_PORT"] = str(own.ports[1])
    return line.plan(*more, *(("--headless",) if own.number else ()), network=network)
