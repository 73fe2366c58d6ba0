"""What llama-box's releases are called: by version, system, processor and device, linked statically or dynamically."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpustack.plugin import Platform, Refused, ReleaseBinary

#: The version that GPUStack was written for.
VERSION = "v0.0.171"

_PROJECT = "https://github.com/gpustack/llama-box/releases/download"
_VERSION = re.compile(r"v(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")
_PROCESSORS = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
#: Kinds of accelerator, in the order in which a machine with several is taken for one, and what they compute with.
_TOOLKITS = {
    "cuda": "cuda",
    "rocm": "hip",
    "npu": "cann",
    "cann": "cann",
    "musa": "musa",
    "dcu": "dtk",
    "mps": "metal",
    "metal": "metal",
    "oneapi": "oneapi",
    "vulkan": "vulkan",
}
#: Where there are builds.
_BUILDS = {
    "cuda": ("linux-amd64", "linux-arm64", "windows-amd64"),
    "hip": ("linux-amd64", "windows-amd64"),
    "cann": ("linux-amd64", "linux-arm64"),
    "musa": ("linux-amd64",),
    "dtk": ("linux-amd64",),
    "metal": ("darwin-amd64", "darwin-arm64"),
    "oneapi": ("linux-amd64", "windows-amd64"),
    "vulkan": ("linux-amd64", "windows-amd64"),
    "cpu": ("linux-amd64", "linux-arm64", "darwin-amd64", "windows-amd64", "windows-arm64"),
}
#: From these versions on it comes for newer toolkits alone.
_WITHOUT_CUDA_11, _CANN_81, _MUSA_4, _DTK_2504 = (0, 0, 145), (0, 0, 145), (0, 0, 150), (0, 0, 155)


def release(version: str, platform: Platform, *, static: bool) -> ReleaseBinary:
    """Return the archive of ``version`` for a machine. Raises Refused for a version or platform that does not exist."""
    if not _VERSION.fullmatch(version):
        raise Refused(f"{version!r} is no version of llama-box; they look like {VERSION}")
    name = archive_name(version, platform, static=static)
    return ReleaseBinary(
        url=f"{_PROJECT}/{version}/{name}.zip",
        version=version,
        executable="llama-box.exe" if platform.system == "windows" else "llama-box",
        checksums=f"{_PROJECT}/{version}/sha256sum.txt",
    )


def archive_name(version: str, platform: Platform, *, static: bool) -> str:
    """Return the archive's name without its ending, as in ``dl-llama-box-linux-amd64-cuda-12.4``."""
    processor = _PROCESSORS.get(platform.machine.lower(), "")
    place = f"{platform.system}-{processor}"
    toolkit = _toolkit(platform)
    if toolkit == "cpu" and place == "darwin-arm64":
        # There every machine has a GPU, and one archive is for both.
        toolkit = "metal"
    if place not in _BUILDS[toolkit]:
        raise Refused(
            f"llama-box does not come for {toolkit} on {platform.system} with {platform.machine or 'this processor'}"
        )
    edition = _edition(toolkit, _numbers(version), platform)
    if toolkit == "cpu" and static:
        toolkit = "avx2" if processor == "amd64" else "neon"
    parts = ["llama-box" if static else "dl-llama-box", place, toolkit, *([edition] if edition else [])]
    return "-".join(parts)


def _toolkit(platform: Platform) -> str:
    if not platform.accelerators:
        return "cpu"
    known = next((name for kind, name in _TOOLKITS.items() if kind in platform.accelerators), None)
    if known is None:
        raise Refused(
            f"llama-box knows no accelerators of kind {', '.join(platform.accelerators)}; "
            f"it comes for {', '.join(dict.fromkeys(_TOOLKITS.values()))}, and for CPUs"
        )
    return known


def _edition(toolkit: str, version: Sequence[int], platform: Platform) -> str:
    """Return the toolkit's version in the archive's name; empty where it has none."""
    match toolkit:
        case "cuda":
            return _cuda(tuple(version), platform.runtime("cuda"))
        case "cann":
            return _cann(tuple(version), platform)
        case "hip":
            return "6.2"
        case "musa":
            return "rc4.0" if tuple(version) >= _MUSA_4 else "rc3.1"
        case "dtk":
            return "25.04" if tuple(version) >= _DTK_2504 else "24.04"
        case "oneapi":
            return "2025.0"
        case "vulkan":
            return "1.4"
    return ""


def _cuda(version: tuple[int, ...], runtime: str) -> str:
    found = _numbers(runtime)[:2]
    if found and found[0] < 12:
        if found[0] == 11 and version < _WITHOUT_CUDA_11:
            return "11.8"
        raise Refused(
            f"this version of llama-box needs a driver for CUDA 12 or newer, and there is one for {runtime}; "
            "update the driver"
        )
    # A driver runs what was built for an older version, and for a newer one of the same 12.
    return "12.8" if found >= (12, 8) else "12.4"


def _cann(version: tuple[int, ...], platform: Platform) -> str:
    runtime = platform.runtime("npu") or platform.runtime("cann")
    edition = "8.0"
    if _numbers(runtime)[:2] >= (8, 1) and version >= _CANN_81:
        candidate = re.search(r"\.rc\d+", runtime, re.IGNORECASE)
        edition = f"8.1{candidate[0].lower() if candidate else ''}"
    older = any("310p" in chip.lower() for chip in platform.chips)
    return f"{edition}-310p" if older else edition


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
