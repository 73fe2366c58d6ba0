"""The inference engines that GPUStack runs out of the box. Each lives in a package of its own here."""

from __future__ import annotations

from pydantic import BaseModel

from gpustack.plugin import InferenceBackend, NoSettings, hookimpl
from gpustack_backends.llama_box import LlamaBox, LlamaBoxSettings
from gpustack_backends.llama_cpp import LlamaCpp
from gpustack_backends.sglang import Sglang
from gpustack_backends.vllm import Vllm

__all__ = ["LlamaBox", "LlamaCpp", "Sglang", "Vllm", "register_inference_backends", "register_settings"]


@hookimpl
def register_inference_backends() -> list[type[InferenceBackend[NoSettings]]]:
    """Bring llama.cpp, vLLM and SGLang."""
    return [LlamaCpp, Vllm, Sglang]


@hookimpl
def register_settings() -> list[type[BaseModel]]:
    """Bring the options of engines that are not written yet."""
    return [LlamaBoxSettings]
