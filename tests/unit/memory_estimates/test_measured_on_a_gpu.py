"""What llama.cpp was estimated to take on a GPU, against what the driver of an H100 said that it took.

Measured with ``benchmarks/gpu/memory.py`` (driver 580.159, CUDA 13.0, llama.cpp b11434 for compute capability 9.0).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.plugin import EstimateRequest, GpuDevice
from gpustack.worker.facts import read_facts
from support.engine import llama_cpp_backend
from support.random_gguf import Shape, random_gguf

MIB = 1 << 20
CARD = GpuDevice(
    uuid="GPU-a", index=0, vendor="nvidia", name="NVIDIA H100 80GB HBM3", memory_total=81559 * MIB
)
SMALL = Shape(layers=24, hidden=1024, heads=16, kv_heads=2, inner=2816, vocabulary=151936)


def eight(kind: str) -> Shape:
    return Shape(
        layers=32, hidden=4096, heads=32, kv_heads=8, head=128, inner=14336, vocabulary=128256, type=kind
    )


EXPERTS = Shape(
    layers=16,
    hidden=2048,
    heads=16,
    kv_heads=16,
    head=128,
    inner=1024,
    vocabulary=50304,
    type="Q8_0",
    experts=64,
    experts_used=8,
)
WINDOWS = Shape(
    layers=24,
    hidden=1024,
    heads=16,
    kv_heads=2,
    inner=2816,
    vocabulary=151936,
    architecture="gemma3",
    window=1024,
)


@pytest.mark.parametrize(
    ("shape", "parameters", "taken"),
    [
        pytest.param(SMALL, (), 1910, id="small"),
        pytest.param(SMALL, ("--ctx-size=32768",), 3086, id="small, long context"),
        pytest.param(eight("Q4_K"), (), 8848, id="eight"),
        pytest.param(eight("Q4_K"), ("--ctx-size=4096", "--parallel=1"), 5260, id="one request"),
        pytest.param(eight("Q4_K"), ("--ctx-size=32768",), 21160, id="long context"),
        pytest.param(
            eight("Q4_K"),
            ("--ctx-size=32768", "--cache-type-k=q8_0", "--cache-type-v=q8_0"),
            13916,
            id="8-bit cache",
        ),
        pytest.param(eight("Q4_K"), ("--flash-attn=off",), 9444, id="no flash attention"),
        pytest.param(eight("Q4_K"), ("--gpu-layers=16",), 4744, id="half of the layers"),
        pytest.param(eight("Q8_0"), ("--parallel=8", "--ubatch-size=2048"), 16914, id="large batches"),
        pytest.param(eight("F16"), (), 19240, id="16 bits"),
        pytest.param(EXPERTS, (), 11794, id="experts"),
        pytest.param(WINDOWS, ("--ctx-size=32768",), 1868, id="windows"),
    ],
)
def test_an_estimate_is_within_three_hundredths_of_what_was_taken(
    shape: Shape, parameters: tuple[str, ...], taken: int, tmp_path: Path
) -> None:
    backend = llama_cpp_backend(tmp_path)
    facts = read_facts(random_gguf(tmp_path / "model.gguf", shape, weights=False))
    claim = backend.estimate(
        EstimateRequest(model=facts, version=backend.default_version, parameters=parameters, devices=(CARD,))
    )
    assert claim.vram / MIB == pytest.approx(taken, rel=0.03)
