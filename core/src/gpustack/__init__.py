"""GPUStack: serve AI models on machines you own.

Plugins import :mod:`gpustack.plugin` and nothing else; the command line is :mod:`gpustack.cli`.
"""

__version__ = "0.1.0"
