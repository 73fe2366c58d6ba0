"""What the programs for a machine with an NVIDIA GPU share: the detector, the card's name, and who takes what of it."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from gpustack_gpu_nvidia.detector import NvidiaDetector

from gpustack.plugin import GpuDevice, GpuUsage, Host, NoSettings
from gpustack_backends.llama_cpp.launcher import COMMAND, VERSION

GIB, MIB = 1 << 30, 1 << 20


def detector(folder: Path) -> NvidiaDetector:
    """Return the detector. Exits with one line where there is no NVIDIA GPU."""
    found = NvidiaDetector(NoSettings(), Host(log=logging.getLogger("gpu"), data_dir=folder, bin_dir=folder))
    if not (verdict := found.present()).ok:
        raise SystemExit(f"this needs an NVIDIA GPU: {verdict.reason}")
    return found


def look(folder: Path) -> tuple[Sequence[GpuDevice], Mapping[str, GpuUsage]]:
    """Return the devices and their present use."""

    async def both() -> tuple[Sequence[GpuDevice], Mapping[str, GpuUsage]]:
        async with detector(folder) as found:
            return await found.devices(), await found.usage()

    return asyncio.run(both())


def taken_by(usage: GpuUsage, *pids: int) -> int:
    """Return the bytes of the card's memory that these processes take."""
    return sum(each.memory_used or 0 for each in usage.processes or () if each.pid in pids)


def title(device: GpuDevice) -> str:
    """Return the line that says which card it was."""
    return (
        f"{device.name}, {device.memory_total / GIB:.1f} GiB, driver {device.driver_version}, "
        f"CUDA {device.runtime_version}, compute capability {device.compute_capability}"
    )


def as_launcher(server: str, folder: Path) -> Path:
    """Return a program in ``folder`` that stands for our launcher of llama.cpp, and runs ``server``.

    The launcher takes ``--flag=value`` too, and the index has no xllamacpp with CUDA.
    """
    path = folder / f"{COMMAND}_{VERSION}"
    path.write_text(_LAUNCHER.format(command=COMMAND, version=VERSION, server=server))
    path.chmod(0o755)
    return path


_LAUNCHER = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "{command} {version}"; exit 0; fi
for word in "$@"; do
    shift
    case $word in --*=*) set -- "$@" "${{word%%=*}}" "${{word#*=}}" ;; *) set -- "$@" "$word" ;; esac
done
exec {server} "$@"
"""
