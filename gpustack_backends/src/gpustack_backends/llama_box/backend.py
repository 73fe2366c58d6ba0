"""The llama-box backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpustack.plugin import (
    Arrangement,
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    Platform,
    Preference,
    Refused,
    ReleaseBinary,
    ResourceClaim,
    Suggestion,
    Verdict,
)
from gpustack.plugin.llama_logs import failure_in
from gpustack.plugin.memory.llama import Case, claim, suggestions, that_help, ways
from gpustack_backends.llama_box.command_line import (
    ENGINE,
    devices_of,
    is_painter,
    lender,
    parameters_of,
    server,
)
from gpustack_backends.llama_box.releases import VERSION, release
from gpustack_backends.llama_box.settings import LlamaBoxSettings
from gpustack_backends.llama_box.several import claims_of_members, shares_of

_MIB = 1 << 20
_CATEGORIES = ("llm", "embedding", "reranker", "image")
#: Beside the weights, a model that makes pictures takes this for one of 1024 by 1024 at a time, its decoder in tiles.
_PICTURE = 2048 * _MIB
#: The process itself.
_PROCESS = 256 * _MIB
_METRICS = {
    "llamabox:kv_cache_usage_ratio": "kv_cache_usage_ratio",
    "llamabox:tokens_prefill_total": "prompt_tokens",
    "llamabox:tokens_decode_total": "generation_tokens",
    "llamabox:tokens_drafted_total": "spec_decode_draft_tokens",
    "llamabox:tokens_drafted_accepted_total": "spec_decode_accepted_tokens",
}


class LlamaBox(InferenceBackend[LlamaBoxSettings]):
    """Serves GGUF files: chat, completion and vision, embeddings, reranking, and pictures.

    Its versions are those of its releases, its parameters its own flags. All requests of an instance share the context
    that ``--ctx-size`` gives. An instance may use GPUs of other workers, one of each.
    """

    name = "llama-box"
    settings_type = LlamaBoxSettings
    default_version = VERSION

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree to GGUF files, with or without GPUs."""
        if model.format != "gguf":
            return Verdict.no(f"llama-box reads GGUF files; {model.path} is none")
        if not set(model.categories[:1]) & set(_CATEGORIES):
            what = model.categories[0] if model.categories else "unknown"
            return Verdict.no(
                f"llama-box serves {', '.join(_CATEGORIES)} models; {model.path} is of kind {what}"
            )
        return Verdict.yes()

    def preference(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Preference:
        """Leave to llama-cpp what both can: its llama.cpp is newer."""
        if is_painter(model):
            return Preference(rank=10, reason="it makes pictures with GGUF models")
        return Preference(
            rank=-1,
            reason="llama-cpp serves such files with a newer llama.cpp, so it is used when it is named "
            "(--backend llama-box)",
        )

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return weights, KV cache, compute buffers and the process; on GPUs what is offloaded there."""
        case = self._case(request)
        if is_painter(request.model):
            return _painter(case, len(request.devices))
        return claim(case, len(request.devices))

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return the fewest GPUs first, then several with shares as they have room, then with a part in RAM."""
        if is_painter(request.model) or not request.devices:
            return (self.estimate(request),)
        return ways(self._case(request), len(request.devices))

    def _case(self, request: EstimateRequest) -> Case:
        parameters = parameters_of(request.model, request.parameters, request.model.path)
        return Case(request.model, parameters, request.version, ENGINE)

    def suggestions(self, request: EstimateRequest) -> Sequence[Sequence[Suggestion]]:
        """Return shorter contexts and a smaller cache, or fewer pictures at a time."""
        return that_help(suggestions(self._case(request)), request, self.estimate)

    def artifact(self, version: str, platform: Platform) -> ReleaseBinary:
        """Return the release's archive for the machine, linked as the settings say."""
        return release(version, platform, static=self.settings.disable_dynamic_link_llama_box)

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the server's command line."""
        return server(request)

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        """Return what the leader takes with its GPUs, and each of the others with the one that it lends."""
        if is_painter(request.model):
            raise Refused("a model that makes pictures runs on one worker")
        return claims_of_members(self._case(request), workers)

    def arrangement(self, request: LaunchRequest) -> Arrangement:
        """Have the RPC servers first: the leader asks them as it starts."""
        return Arrangement(ports=1, first="followers")

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Return the server for the leader, which talks to the RPC servers of the others."""
        if request.member:
            return lender(request, request.members[request.member])
        shares = shares_of(devices_of(request.members), request.model.layers + 1)
        return server(request, request.members[1:], shares)

    def failure(self, log: str) -> str:
        """Read out of the log what llama.cpp says of the model and its files."""
        return failure_in(log)

    def metrics(self) -> Mapping[str, str]:
        """Map what llama-box counts."""
        return _METRICS


def _painter(case: Case, gpus: int) -> ResourceClaim:
    weights, at_once = case.model.weight_bytes, case.shape.parallel
    if not gpus:
        return ResourceClaim(ram=weights + _PICTURE * at_once + _PROCESS)
    return ResourceClaim(ram=_PROCESS, vram=weights + _PICTURE * at_once, gpus=1)
