"""SGLang: safetensors models on NVIDIA and AMD GPUs."""

from gpustack_backends.sglang.backend import Sglang

__all__ = ["Sglang"]
