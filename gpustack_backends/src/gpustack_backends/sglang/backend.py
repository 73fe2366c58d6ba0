"""The SGLang backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpustack.plugin import (
    EstimateRequest,
    GpuDevice,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    ModelFacts,
    NoSettings,
    PipxPackage,
    Platform,
    Preference,
    Refused,
    ResourceClaim,
    Verdict,
)
from gpustack.plugin.memory import division_of
from gpustack.plugin.tracebacks import root_cause
from gpustack_backends.sglang import command, versions
from gpustack_backends.sglang.memory import claim_on, divisions
from gpustack_backends.sglang.metrics import METRICS
from gpustack_backends.sglang.parameters import Asked

_CATEGORIES = ("llm", "embedding", "reranker")
_VENDORS = {"cuda": "NVIDIA", "rocm": "AMD"}
#: Older cards lack what its kernels are made of.
_LEAST_CAPABILITY = (8, 0)


class Sglang(InferenceBackend[NoSettings]):
    """Serves safetensors models on GPUs: chat and completion, embeddings, reranking.

    Its parameters are those of ``sglang serve``. Without ``--context-length`` the longest one that fits is taken.
    """

    name = "sglang"
    settings_type = NoSettings
    default_version = versions.VERSION

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree to safetensors directories of language, embedding and reranking models, on GPUs."""
        if model.format != "safetensors":
            what = "a GGUF file" if model.format == "gguf" else "none"
            return Verdict.no(f"SGLang reads safetensors directories; {model.path} is {what}")
        if not set(model.categories[:1]) & set(_CATEGORIES):
            kind = model.categories[0] if model.categories else "unknown"
            return Verdict.no(
                f"SGLang serves {', '.join(_CATEGORIES)} models; {model.path} is of kind {kind}"
            )
        if not devices:
            return Verdict.no("SGLang needs a GPU of NVIDIA or AMD")
        for each in devices:
            if each.type not in _VENDORS:
                return Verdict.no(
                    f"SGLang runs on GPUs of NVIDIA and AMD; {each.name} is of {each.vendor or 'another vendor'}"
                )
            if each.type == "cuda" and (0,) < _capability(each) < _LEAST_CAPABILITY:
                return Verdict.no(
                    f"SGLang needs compute capability 8.0 or newer; {each.name} has {each.compute_capability}"
                )
        return Verdict.yes()

    def preference(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Preference:
        """Leave NVIDIA GPUs to vLLM where it is there too; elsewhere the index has no build that runs."""
        if all(each.type == "cuda" for each in devices):
            return Preference(rank=10, reason="it serves safetensors models on NVIDIA GPUs")
        return Preference(
            rank=-1,
            reason="it runs on AMD GPUs only where a build for them is to be had, so it is used there when it is named "
            "(--backend sglang)",
        )

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return weights, cache, activations, graphs and runtime on all of the devices."""
        asked = Asked.of(request.parameters, request.model, request.version)
        if not request.devices:
            raise Refused("SGLang needs a GPU")
        division = division_of(request.model, asked.division, len(request.devices))
        return claim_on(request, asked, division, request.devices)

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return the longest context first, on the fewest GPUs."""
        asked = Asked.of(request.parameters, request.model, request.version)
        if not request.devices:
            raise Refused("SGLang needs a GPU")
        found = divisions(request.model, asked, request.devices, request.version)
        return [claim_on(request, asked, each, request.devices) for each in found]

    def artifact(self, version: str, platform: Platform) -> PipxPackage:
        """Return the package of the index, or ours around versions without a command of their own."""
        package = versions.package(version)
        if platform.system != "linux" or platform.machine not in ("x86_64", "aarch64"):
            raise Refused(f"SGLang comes for Linux, not for {platform.system} on {platform.machine}")
        if not set(platform.accelerators) & set(_VENDORS):
            what = ", ".join(platform.accelerators) or "machines without a GPU"
            raise Refused(f"SGLang comes for GPUs of NVIDIA and AMD, not for {what}")
        return package

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of ``sglang serve``, or of the module in versions before it."""
        return command.launch(request)

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        """Return the same for all: as many GPUs of each, layers cut within workers and dealt out between them."""
        return command.members(request, workers)

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Return the leader with its requests, or one of those that work for it."""
        return command.launch_member(request)

    def failure(self, log: str) -> str:
        """Return the message of the error behind the others."""
        return root_cause(log)

    def metrics(self) -> Mapping[str, str]:
        """Map what SGLang counts."""
        return METRICS


def _capability(device: GpuDevice) -> tuple[int, ...]:
    parts = device.compute_capability.split(".")
    return tuple(int(each) for each in parts) if all(each.isdecimal() for each in parts) else (0,)
