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
                                    "--port", str(request.port), *request.parameters))

    @hookimpl
    def register_inference_backends():
        return [Acme]

Its distribution names the module under the entry-point group ``gpustack``:

    [project.entry-points.gpustack]
    acme = "acme_plugin"
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustack.plugin.contracts import (
        ArrangesMembers,
        BundledModel,
        Extension,
        GpuDetector,
        Host,
        InferenceBackend,
        NoSettings,
        SpansWorkers,
        SuggestsLess,
        SystemDetector,
        UsesAdapters,
    )
    from gpustack.plugin.databases import (
        Database,
        DatabaseAddress,
        DatabaseConnection,
        DatabaseError,
        DatabasePool,
        Session,
        Trouble,
    )
    from gpustack.plugin.errors import PluginError, Refused, TryAgain
    from gpustack.plugin.gateways import DataPathProcess, Gateway, GatewayHost
    from gpustack.plugin.hookspecs import hookimpl
    from gpustack.plugin.login import AuthProvider, Identity, LoginAttempt, LoginRefused, LoginReply, Redirect
    from gpustack.plugin.routing import (
        Limits,
        Principal,
        Route,
        RoutingDelta,
        RoutingTable,
        Target,
        Timeouts,
        UsageRecord,
    )
    from gpustack.plugin.values import (
        Adapter,
        Arrangement,
        Artifact,
        Category,
        ContainerImage,
        DeviceExposure,
        DeviceRequest,
        EstimateRequest,
        Filesystem,
        GpuDevice,
        GpuProcess,
        GpuUsage,
        LaunchPlan,
        LaunchRequest,
        Member,
        ModelCard,
        ModelFacts,
        OnWorker,
        PipxPackage,
        Platform,
        Preference,
        Probe,
        ReleaseBinary,
        ResourceClaim,
        Suggestion,
        SystemReading,
        Verdict,
    )
    from gpustack.plugin.web import WebApp
    from gpustack.settings.kinds import HttpUrl
    from gpustack.settings.option import Option

#: Version of all that is in this module, MAJOR.MINOR: a plugin that says ``plugin_api_version = "1.0"`` in its module is
#: loaded by every GPUStack with the same major and at least that minor number.
API_VERSION = "1.0"

#: Where each name is from. They are loaded on first use: a gateway process needs the values of routing and nothing else.
_HOMES = {
    name: module
    for module, names in {
        "gpustack.plugin.contracts": (
            "ArrangesMembers BundledModel ComesAsImage Extension GpuDetector Host InferenceBackend NoSettings SpansWorkers "
            "SuggestsLess SystemDetector UsesAdapters "
        ),
        "gpustack.plugin.databases": (
            "Database DatabaseAddress DatabaseConnection DatabaseError DatabasePool Session Trouble "
        ),
        "gpustack.plugin.errors": ("PluginError Refused TryAgain "),
        "gpustack.plugin.gateways": ("DataPathProcess Gateway GatewayHost "),
        "gpustack.plugin.hookspecs": ("hookimpl "),
        "gpustack.plugin.login": ("AuthProvider Identity LoginAttempt LoginRefused LoginReply Redirect "),
        "gpustack.plugin.routing": (
            "Limits Principal Route RoutingDelta RoutingTable Target Timeouts UsageRecord "
        ),
        "gpustack.plugin.values": (
            "Adapter Arrangement Artifact Category ContainerImage DeviceExposure DeviceRequest EstimateRequest Filesystem "
            "GpuDevice GpuProcess GpuUsage LaunchPlan LaunchRequest Member ModelCard ModelFacts OnWorker PipxPackage "
            "Platform Preference Probe "
            "ReleaseBinary ResourceClaim Suggestion SystemReading Verdict "
        ),
        "gpustack.plugin.web": ("WebApp "),
        "gpustack.settings.kinds": ("HttpUrl "),
        "gpustack.settings.option": ("Option "),
    }.items()
    for name in names.split()
}

__all__ = [
    "API_VERSION",
    "Adapter",
    "Arrangement",
    "ArrangesMembers",
    "Artifact",
    "AuthProvider",
    "BundledModel",
    "Category",
    "ComesAsImage",
    "ContainerImage",
    "DataPathProcess",
    "Database",
    "DatabaseAddress",
    "DatabaseConnection",
    "DatabaseError",
    "DatabasePool",
    "DeviceExposure",
    "DeviceRequest",
    "EstimateRequest",
    "Extension",
    "Filesystem",
    "Gateway",
    "GatewayHost",
    "GpuDetector",
    "GpuDevice",
    "GpuProcess",
    "GpuUsage",
    "Host",
    "HttpUrl",
    "Identity",
    "InferenceBackend",
    "LaunchPlan",
    "LaunchRequest",
    "Limits",
    "LoginAttempt",
    "LoginRefused",
    "LoginReply",
    "Member",
    "ModelCard",
    "ModelFacts",
    "NoSettings",
    "OnWorker",
    "Option",
    "PipxPackage",
    "Platform",
    "PluginError",
    "Preference",
    "Principal",
    "Probe",
    "Redirect",
    "Refused",
    "ReleaseBinary",
    "ResourceClaim",
    "Route",
    "RoutingDelta",
    "RoutingTable",
    "Session",
    "SpansWorkers",
    "Suggestion",
    "SuggestsLess",
    "SystemDetector",
    "SystemReading",
    "Target",
    "Timeouts",
    "Trouble",
    "TryAgain",
    "UsageRecord",
    "UsesAdapters",
    "Verdict",
    "WebApp",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for on first use (PEP 562)."""
    if (module := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value
