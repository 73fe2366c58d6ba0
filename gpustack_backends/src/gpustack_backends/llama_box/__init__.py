"""llama-box, from its project's release archives."""

from gpustack_backends.llama_box.backend import LlamaBox
from gpustack_backends.llama_box.settings import LlamaBoxSettings

__all__ = ["LlamaBox", "LlamaBoxSettings"]
