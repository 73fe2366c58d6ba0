"""The inference engines that GPUStack runs out of the box. Each lives in a package of its own here."""

from __future__ import annotations

from gpustack.plugin import InferenceBackend, NoSettings, hookimpl
from gpustack_backends.llama_cpp import LlamaCpp


@hookimpl
def register_inference_backends() -> list[type[InferenceBackend[NoSettings]]]:
    """Bring llama.cpp."""
    return [LlamaCpp]
