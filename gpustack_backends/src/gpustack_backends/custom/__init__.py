"""Engines that users describe: a command that is on the worker, or an image."""

from gpustack_backends.custom.backend import Custom

__all__ = ["Custom"]
