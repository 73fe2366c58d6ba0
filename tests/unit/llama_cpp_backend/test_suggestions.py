"""How a model takes less memory, as the llama.cpp backend suggests it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpustack.plugin import EstimateRequest
from support.engine import llama_cpp_backend
from support.model_facts import LLAMA_8B


@pytest.fixture
def backend(tmp_path: Path):
    return llama_cpp_backend(tmp_path)


def asked(*parameters: str) -> EstimateRequest:
    return EstimateRequest(model=LLAMA_8B, version="1", parameters=parameters)


def test_contexts_are_halved_the_cache_is_made_smaller_and_requests_are_fewer(backend) -> None:
    kinds = backend.suggestions(asked("--ctx-size", "4096", "--temp", "0.5"))
    assert [[each.what for each in kind] for kind in kinds] == [
        ["a context of 2048 tokens", "a context of 1024 tokens"],
        [
            "an 8-bit KV cache",
            "an 8-bit KV cache and a context of 2048 tokens",
            "an 8-bit KV cache and a context of 1024 tokens",
        ],
        ["2 requests at a time", "1 request at a time"],
    ]
    assert kinds[0][0].parameters == ("--temp", "0.5", "--ctx-size=2048")


def test_each_takes_less_than_the_one_before(backend) -> None:
    question = asked()
    before = backend.estimate(question).ram
    for kind in backend.suggestions(question):
        sizes = [backend.estimate(asked(*each.parameters)).ram for each in kind]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] < before


def test_a_cache_that_is_small_or_must_not_be_is_left_alone(backend) -> None:
    for parameters in (("--cache-type-k", "q4_0"), ("--flash-attn", "off")):
        whats = [each.what for kind in backend.suggestions(asked(*parameters)) for each in kind]
        assert not any("KV cache" in each for each in whats)
