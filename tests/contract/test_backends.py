"""Our inference backends keep their contract."""

from gpustack.plugin import Platform
from gpustack.testing import InferenceBackendSuite
from gpustack.testing.fakes.backend import FakeBackend
from gpustack_backends import LlamaCpp


class TestLlamaCpp(InferenceBackendSuite):
    extension = LlamaCpp
    context_parameter = "--ctx-size={}"
    parameters = (("--ctx-size=512",), ("--parallel", "2"), ("--gpu-layers=10",), ("--cache-type-k=q8_0",))
    refused_parameters = (("--port=1",), ("nonsense",), ("--ctx-size=many",), ("--parallel=0",))
    refused_versions = ("not a version", "", "1.0; rm -rf /", "../../etc")
    refused_platforms = (Platform(system="plan9", machine="pdp11"), Platform(system="linux", machine="s390x"))


class TestFakeBackend(InferenceBackendSuite):
    extension = FakeBackend
    parameters = (
        ("--tokens-per-second=20", "--time-to-first-token=0.5"),
        ("--claim-ram=2GiB",),
        ("--claim-vram=40GiB",),
        ("--claim-vram=0",),
        ("--ignore-sigterm",),
    )
    refused_parameters = (
        ("--no-such-thing=1",),
        ("--fail-rate=2",),
        ("--claim-ram=much",),
        ("--tokens-per-second",),
    )
    refused_versions = ("not a version", "", "../../etc")
    refused_platforms = (Platform(system="plan9", machine="pdp11"),)
