"""Models, devices and machines that the suites ask about."""

from __future__ import annotations

from typing import Any

from gpustack.plugin import GpuDevice, ModelFacts, Platform

_GIB = 1 << 30


def a_model(**more: Any) -> ModelFacts:
    """Return the facts of an ordinary language model of 8 billion weights as a GGUF file, but for ``more``."""
    facts: dict[str, Any] = {
        "format": "gguf",
        "path": "/models/qwen3-8b-q4_k_m.gguf",
        "weight_bytes": 5 * _GIB,
        "architecture": "qwen3",
        "name": "Qwen3 8B",
        "quantization": "Q4_K_M",
        "parameters": 8_190_735_360,
        "context_length": 40960,
        "layers": 36,
        "hidden_size": 4096,
        "attention_heads": 32,
        "kv_heads": 8,
        "key_length": 128,
        "value_length": 128,
        "vocabulary": 151936,
        "categories": ("llm",),
        "has_chat_template": True,
    }
    return ModelFacts(**{**facts, **more})


def some_devices(
    count: int, *, vendor: str = "nvidia", kind: str = "cuda", gib: int = 80
) -> tuple[GpuDevice, ...]:
    """Return ``count`` equal devices."""
    return tuple(
        GpuDevice(
            uuid=f"GPU-{vendor}-{number}",
            index=number,
            vendor=vendor,
            name=f"{vendor} of the tests",
            memory_total=gib * _GIB,
            type=kind,
            driver_version="1.0",
            runtime_version="12.8",
            compute_capability="9.0",
        )
        for number in range(count)
    )


_SAFETENSORS = {
    "format": "safetensors",
    "path": "/models/Qwen3-8B",
    "quantization": "BF16",
    "weight_bytes": 16 * _GIB,
}

#: Every kind of model that engines are made for, in both formats, and some that nobody knows.
MODELS: tuple[ModelFacts, ...] = (
    a_model(),
    a_model(**_SAFETENSORS),
    *(
        a_model(
            format=form,
            path=f"/models/sample-{category}",
            architecture=architecture,
            categories=(category,),
            has_chat_template=False,
            weight_bytes=_GIB,
            context_length=512,
        )
        for form in ("gguf", "safetensors")
        for category, architecture in (
            ("embedding", "bert"),
            ("reranker", "bert"),
            ("image", "stable-diffusion"),
            ("speech_to_text", "whisper"),
            ("text_to_speech", "kokoro"),
        )
    ),
    # A vision model, which does two things; and files whose headers say next to nothing.
    a_model(categories=("llm", "image"), **_SAFETENSORS),
    ModelFacts(format="gguf", path="/models/bare.gguf", weight_bytes=1),
    ModelFacts(format="safetensors", path="/models/bare", weight_bytes=1, categories=("llm",)),
    ModelFacts(format="gguf", path="/models/ünknown model.gguf", weight_bytes=_GIB, categories=("llm",)),
    ModelFacts(format="unknown", path="/models/unknown.bin", weight_bytes=0),
    ModelFacts(format="unknown", path="/models/nothing", weight_bytes=0, categories=()),
)

#: A machine without GPUs first.
FLEETS: tuple[tuple[GpuDevice, ...], ...] = (
    (),
    some_devices(1),
    some_devices(8),
    some_devices(2, vendor="amd", kind="rocm"),
    some_devices(4, vendor="ascend", kind="npu", gib=64),
    some_devices(1, vendor="apple", kind="mps", gib=32),
    some_devices(3, vendor="nobody", kind=""),
)

#: Machines that people have.
PLATFORMS: tuple[Platform, ...] = (
    Platform(system="linux", machine="x86_64"),
    Platform(system="linux", machine="x86_64", accelerators=("cuda",)),
    Platform(system="linux", machine="x86_64", accelerators=("rocm",)),
    Platform(system="linux", machine="aarch64"),
    Platform(system="linux", machine="aarch64", accelerators=("npu",)),
    Platform(system="darwin", machine="arm64", accelerators=("mps",)),
    Platform(system="windows", machine="amd64"),
)
#: Machines that nobody makes engines for.
STRANGE_PLATFORMS: tuple[Platform, ...] = (
    Platform(system="plan9", machine="pdp11"),
    Platform(system="linux", machine="s390x", accelerators=("abacus",)),
    Platform(system="", machine=""),
)

#: Parameters as users mistype them. What comes of them is an answer or a refusal, never another error.
STRANGE_PARAMETERS: tuple[tuple[str, ...], ...] = (
    ("",),
    ("--",),
    ("nonsense",),
    ("--=",),
    ("--max-model-len", "--ctx-size"),
    ("--ctx-size=-1",),
    ("--ctx-size=many",),
    ("--unbalanced 'quote",),
    ("--ünicode=☃", "--emoji 🦙"),
    ("-",),
)
