"""Everything a plugin needs, and the only part of GPUStack that it may import.

A backend says *what* to install and run; the worker owns *how*. This is a whole one:

    from gpustack.plugin import (
        EstimateRequest, InferenceBackend, LaunchPlan, LaunchRequest, ModelFacts, NoSettings,
        PipxPackage, Platform, ResourceClaim, Verdict, hookimpl,
    )

    class Acme(InferenceBackend[NoSettings]):
        name = "acme"
        settings_type = NoSettings
        default_version = "1.2.0"

        def accepts(self, model, devices):
            if model.format != "gguf":
                return Verdict.no("acme reads GGUF files only")
            return Verdict.yes()

        def estimate(self, request):
            return ResourceClaim(ram=request.model.weight_bytes)

        def artifact(self, version, platform):
            return PipxPackage(package="acme-server", version=version, command="acme-server")

        def launch(self, request):
            return LaunchPlan(argv=(request.command, "--model", request.model_path,
                                    "--port", str(request.port)))

    @hookimpl
    def register_inference_backends():
        return [Acme]

Its distribution names the module under the entry-point group ``gpustack``:

    [project.entry-points.gpustack]
    acme = "acme_plugin"
"""

from gpustack.plugin.contracts import (
    BundledModel,
    Extension,
    GpuDetector,
    Host,
    InferenceBackend,
    NoSettings,
    SystemDetector,
)
from gpustack.plugin.errors import PluginError, Refused, TryAgain
from gpustack.plugin.hookspecs import hookimpl
from gpustack.plugin.values import (
    Artifact,
    Category,
    ContainerImage,
    DeviceExposure,
    EstimateRequest,
    Filesystem,
    GpuDevice,
    GpuUsage,
    LaunchPlan,
    LaunchRequest,
    ModelCard,
    ModelFacts,
    PipxPackage,
    Platform,
    Probe,
    ReleaseBinary,
    ResourceClaim,
    SystemReading,
    Verdict,
)
from gpustack.settings.kinds import HttpUrl
from gpustack.settings.option import Option

__all__ = [
    "Artifact",
    "BundledModel",
    "Category",
    "ContainerImage",
    "DeviceExposure",
    "EstimateRequest",
    "Extension",
    "Filesystem",
    "GpuDetector",
    "GpuDevice",
    "GpuUsage",
    "Host",
    "HttpUrl",
    "InferenceBackend",
    "LaunchPlan",
    "LaunchRequest",
    "ModelCard",
    "ModelFacts",
    "NoSettings",
    "Option",
    "PipxPackage",
    "Platform",
    "PluginError",
    "Probe",
    "Refused",
    "ReleaseBinary",
    "ResourceClaim",
    "SystemDetector",
    "SystemReading",
    "TryAgain",
    "Verdict",
    "hookimpl",
]
