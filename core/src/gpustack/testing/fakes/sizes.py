"""Sizes of memory as people write them."""

from __future__ import annotations

from gpustack.kit.text import parse_size

__all__ = ["parse_size"]
