"""The inference engines that GPUStack runs out of the box. Each lives in a package of its own here."""

from __future__ import annotations

from typing import Any

from gpustack.plugin import InferenceBackend, hookimpl
from gpustack_backends.custom import Custom
from gpustack_backends.llama_box import LlamaBox
from gpustack_backends.llama_cpp import LlamaCpp
from gpustack_backends.sglang import Sglang
from gpustack_backends.vllm import Vllm


@hookimpl
def register_inference_backends() -> list[type[InferenceBackend[Any]]]:
    """Bring llama.cpp, llama-box, vLLM and SGLang, and what users describe."""
    return [LlamaCpp, LlamaBox, Vllm, Sglang, Custom]
