"""What vLLM and SGLang are told to take of a GPU, so that it is enough and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.plugin import ModelFacts, Refused
from gpustack.plugin.memory import (
    Cache,
    Division,
    Workload,
    costs_of,
    estimate,
    memory_fraction,
    static_fraction,
)

GIB = 1 << 30
CARD = 80 * GIB
#: Qwen2.5-1.5B.
SMALL = ModelFacts(
    format="safetensors",
    path="/m",
    weight_bytes=3_087_467_144,
    tensor_bytes=3_087_428_608,
    parameters=1_543_714_304,
    layers=28,
    hidden_size=1536,
    attention_heads=12,
    kv_heads=2,
    key_length=128,
    value_length=128,
    inner_size=8960,
    vocabulary=151936,
)
WORK = Workload(cache=Cache(context=8192, sequences=16), step=8192)


@given(st.integers(1, CARD), st.integers(1, CARD))
def test_the_fraction_is_enough_and_no_more(claim: int, total: int) -> None:
    if claim > total:
        with pytest.raises(Refused, match="do not fit a GPU of"):
            memory_fraction(claim, total)
        return
    fraction = memory_fraction(claim, total)

    assert claim <= fraction * total * (1 + 1e-12) <= claim + total / 1e6 + 1
    assert 0 < fraction <= 1


def test_two_small_models_share_one_card() -> None:
    first = estimate(SMALL, WORK, Division(), costs_of("vllm", "0.32.0"))
    second = estimate(SMALL, replace(WORK, step=2048), Division(), costs_of("sglang"))

    assert first.vram + second.vram < 24 * GIB
    assert first.fraction_of(24 * GIB) + second.vram / (24 * GIB) < 1
    # SGLang sees what the first has left, and takes its weights and cache of that.
    left = 24 * GIB - first.vram
    assert second.static_fraction_of(24 * GIB, free=left) * left >= second.weights + second.cache
    assert second.static_fraction_of(24 * GIB, free=left) * left < second.vram


def test_the_parts_of_a_small_model() -> None:
    need = estimate(SMALL, WORK, Division(), costs_of("vllm", "0.32.0"))

    # 2 x 2 bytes x 28 layers x 2 heads x 128, for 16 requests of 8192 tokens.
    assert need.cache == 2 * 2 * 28 * 2 * 128 * 8192 * 16
    assert need.weights == SMALL.tensor_bytes
    # 8192 tokens of 4 x 1536 + 3 x 8960 elements, and three copies of 16 x 151936 scores in 32 bits.
    assert need.activations == 8192 * 2 * (4 * 1536 + 3 * 8960) + 3 * 4 * 16 * 151936
    assert need.graphs == 51 * (384 << 10) * 28
    assert need.claim().vram == need.vram
    assert need.claim().gpus == 1


def test_without_graphs_there_are_none() -> None:
    eager = estimate(SMALL, replace(WORK, graphs=False), Division(), costs_of("vllm"))

    assert eager.graphs == 0


def test_two_gpus_take_less_each_and_more_together() -> None:
    one = estimate(SMALL, WORK, Division(), costs_of("vllm"))
    two = estimate(SMALL, WORK, Division(tensor=2), costs_of("vllm"))

    assert two.vram < one.vram
    assert two.claim().vram > one.claim().vram
    assert two.claim().gpus == 2


def test_what_is_not_free_is_not_given() -> None:
    with pytest.raises(Refused, match=r"do not fit into the 4\.0 GiB that are free"):
        static_fraction(4 * GIB, 5 * GIB, 24 * GIB, free=4 * GIB)
    with pytest.raises(Refused, match="exceed the claim"):
        static_fraction(6 * GIB, 5 * GIB, 24 * GIB)
