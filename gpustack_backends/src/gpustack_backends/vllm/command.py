"""vLLM's command line and environment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gpustack.plugin import GpuDevice, LaunchPlan, LaunchRequest, Member, Refused
from gpustack.plugin.memory import Division, division_of, memory_fraction
from gpustack_backends.vllm import versions
from gpustack_backends.vllm.memory import cache_space, is_pooling, need_of, shape_of
from gpustack_backends.vllm.parameters import PARALLEL, Asked

#: Ranks that adapters may have; vLLM takes no other as the highest.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: Its processes talk to each other, and to nobody else.
_ALONE = {"VLLM_HOST_IP": "127.0.0.1", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
#: Nobody is told what is served here.
_ENV = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}


@dataclass(frozen=True, slots=True)
class Line:
    """One command line in the making."""

    request: LaunchRequest
    asked: Asked
    division: Division
    devices: tuple[GpuDevice, ...]

    @classmethod
    def of(cls, request: LaunchRequest) -> Line:
        """Take a request for an instance on one worker. Raises Refused for parameters that can never work."""
        asked = Asked.of(request.parameters, request.model, request.version)
        division = (
            division_of(request.model, asked.division, len(request.devices))
            if request.devices
            else Division()
        )
        return cls(request, asked, division, request.devices)

    def plan(self, *more: str, network: dict[str, str] | None = None) -> LaunchPlan:
        """Return the whole; ``more`` goes before the user's own parameters.

        ``network`` is the environment for talking to other workers; without it processes talk to each other alone.
        """
        argv = (
            *(self.request.command, "serve", self.request.model_path),
            *self._ours(),
            *more,
            *self.asked.flags.items,
        )
        return LaunchPlan(argv=argv, env=_ENV | self._processor() | (_ALONE if network is None else network))

    def _ours(self) -> Iterator[str]:
        request, number = self.request, versions.number(self.request.version)
        yield from ("--host", request.host, "--port", str(request.port))
        yield from ("--served-model-name", request.model_name)
        if number >= versions.FORCED_USAGE:
            # Requests are metered by what the engine says at their end, whether the client asks for it or not.
            yield "--enable-force-include-usage"
        yield "--enable-prompt-tokens-details"
        if number >= versions.QUIET_PATHS:
            yield from ("--disable-access-log-for-endpoints", "/health,/metrics")
        yield from self._purpose(number)
        yield from self._sizes(number)
        yield from self._adapters()

    def _purpose(self, number: versions.Number) -> Iterator[str]:
        if not is_pooling(self.request.model) or self.asked.flags.has("--runner", "--task"):
            return
        if number >= versions.RUNNER:
            yield from ("--runner", "pooling")
        else:
            yield from ("--task", "embed" if self.request.model.categories[0] == "embedding" else "score")

    def _sizes(self, number: versions.Number) -> Iterator[str]:
        flags, version = self.asked.flags, self.request.version
        model, devices = self.request.model, self.devices
        shape = shape_of(model, self.asked, self.division, devices, version)
        if shape.context < model.context_length and not flags.has("--max-model-len"):
            # The whole of it is vLLM's to find: files beside config.json may name less.
            yield from ("--max-model-len", str(shape.context))
        if not devices:
            return
        if self.division.gpus > 1 and not flags.has(*PARALLEL):
            yield from ("--tensor-parallel-size", str(self.division.tensor))
            if self.division.pipeline > 1:
                yield from ("--pipeline-parallel-size", str(self.division.pipeline))
        if self.asked.share is not None:
            return
        need = need_of(model, self.asked, shape, self.division, devices, version)
        total = min(each.memory_total for each in devices)
        # What was measured may have raised the claim; it is what is free there.
        share = max(need.vram, self.request.claim.vram // max(1, self.request.claim.gpus))
        yield from ("--gpu-memory-utilization", f"{memory_fraction(min(share, total), total):g}")
        if number >= versions.CACHE_BYTES and self.asked.cache_bytes is None and need.cache:
            yield from ("--kv-cache-memory-bytes", str(need.cache))

    def _adapters(self) -> Iterator[str]:
        flags = self.asked.flags
        if not flags.has("--lora-modules"):
            return
        if not flags.has("--enable-lora"):
            yield "--enable-lora"
        highest = max((each.rank for each in self.request.adapters), default=0)
        if not highest or flags.has("--max-lora-rank"):
            return
        rank = next((each for each in _RANKS if each >= highest), None)
        if rank is None:
            raise Refused(f"an adapter has rank {highest}, and vLLM takes {_RANKS[-1]} at most")
        yield from ("--max-lora-rank", str(rank))

    def _processor(self) -> dict[str, str]:
        if self.devices:
            return {}
        space = cache_space(self.request.model, self.asked, self.request.version)
        env = {"VLLM_CPU_KVCACHE_SPACE": str(space)}
        if versions.number(self.request.version) >= versions.UNBOUND:
            # It would take the same cores for itself as every other instance of this machine does.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        return env


def together(request: LaunchRequest, own: Member) -> dict[str, str]:
    """Return the environment of a process that talks to those of other workers."""
    env = {"VLLM_HOST_IP": own.host}
    if name := request.interface or own.interface:
        # The = makes NCCL take just this one, not all whose names begin so.
        env |= {"NCCL_SOCKET_IFNAME": f"={name}", "GLOO_SOCKET_IFNAME": name, "TP_SOCKET_IFNAME": name}
    return env
