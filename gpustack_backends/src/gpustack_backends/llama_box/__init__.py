"""llama-box, from its project's release archives."""

from gpustack_backends.llama_box.backend import LlamaBox

__all__ = ["LlamaBox"]
