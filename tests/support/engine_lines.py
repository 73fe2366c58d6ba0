"""The command lines that vLLM and SGLang are started with: situations, and the versions that they are shown for."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpustack.plugin import (
    Adapter,
    EstimateRequest,
    GpuDevice,
    Host,
    InferenceBackend,
    LaunchPlan,
    LaunchRequest,
    Member,
    ModelFacts,
    NoSettings,
    Refused,
)
from gpustack_backends import Sglang, Vllm

#: At both sides of what differs.
VLLM_VERSIONS = ("0.8.5", "0.9.2", "0.10.2", "0.11.2", "0.16.0", "0.24.0", "0.32.0")
SGLANG_VERSIONS = ("0.4.10", "0.5.5", "0.5.9", "0.5.12", "0.5.23")

_GIB = 1 << 30
EIGHT = ModelFacts(
    format="safetensors",
    path="/models/Llama-8B",
    weight_bytes=16_060_522_496,
    architecture="llama",
    quantization="BF16",
    parameters=8_030_261_248,
    context_length=131072,
    layers=32,
    hidden_size=4096,
    attention_heads=32,
    kv_heads=8,
    key_length=128,
    value_length=128,
    vocabulary=128256,
    categories=("llm",),
    inner_size=14336,
)
SEVENTY = replace(
    EIGHT,
    path="/models/Llama-70B",
    weight_bytes=141_107_412_992,
    parameters=70_553_706_496,
    layers=80,
    hidden_size=8192,
    attention_heads=64,
    inner_size=28672,
)
VECTORS = replace(
    EIGHT,
    path="/models/minilm",
    weight_bytes=90_868_376,
    architecture="bert",
    quantization="F32",
    context_length=512,
    layers=6,
    hidden_size=384,
    attention_heads=12,
    kv_heads=12,
    key_length=32,
    value_length=32,
    vocabulary=30522,
    inner_size=1536,
    categories=("embedding",),
)


def cards(count: int, gib: int = 80) -> tuple[GpuDevice, ...]:
    """Return so many equal cards of NVIDIA."""
    return tuple(
        GpuDevice(
            uuid=f"GPU-{each}",
            index=each,
            vendor="nvidia",
            name="Card",
            memory_total=gib * _GIB,
            type="cuda",
            compute_capability="9.0",
        )
        for each in range(count)
    )


def _request(
    model: ModelFacts, devices: tuple[GpuDevice, ...], *parameters: str, **more: Any
) -> LaunchRequest:
    return LaunchRequest(
        instance_name="model-abcde",
        model_name="model",
        model=model,
        command="/bin/engine",
        version="",
        host="127.0.0.1",
        port=40000,
        model_path=model.path,
        parameters=parameters,
        devices=devices,
        **more,
    )


def _spread(member: int, *parameters: str) -> LaunchRequest:
    members = tuple(
        Member(number=each, host=f"10.0.0.{each + 1}", ports=(41000, 41001), devices=cards(8))
        for each in range(2)
    )
    return _request(SEVENTY, cards(8), *parameters, members=members, member=member, interface="eth0")


#: What is the same for both engines.
_BOTH = {
    "one GPU": _request(EIGHT, cards(1)),
    "a small card": _request(EIGHT, cards(1, 24)),
    "four GPUs of one worker": _request(SEVENTY, cards(4)),
    "three GPUs, which 64 heads cannot be dealt out to": _request(SEVENTY, cards(3)),
    "an embedding model": _request(VECTORS, cards(1)),
    "a reranker": _request(replace(VECTORS, path="/models/reranker", categories=("reranker",)), cards(1)),
    "two workers, the leader": _spread(0),
    "two workers, the other": _spread(1),
}
VLLM_CASES = _BOTH | {
    "the processor": _request(EIGHT, ()),
    "adapters": _request(
        EIGHT,
        cards(1),
        "--lora-modules",
        "sql=/adapters/sql",
        adapters=(Adapter(path="/adapters/sql", rank=24),),
    ),
    "what the user says wins": _request(
        SEVENTY, cards(4), "-tp 2", "-pp=2", "--max-model-len=16k", "--gpu-memory-utilization=0.5"
    ),
    "a draft": _request(
        EIGHT, cards(1), '--speculative-config={"method": "ngram", "num_speculative_tokens": 4}'
    ),
    "a cache in RAM": _request(EIGHT, cards(1), "--kv-offloading-size=32"),
    "two workers by Ray, the leader": _spread(0, "--distributed-executor-backend=ray"),
}
SGLANG_CASES = _BOTH | {
    "the processor": _request(EIGHT, ()),
    "adapters": _request(EIGHT, cards(1), "--lora-paths", "sql=/adapters/sql"),
    "what the user says wins": _request(
        SEVENTY, cards(4), "--tp 2", "--pp-size=2", "--context-length=16384", "--mem-fraction-static=0.5"
    ),
    "a cache in RAM": _request(EIGHT, cards(1), "--enable-hierarchical-cache", "--hicache-size=32"),
    "attention by data": _request(SEVENTY, cards(4), "--tp=4", "--dp=4", "--enable-dp-attention"),
}
CASES = {"vllm": (Vllm, VLLM_VERSIONS, VLLM_CASES), "sglang": (Sglang, SGLANG_VERSIONS, SGLANG_CASES)}


def backend(name: str) -> InferenceBackend[NoSettings]:
    """Return the backend of that name."""
    log, here = logging.getLogger(name), Path("/nowhere")
    return CASES[name][0](NoSettings(), Host(log=log, data_dir=here, bin_dir=here))


def plans(name: str) -> Iterator[tuple[str, str, LaunchPlan | Refused]]:
    """Yield version, situation, and what is run or why nothing is."""
    made = backend(name)
    _, versions, cases = CASES[name]
    for version in versions:
        for case, without in cases.items():
            request = replace(without, version=version)
            launch: Any = made.launch_member if request.members else made.launch
            try:
                yield version, case, launch(request)
            except Refused as error:
                yield version, case, error


def shown(name: str) -> str:
    """Return all of them as a page for people."""
    parts = []
    for version, case, plan in plans(name):
        parts.append(f"# {name} {version}: {case}")
        if isinstance(plan, Refused):
            parts += [f"refused: {plan}", ""]
            continue
        variables = [f"{key}={shlex.quote(value)}" for key, value in sorted(plan.env.items())]
        parts += [" ".join([*variables, shlex.join(plan.argv)]), ""]
    return "\n".join(parts)


def estimate_of(request: LaunchRequest) -> EstimateRequest:
    """Return the question that goes before a launch."""
    return EstimateRequest(
        model=request.model,
        version=request.version,
        parameters=request.parameters,
        devices=request.devices,
    )
