"""The vLLM backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpustack.plugin import (
    Arrangement,
    ContainerImage,
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
    Suggestion,
    Verdict,
)
from gpustack.plugin.memory import division_of
from gpustack.plugin.tracebacks import root_cause
from gpustack_backends.vllm import spanning, versions
from gpustack_backends.vllm.command import Line
from gpustack_backends.vllm.less import suggestions
from gpustack_backends.vllm.memory import claim_on, claim_on_cpu, divisions
from gpustack_backends.vllm.metrics import METRICS
from gpustack_backends.vllm.parameters import Asked, adapter_paths

_CATEGORIES = ("llm", "embedding", "reranker")
_VENDORS = {"cuda": "NVIDIA", "rocm": "AMD"}
#: Older cards lack what its kernels are made of.
_LEAST_CAPABILITY = (7, 0)
#: For the first versions, whose own requirements let in a later one that breaks them.
_TRANSFORMERS = ((0, 10, 0), "transformers==4.53.3")


class Vllm(InferenceBackend[NoSettings]):
    """Serves safetensors models: chat and completion, embeddings, reranking.

    Its parameters are those of ``vllm serve``. Without ``--max-model-len`` the longest context that fits is taken.
    """

    name = "vllm"
    settings_type = NoSettings
    default_version = versions.VERSION

    def accepts(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Verdict:
        """Agree to safetensors directories of language, embedding and reranking models."""
        if model.format == "gguf":
            return Verdict.no(f"vLLM reads safetensors directories; {model.path} is a GGUF file")
        if model.format != "safetensors":
            return Verdict.no(f"vLLM reads safetensors directories; {model.path} is none")
        if not set(model.categories[:1]) & set(_CATEGORIES):
            what = model.categories[0] if model.categories else "unknown"
            return Verdict.no(f"vLLM serves {', '.join(_CATEGORIES)} models; {model.path} is of kind {what}")
        for each in devices:
            if each.type not in _VENDORS:
                return Verdict.no(
                    f"vLLM runs on GPUs of NVIDIA and AMD; {each.name} is of {each.vendor or 'another vendor'}"
                )
            if each.type == "cuda" and (0,) < _capability(each) < _LEAST_CAPABILITY:
                return Verdict.no(
                    f"vLLM needs compute capability 7.0 or newer; {each.name} has {each.compute_capability}"
                )
        return Verdict.yes()

    def preference(self, model: ModelFacts, devices: Sequence[GpuDevice]) -> Preference:
        """Be the first on NVIDIA GPUs; elsewhere the package index has no build of it that runs."""
        if devices and all(each.type == "cuda" for each in devices):
            return Preference(rank=20, reason="it serves safetensors models on NVIDIA GPUs")
        where = "AMD GPUs" if devices else "the processor"
        return Preference(
            rank=-1,
            reason=f"it runs on {where} only where a build for that is to be had, so it is used there when it is named "
            "(--backend vllm)",
        )

    def estimate(self, request: EstimateRequest) -> ResourceClaim:
        """Return weights, cache, activations, graphs and runtime on all of the devices."""
        asked = Asked.of(request.parameters, request.model, request.version)
        if request.devices:
            division = division_of(request.model, asked.division, len(request.devices))
            return claim_on(request, asked, division, request.devices)
        if request.platform is not None and request.platform.accelerators:
            raise Refused("vLLM runs on the processor only on machines without GPUs")
        return claim_on_cpu(request, asked)

    def ways(self, request: EstimateRequest) -> Sequence[ResourceClaim]:
        """Return the longest context first, on the fewest GPUs."""
        if not request.devices:
            return (self.estimate(request),)
        asked = Asked.of(request.parameters, request.model, request.version)
        found = divisions(request.model, asked, request.devices, request.version)
        return [claim_on(request, asked, each, request.devices) for each in found]

    def suggestions(self, request: EstimateRequest) -> Sequence[Sequence[Suggestion]]:
        """Return shorter contexts, and a smaller cache."""
        return suggestions(request)

    def artifact(self, version: str, platform: Platform) -> PipxPackage:
        """Return the package of the index, which is built for NVIDIA GPUs, or the build that ``version`` names."""
        number = versions.number(version)
        if platform.system != "linux" or platform.machine not in ("x86_64", "aarch64"):
            raise Refused(f"vLLM comes for Linux, not for {platform.system} on {platform.machine}")
        if platform.accelerators and not set(platform.accelerators) & set(_VENDORS):
            raise Refused(
                f"vLLM comes for GPUs of NVIDIA and AMD, not for {', '.join(platform.accelerators)}"
            )
        # A build for others has its name behind a plus, as vLLM's own packaging writes it; without, gigabytes come that
        # do not run there.
        if "cuda" not in platform.accelerators and "+" not in version:
            what, build = ("an NVIDIA GPU", "rocm700") if platform.accelerators else ("a GPU", "cpu")
            raise Refused(
                f"vLLM {version} is built for NVIDIA GPUs, and this is a machine without {what}; where a build for it is "
                f"to be had, name that, as in --backend vllm --backend-version {version}+{build}"
            )
        pinned = (_TRANSFORMERS[1],) if number <= _TRANSFORMERS[0] else ()
        return PipxPackage(
            package="vllm", version=version, command="vllm", requirements=pinned, imports=("vllm",)
        )

    def image(self, version: str, platform: Platform) -> ContainerImage:
        """Return the project's own image for NVIDIA GPUs; those for others are named by more than the version."""
        versions.number(version)
        if "cuda" not in platform.accelerators:
            kinds = ", ".join(platform.accelerators) or "processors"
            raise Refused(
                f"vLLM has no image for {kinds} that follows from its version; name one by image_name"
            )
        return ContainerImage(image=f"vllm/vllm-openai:v{version}", version=version, command="vllm")

    def launch(self, request: LaunchRequest) -> LaunchPlan:
        """Return the command line of ``vllm serve``."""
        return Line.of(request).plan()

    def adapters(self, parameters: Sequence[str]) -> Sequence[str]:
        """Return the paths in ``--lora-modules``."""
        return adapter_paths(parameters)

    def members(
        self, request: EstimateRequest, workers: Sequence[Sequence[GpuDevice]]
    ) -> Sequence[ResourceClaim]:
        """Return the same for all: as many GPUs of each, layers cut within workers and dealt out between them."""
        return spanning.members(request, workers)

    def arrangement(self, request: LaunchRequest) -> Arrangement:
        """Say whether Ray brings the members together; vLLM's own way needs no order."""
        return Arrangement(ray=spanning.by_ray(request))

    def launch_member(self, request: LaunchRequest) -> LaunchPlan:
        """Return the leader with its requests, or one of those that work for it."""
        return spanning.launch_member(request)

    def failure(self, log: str) -> str:
        """Return the message of the error behind the others."""
        return root_cause(log)

    def metrics(self) -> Mapping[str, str]:
        """Map what vLLM counts."""
        return METRICS


def _capability(device: GpuDevice) -> tuple[int, ...]:
    parts: list[Any] = device.compute_capability.split(".")
    return tuple(int(each) for each in parts) if all(each.isdecimal() for each in parts) else (0,)
