"""vLLM: safetensors models on NVIDIA and AMD GPUs, and on the processor where it is built for that."""

from gpustack_backends.vllm.backend import Vllm

__all__ = ["Vllm"]
