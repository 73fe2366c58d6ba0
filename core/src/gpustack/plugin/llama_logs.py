"""Why an engine made of llama.cpp did not start, read out of its log."""

from __future__ import annotations

import re

_NEWER = re.compile(r"unknown model architecture: '([^'\n]{1,80})'")
_MODEL = re.compile(r"error loading model: ([^\n]{1,300})")
_DAMAGED = re.compile(
    r"corrupted|incomplete|not within the file bounds|invalid magic|unexpectedly reached end of file"
)
_PROJECTOR = re.compile(r"mismatch between text model \(([^)\n]{1,80})\) and mmproj \(([^)\n]{1,80})\)")
_ADAPTER = re.compile(r"failed to apply lora adapter: ([^\n]{1,300})")
_LENDER = re.compile(r"failed to register RPC device[ :]*([^\n]{0,200})")
_MEMORY = re.compile(r"[^\n]*(?:out of memory|unable to allocate|failed to allocate)[^\n]*", re.IGNORECASE)


def failure_in(log: str) -> str:
    """Return in a line why the engine ended, and what to do; empty when the log does not say."""
    if found := _NEWER.search(log):
        return (
            f"this version of the engine does not know models of architecture {found[1]!r}; choose a newer one with "
            "--backend-version"
        )
    if found := _MODEL.search(log):
        if _DAMAGED.search(found[1]):
            return f"the model's file is damaged or incomplete ({found[1]}); copy or download it again"
        return f"the engine cannot load the model: {found[1]}"
    if found := _PROJECTOR.search(log):
        return (
            f"the projector is another model's (it gives {found[2]}, and the model takes {found[1]}); name the right one "
            "with --mmproj, or leave it out with --no-mmproj"
        )
    if found := _ADAPTER.search(log):
        return f"the adapter cannot be used with this model: {found[1]}"
    if found := _LENDER.search(log):
        return f"another worker's GPU is not reached: {found[1].strip() or 'its RPC server does not answer'}"
    if found := _MEMORY.search(log):
        return f"there was not enough memory: {found[0].strip()[:300]}"
    return ""
