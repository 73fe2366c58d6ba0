"""Our inference backends keep their contract."""

from collections.abc import Sequence
from dataclasses import replace

from gpustack.plugin import GpuDevice, LaunchRequest, ModelFacts, Platform
from gpustack.testing import InferenceBackendSuite
from gpustack.testing.fakes.backend import FakeBackend
from gpustack_backends import Custom, LlamaBox, LlamaCpp, Sglang, Vllm


class TestLlamaCpp(InferenceBackendSuite):
    extension = LlamaCpp
    context_parameter = "--ctx-size={}"
    parameters = (("--ctx-size=512",), ("--parallel", "2"), ("--gpu-layers=10",), ("--cache-type-k=q8_0",))
    refused_parameters = (("--port=1",), ("nonsense",), ("--ctx-size=many",), ("--parallel=0",))
    refused_versions = ("not a version", "", "1.0; rm -rf /", "../../etc")
    refused_platforms = (Platform(system="plan9", machine="pdp11"), Platform(system="linux", machine="s390x"))


class TestVllm(InferenceBackendSuite):
    extension = Vllm
    context_parameter = "--max-model-len={}"
    parameters = (
        ("--max-model-len=512",),
        ("--max-num-seqs", "4", "--enforce-eager"),
        ("--kv-cache-dtype=fp8", "--gpu-memory-utilization 0.5"),
        ("--lora-modules", "sql=/adapters/sql", "law=/adapters/law"),
        ('--speculative-config={"method": "ngram", "num_speculative_tokens": 4}',),
        ("--kv-offloading-size=8", "--kv-offloading-backend=native"),
    )
    refused_parameters = (
        ("--port=1",),
        ("--hos 0.0.0.0",),
        ("--api-key=secret",),
        ("nonsense",),
        ("--max-model-len=many",),
        ("--speculative-config={]",),
        ("--swap-space=4",),
        ("--tensor-parallel-size=0",),
    )
    refused_versions = ("not a version", "", "1.0; rm -rf /", "../../etc", "0.8.4", "v0.32.0")
    refused_platforms = (
        Platform(system="plan9", machine="pdp11"),
        Platform(system="linux", machine="s390x"),
        Platform(system="windows", machine="amd64"),
        Platform(system="darwin", machine="arm64", accelerators=("mps",)),
    )


class TestSglang(InferenceBackendSuite):
    extension = Sglang
    context_parameter = "--context-length={}"
    parameters = (
        ("--context-length=512",),
        ("--max-running-requests", "4", "--disable-cuda-graph"),
        ("--mem-fraction-static=0.7",),
        ("--enable-hierarchical-cache", "--hicache-ratio=2"),
        ("--lora-paths", "sql=/adapters/sql"),
    )
    refused_parameters = (
        ("--port=1",),
        ("--nnodes=2",),
        ("--api-key=secret",),
        ("nonsense",),
        ("--context-length=many",),
        ("--hicache-size=8",),
        ("--mem-fraction-static=2",),
    )
    refused_versions = ("not a version", "", "1.0; rm -rf /", "../../etc", "0.3.0")
    refused_platforms = (
        Platform(system="plan9", machine="pdp11"),
        Platform(system="linux", machine="x86_64"),
        Platform(system="windows", machine="amd64", accelerators=("cuda",)),
    )


class TestLlamaBox(InferenceBackendSuite):
    extension = LlamaBox
    context_parameter = "--ctx-size={}"
    parameters = (
        ("--ctx-size=512",),
        ("--parallel", "2"),
        ("--gpu-layers=10",),
        ("--cache-type-k=q8_0",),
        ("--lora-scaled adapter.gguf 0.5",),
        ("--mmproj=projector.gguf", "--no-flash-attn"),
    )
    refused_parameters = (
        ("--port=1",),
        ("--rpc=192.0.2.1:50052",),
        ("--rpc-server-port", "1"),
        ("--images",),
        ("nonsense",),
        ("--ctx-size=many",),
    )
    refused_versions = ("not a version", "", "0.0.171", "v1", "v0.0.171; rm -rf /", "../../etc")
    refused_platforms = (
        Platform(system="plan9", machine="pdp11"),
        Platform(system="linux", machine="s390x"),
        Platform(system="linux", machine="aarch64", accelerators=("rocm",)),
        Platform(system="linux", machine="x86_64", accelerators=("abacus",)),
    )


class TestCustom(InferenceBackendSuite):
    extension = Custom
    parameters = (
        ("--gpustack-ram=2GiB", "--any=1"),
        ("--gpustack-vram 40GiB",),
        ("--gpustack-gpus", "0"),
        ("x",),
    )
    refused_parameters = (("--gpustack-ram=much",), ("--gpustack-gpus=-1",), ("--gpustack-vram",))
    refused_versions = ("not a version", "", "1.0; rm -rf /", "../../etc")

    def _request(
        self, model: ModelFacts, devices: tuple[GpuDevice, ...], parameters: Sequence[str]
    ) -> LaunchRequest:
        command = "serve --host {{host}} --port={{ port }} '{{model_path}}' --gpus {{gpu_ids}}"
        return replace(super()._request(model, devices, parameters), run_command=command)


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
