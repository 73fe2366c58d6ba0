"""The most memory that an engine has taken, with everything it started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpustack.kit.process import tree
from gpustack.schemas import MeasuredPeak, WorkerStatus

#: A peak is told again once it has grown by this part and by this many bytes: each telling is an event of the cluster.
_GROWN, _STEP = 0.02, 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a process tree takes now, in bytes: of its own, and as its part of resident pages of files."""

    own: int = 0
    files: int = 0

    def counted(self, mapped: int) -> int:
        """Return what counts, where the engine goes on using ``mapped`` bytes of files: more pages than that are a
        cache, which the system takes back.
        """
        return self.own + min(self.files, mapped)


def taken_by(processes: Iterable[psutil.Process], *, shares: bool = True) -> Taken:
    """Return what ``processes`` take now together; one that has ended takes nothing.

    Shared pages are divided among those that share them where the system tells (Linux). For that it looks at every
    page: some milliseconds for each GiB. Without ``shares`` they count as often as they are shared, which costs nothing.
    """
    own = files = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            mine, theirs = _shares(process) if shares else _resident(process)
            own, files = own + mine, files + theirs
    return Taken(own=own, files=files)


def _shares(process: psutil.Process) -> tuple[int, int]:
    """Return the bytes of a process's own and of files, its part of them."""
    try:
        sizes = _sizes(process.pid, "smaps_rollup")
    except OSError:
        return _resident(process)
    whole, anonymous, shared = (sizes.get(name, 0) for name in ("Pss", "Pss_Anon", "Pss_Shmem"))
    if "Pss_Anon" not in sizes:
        # Kernels before 5.4 sum up all kinds.
        return sizes.get("Anonymous", 0), max(0, whole - sizes.get("Anonymous", 0))
    return anonymous + shared, max(0, whole - anonymous - shared)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Return the same with all of what is shared."""
    try:
        sizes = _sizes(process.pid, "status")
    except OSError:
        # No Linux: its files cannot be told apart.
        return int(process.memory_info().rss), 0
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0), sizes.get("RssFile", 0)


def _sizes(pid: int, file: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/{file}").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0]) << 10
    return found


def gpu_memory(status: WorkerStatus | None) -> dict[int, int]:
    """Return the GPU memory of each instance by id, of all GPUs together, where the drivers tell."""
    found: dict[int, int] = {}
    for gpu in status.gpu_devices if status is not None else ():
        for each in gpu.processes or ():
            if each.instance_id is not None and each.memory is not None:
                found[each.instance_id] = found.get(each.instance_id, 0) + each.memory
    return found


class Peak:
    """The peak of one engine since it started, and what of it was told."""

    def __init__(self) -> None:
        #: What counted most when shared pages are not divided.
        self._most = 0
        self._ram = 0
        self._vram = 0
        self._told = MeasuredPeak()

    def measure(self, pid: int, vram: int, *, mapped: int) -> None:
        """Take in what the tree of the process ``pid`` takes now. Blocks for milliseconds.

        ``vram`` is what drivers say of its GPU memory, and ``mapped`` as :meth:`Taken.counted` has it; both in bytes.
        Shares are looked at only when there is more to share than ever before.
        """
        processes = tree(pid)
        taken, most = Taken(), taken_by(processes, shares=False).counted(mapped)
        if most > self._most:
            self._most, taken = most, taken_by(processes)
        self.take(taken, vram, mapped=mapped)

    def take(self, taken: Taken, vram: int, *, mapped: int) -> None:
        """Take in what was measured now."""
        self._ram = max(self._ram, taken.counted(mapped))
        self._vram = max(self._vram, vram)

    def news(self) -> MeasuredPeak | None:
        """Return the peak when it has grown enough to be told, and count it as told."""
        told = self._told
        if not (_grown(told.ram, self._ram) or _grown(told.vram, self._vram)):
            return None
        self._told = MeasuredPeak(ram=self._ram, vram=self._vram)
        return self._told


def _grown(before: int, now: int) -> bool:
    return now >= before * (1 + _GROWN) and now >= before + (_STEP if before else 1)


#: Bytes of GPU memory by instance.
GpuMemory = Mapping[int, int]
