"""SGLang's command lines, of one worker and of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpustack.plugin import EstimateRequest, GpuDevice, LaunchPlan, LaunchRequest, Refused, ResourceClaim
from gpustack.plugin.memory import Division, division_of
from gpustack.plugin.memory.division import is_even
from gpustack_backends.sglang import versions
from gpustack_backends.sglang.memory import claim_on, need_of, shape_of, static_part
from gpustack_backends.sglang.parameters import PARALLEL, Asked

_ENV = {"OMP_NUM_THREADS": "1", "SAFETENSORS_FAST_GPU": "1"}
#: Its processes talk to each other, and to nobody else.
_ALONE = {"SGLANG_HOST_IP": "127.0.0.1", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}


def launch(request: LaunchRequest) -> LaunchPlan:
    """Return the process of an instance on one worker."""
    asked = Asked.of(request.parameters, request.model, request.version)
    if not request.devices:
        raise Refused("SGLang needs a GPU")
    division = division_of(request.model, asked.division, len(request.devices))
    return _Line(request, asked, division, request.devices).plan(_ALONE)


def launch_member(request: LaunchRequest) -> LaunchPlan:
    """Return the process of one member: number 0 answers requests, the others work for it."""
    asked = Asked.of(request.parameters, request.model, request.version)
    own, leader = request.members[request.member], request.members[0]
    division, _ = division_over(asked, request, [each.devices for each in request.members])
    if not leader.ports:
        raise Refused("the members of this instance have no ports to find each other by")
    network = {"SGLANG_HOST_IP": own.host}
    if name := request.interface or own.interface:
        # The = makes NCCL take just this one, not all whose names begin so.
        network |= {"NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name}
    host = f"[{leader.host}]" if ":" in leader.host else leader.host
    more = ["--nnodes", str(len(request.members)), "--node-rank", str(own.number)]
    more += ["--dist-init-addr", f"{host}:{leader.ports[0]}"]
    devices = tuple(device for each in request.members for device in each.devices)
    return _Line(request, asked, division, devices).plan(network, *more)


def members(request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]) -> list[ResourceClaim]:
    """Return the claim of each member."""
    asked = Asked.of(request.parameters, request.model, request.version)
    division, count = division_over(asked, request, workers)
    devices = tuple(device for each in workers for device in each[:count])
    whole = claim_on(request, asked, division, devices)
    one = replace(whole, ram=-(-whole.ram // len(workers)), vram=whole.vram // len(workers), gpus=count)
    return [one] * len(workers)


def division_over(
    asked: Asked, request: EstimateRequest | LaunchRequest, workers: Sequence[Sequence[GpuDevice]]
) -> tuple[Division, int]:
    """Return how the model is divided over ``workers``, and how many GPUs of each it takes: of all as many.

    Raises Refused when it cannot be.
    """
    fewest = min((len(each) for each in workers), default=0)
    if not fewest:
        raise Refused("SGLang spans workers with GPUs only")
    if (division := asked.division) is not None:
        if division.data > 1:
            raise Refused(
                "--dp-size is for one worker here, unless attention is divided so (--enable-dp-attention); instances on "
                "several serve more requests (--replicas)"
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


@dataclass(frozen=True, slots=True)
class _Line:
    request: LaunchRequest
    asked: Asked
    division: Division
    devices: tuple[GpuDevice, ...]

    def plan(self, network: dict[str, str], *more: str) -> LaunchPlan:
        number = versions.number(self.request.version)
        serve = ("serve",) if number >= versions.SERVE else ()
        argv = (self.request.command, *serve, *self._ours(number), *more, *self.asked.flags.items)
        return LaunchPlan(argv=argv, env=_ENV | network)

    def _ours(self, number: versions.Number) -> Iterator[str]:
        request, flags = self.request, self.asked.flags
        yield from ("--model-path", request.model_path, "--served-model-name", request.model_name)
        yield from ("--host", request.host, "--port", str(request.port), "--enable-metrics")
        yield "--enable-cache-report"
        if number >= versions.DEFAULT_USAGE:
            yield "--stream-response-default-include-usage"
        if request.model.categories[:1] in (("embedding",), ("reranker",)) and not flags.has(
            "--is-embedding"
        ):
            yield "--is-embedding"
        shape = shape_of(request.model, self.asked, self.division, self.devices, request.version)
        if shape.context < request.model.context_length and not flags.has("--context-length"):
            yield from ("--context-length", str(shape.context))
        if self.division.gpus > 1 and not flags.has(*PARALLEL):
            yield from ("--tp-size", str(self.division.tensor))
            if self.division.pipeline > 1:
                yield from ("--pp-size", str(self.division.pipeline))
        if flags.has("--lora-paths") and not flags.has("--enable-lora"):
            yield "--enable-lora"
        if self.asked.static is not None:
            return
        need = need_of(request.model, self.asked, shape, self.division, self.devices, request.version)
        yield from ("--mem-fraction-static", f"{static_part(need):g}")
        if self.asked.tokens is None and need.cache:
            yield from ("--max-total-tokens", str(shape.tokens))
