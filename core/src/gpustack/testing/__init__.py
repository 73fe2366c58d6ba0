"""What a plugin is tested with: contract suites, stand-ins, and a running server. Needs ``gpustack-core[testing]``.

A plugin's whole test file says what it is about; the suite holds it to all that its contract promises:

    from gpustack.plugin import (
        InferenceBackend, LaunchPlan, NoSettings, PipxPackage, ResourceClaim, Verdict,
    )
    from gpustack.testing import InferenceBackendSuite

    class Acme(InferenceBackend[NoSettings]):  # from acme_plugin import Acme
        name = "acme"
        settings_type = NoSettings
        default_version = "1.2.0"

        def accepts(self, model, devices):
            if model.format != "gguf":
                return Verdict.no("acme reads GGUF files only")
            return Verdict.yes()

        def estimate(self, request):
            return ResourceClaim(ram=request.model.weight_bytes + (256 << 20))

        def artifact(self, version, platform):
            return PipxPackage(package="acme-server", version=version, command="acme-server")

        def launch(self, request):
            return LaunchPlan(argv=(request.command, "--model", request.model_path,
                                    "--port", str(request.port), *request.parameters))

    class TestAcme(InferenceBackendSuite):
        extension = Acme

pytest runs it. What fails says what the contract wants, and why. What a suite cannot know is an attribute of the test
class, as ``given`` for settings without a default, or a fixture to override, as ``settings``.

    InferenceBackendSuite   GpuDetectorSuite    SystemDetectorSuite   BundledModelSuite
    WebAppSuite             DatabaseSuite       GatewaySuite          AuthProviderSuite
    SUITES, by the catalogue's field

    GatewayTrafficSuite     the same for a gateway that runs, with requests through it

Beside them, for tests only:

    gpustack.testing.fakes          GPUs, an engine, a gateway and a login that are not there, as plugins
    gpustack.testing.fakes.nvml     NVIDIA's driver, as the module ``pynvml``
    gpustack.testing.fleet          workers, as many as a YAML text describes
    gpustack.testing.hub            the Hugging Face Hub, on loopback, with its misbehaviours
    gpustack.testing.server         a real GPUStack in a folder of its own
    gpustack.testing.pytest_plugin  that GPUStack as the fixture ``gpustack_server``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustack.testing.suites import (
        SUITES,
        AuthProviderSuite,
        BundledModelSuite,
        DatabaseSuite,
        ExtensionSuite,
        GatewaySuite,
        GatewayTrafficSuite,
        GpuDetectorSuite,
        InferenceBackendSuite,
        SystemDetectorSuite,
        WebAppSuite,
    )

__all__ = [
    "SUITES",
    "AuthProviderSuite",
    "BundledModelSuite",
    "DatabaseSuite",
    "ExtensionSuite",
    "GatewaySuite",
    "GatewayTrafficSuite",
    "GpuDetectorSuite",
    "InferenceBackendSuite",
    "SystemDetectorSuite",
    "WebAppSuite",
]


def __getattr__(name: str) -> Any:
    """Import the suites on first use (PEP 562): the stand-ins work without pytest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpustack.testing import suites

    return getattr(suites, name)
