"""llama.cpp, from the ``xllamacpp`` wheel, started by our launcher ``gpustack-llama-server``."""

from gpustack_backends.llama_cpp.backend import LlamaCpp

__all__ = ["LlamaCpp"]
