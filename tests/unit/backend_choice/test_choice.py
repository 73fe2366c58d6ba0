"""Which backend serves a model that names none: by its files and the devices, and with the reason."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpustack.plugin import GpuDevice, Host, ModelFacts, NoSettings, Platform, Preference
from gpustack.server.reconcile.choosing import headline, in_order, why
from gpustack.server.reconcile.questions import Answer, Question, ask
from gpustack_backends import LlamaCpp, Sglang, Vllm
from support.engine_lines import EIGHT, cards

GGUF = replace(EIGHT, format="gguf", path="/models/8b.gguf", weight_bytes=5 << 30)
#: By name, as plugins come; not by what they are good for.
MADE: dict[str, tuple[Any, str]] = {
    cls.name: (cls(NoSettings(), Host(log=logging.getLogger(), data_dir=Path(), bin_dir=Path())), "backends")
    for cls in (LlamaCpp, Sglang, Vllm)
}


async def answered(
    facts: ModelFacts,
    devices: tuple[GpuDevice, ...],
    backends: dict[str, tuple[Any, str]] = MADE,
    version: str = "",
) -> list[tuple[Question, Answer]]:
    platform = Platform(
        system="linux", machine="x86_64", accelerators=tuple(sorted({each.type for each in devices}))
    )
    questions = [
        Question(
            backend=name,
            version=version or backend.default_version,
            facts=facts,
            parameters=(),
            devices=some,
            platform=platform,
        )
        for some in ([devices, ()] if devices else [()])
        for name, (backend, _) in backends.items()
    ]
    return [(each, await ask(each, backends, 0.0)) for each in questions]


def ways(found: list[tuple[Question, Answer]]) -> list[tuple[str, int]]:
    return [
        (question.backend, len(question.devices)) for question, answer in found if answer.claim is not None
    ]


async def test_gguf_is_for_llama_cpp_with_and_without_gpus() -> None:
    assert ways(in_order(await answered(GGUF, cards(2)))) == [("llama-cpp", 2), ("llama-cpp", 0)]


async def test_safetensors_on_nvidia_are_for_vllm_and_then_for_sglang() -> None:
    found = await answered(EIGHT, cards(2))
    assert ways(in_order(found)) == [("vllm", 2), ("sglang", 2)]
    assert headline(found, "vllm", gpus=True) == "vllm: it serves safetensors models on NVIDIA GPUs"
    told = why(found, "vllm", gpus=True)
    assert told[0] == "chosen vllm: it serves safetensors models on NVIDIA GPUs"
    assert "sglang could serve it too (--backend sglang)" in told
    assert any(each.startswith("not llama-cpp: llama.cpp reads GGUF files") for each in told)


async def test_where_there_is_no_gpu_every_backend_says_why_it_does_not_serve_safetensors() -> None:
    found = in_order(await answered(EIGHT, ()))
    assert ways(found) == []
    refusals = {question.backend: answer.reason for question, answer in found}
    assert "llama.cpp reads GGUF files" in refusals["llama-cpp"]
    assert "SGLang needs a GPU" in refusals["sglang"]
    assert "name that, as in --backend vllm --backend-version 0.32.0+cpu" in refusals["vllm"]


async def test_old_cards_are_left_to_the_backend_that_knows_them() -> None:
    old = tuple(replace(each, compute_capability="7.5") for each in cards(1))
    assert ways(in_order(await answered(EIGHT, old))) == [("vllm", 1)]


async def test_a_named_backend_is_asked_however_little_it_is_for_the_model() -> None:
    """Its answer is a claim; that it is used by name only is for models that name none."""
    ((_, answer),) = await answered(EIGHT, (), {"vllm": MADE["vllm"]}, "0.32.0+cpu")
    assert answer.claim is not None
    assert answer.preference.rank < 0


async def test_a_preference_that_is_none_is_a_defect_of_the_plugin() -> None:
    class Odd(LlamaCpp):
        def preference(self, model: ModelFacts, devices: Any) -> Any:
            return Preference(rank="first")  # type: ignore[arg-type]

    odd = Odd(NoSettings(), Host(log=logging.getLogger(), data_dir=Path(), bin_dir=Path()))
    ((_, answer),) = await answered(GGUF, (), {"odd": (odd, "odd-plugin")})
    assert answer.refused_by == "trouble"


@pytest.mark.parametrize("devices", [(), cards(1)])
async def test_backends_that_say_nothing_are_asked_by_name(devices: tuple[GpuDevice, ...]) -> None:
    class Plain(LlamaCpp):
        def preference(self, model: ModelFacts, devices: Any) -> Preference:
            return Preference()

    plain = {name: (Plain(NoSettings(), MADE["vllm"][0].host), name) for name in ("b", "a")}
    found = in_order(await answered(GGUF, devices, plain))
    assert [name for name, _ in ways(found)][:2] == ["b", "a"]
    assert why(found, "b", gpus=bool(devices))[0] == "chosen b: no other backend is made for it more"
