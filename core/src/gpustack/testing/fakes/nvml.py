"""A module ``pynvml`` without a driver: it stands for NVIDIA's own, in what ``gpustack-gpu-nvidia`` asks of it. For tests only.

    driver: 570.86.15
    cuda: "12.8"
    nvlink: [[0, 1, 2, 3]]
    devices:
      - {name: NVIDIA H100, memory: 80GiB, used: 1GiB, count: 4, numa: 0, place: [0, 0],
         processes: [{pid: 4711, memory: 600MiB}]}
      - {name: NVIDIA A100, memory: 40GiB, numa: 1, mig: [{name: 1g.5gb, memory: 5GiB}]}
      - {name: NVIDIA T4, memory: 16GiB, lost: true}

``place`` is where a GPU hangs, widest first: memory node, host bridge, group of switches, switch, board; GPUs meet at the
last number that they share from the left. ``nvlink`` lists groups of GPUs that are linked with each other. ``xids`` are
events that happen to a GPU, each once. ``fails`` says, for the library or for one GPU, which calls do not work:
``{nvmlDeviceGetTemperature: NotSupported, nvmlDeviceGetCount: hang}``; a call that hangs does so for as long as the
file says it. The file is read anew whenever it has changed.

    with fake_nvml(file): ...           # in this process
    PYTHONPATH=$(shim(folder, file))    # in another
"""

# Names of calls and parameters are those of the real module.
# ruff: noqa: N802, N803

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import capwords
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gpustack.testing.fakes.described import described
from gpustack.testing.fakes.sizes import parse_size

_MIB = 1 << 20
#: Seconds between two looks whether a call hangs still.
_LOOK = 0.01
#: The levels at which two GPUs meet that share this many of the numbers of their places.
_LEVELS = (50, 40, 30, 20, 10, 0)

_ERRORS = {
    "UNINITIALIZED": (1, "Uninitialized"),
    "INVALID_ARGUMENT": (2, "Invalid Argument"),
    "NOT_SUPPORTED": (3, "Not Supported"),
    "NO_PERMISSION": (4, "Insufficient Permissions"),
    "NOT_FOUND": (6, "Not Found"),
    "DRIVER_NOT_LOADED": (9, "Driver Not Loaded"),
    "TIMEOUT": (10, "Timeout"),
    "LIBRARY_NOT_FOUND": (12, "NVML Shared Library Not Found"),
    "FUNCTION_NOT_FOUND": (13, "Function Not Found"),
    "GPU_IS_LOST": (15, "GPU is lost"),
    "RESET_REQUIRED": (16, "GPU requires restart"),
    "LIB_RM_VERSION_MISMATCH": (18, "RM has detected an NVML/RM version mismatch."),
    "NO_DATA": (21, "NVML Error with code 21"),
    "UNKNOWN": (999, "Unknown Error"),
}
_CODES = {capwords(name, "_").replace("_", ""): code for name, (code, _) in _ERRORS.items()}
CONSTANTS = {
    **{f"NVML_ERROR_{name}": code for name, (code, _) in _ERRORS.items()},
    "NVML_AFFINITY_SCOPE_NODE": 0,
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
    "NVML_P2P_CAPS_INDEX_NVLINK": 2,
    "NVML_P2P_STATUS_OK": 0,
    "NVML_P2P_STATUS_NOT_SUPPORTED": 5,
    "NVML_TEMPERATURE_GPU": 0,
    "NVML_VOLATILE_ECC": 0,
    "nvmlEventTypeXidCriticalError": 8,
}


class NVMLError(Exception):
    """What NVML answers when it cannot; ``value`` is its code. Each code has a subclass of its own."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return next(
            (words for code, words in _ERRORS.values() if code == self.value),
            f"NVML Error with code {self.value}",
        )


#: By code.
ERRORS: dict[int, type[NVMLError]] = {
    code: type(f"NVMLError_{name}", (NVMLError,), {}) for name, code in _CODES.items()
}


def _error(name: str) -> NVMLError:
    code = _CODES[name]
    return ERRORS[code](code)


def _failures(given: Mapping[str, str]) -> Mapping[str, str]:
    for call, how in given.items():
        if not hasattr(_Library, call) or call.startswith("_"):
            raise ValueError(f"{call} is no call that there is here")
        if how != "hang" and how not in _CODES:
            raise ValueError(f"{how} is none of hang, {', '.join(_CODES)}")
    return given


Size = Annotated[int, BeforeValidator(parse_size)]
Fails = Annotated[Mapping[str, str], AfterValidator(_failures)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Process(_Described):
    pid: int
    memory: Size | None = None
    draws: bool = False


class _Mig(_Described):
    name: str
    memory: Size = Field(gt=0)
    used: Size = 0
    processes: tuple[_Process, ...] = ()


class _Gpu(_Described):
    name: str = Field(min_length=1)
    memory: Size = Field(gt=0)
    count: int = Field(default=1, ge=0, le=64)
    used: Size = 0
    uuid: str = ""
    utilization: int = Field(default=0, ge=0, le=100)
    temperature: int = 30
    power: float = 0.0
    power_limit: float = 700.0
    compute_capability: str = "9.0"
    architecture: int = 9
    cores: int = 16896
    numa: int | None = None
    place: tuple[int, ...] = Field(default=(), max_length=5)
    processes: tuple[_Process, ...] = ()
    #: None: it cannot be sliced; a list, also an empty one: it is in that mode.
    mig: tuple[_Mig, ...] | None = None
    ecc: int = 0
    remapped: tuple[int, int, int, int] = (0, 0, 0, 0)
    xids: tuple[int, ...] = ()
    lost: bool = False
    #: It uses the processor's memory, and tells of none.
    unified: bool = False
    fails: Fails = {}


class _Machine(_Described):
    driver: str = "570.86.15"
    cuda: str = "12.8"
    nvlink: tuple[tuple[int, ...], ...] = ()
    fails: Fails = {}
    devices: tuple[_Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Handle:
    """What a device is asked by: a GPU by its number, and the number of a slice of it."""

    gpu: int
    mig: int | None = None


class _Library:
    """The calls. Each has the parameters of the real one; a test compares."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._machine = _Machine()
        self._gpus: tuple[_Gpu, ...] = ()
        self._users = 0
        self._happened: set[tuple[int, int]] = set()
        self._registered: set[int] = set()

    def _read(self) -> None:
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._machine = described(self._path, _Machine)
            self._gpus = tuple(each for each in self._machine.devices for _ in range(each.count))
            self._stamp = stamp

    def _before(self, call: str, args: tuple[Any, ...]) -> None:
        """Do what the description says of a call: fail, hang, or nothing."""
        while (how := self._how(call, args)) == "hang":
            time.sleep(_LOOK)
        if how:
            raise _error(how)

    def _how(self, call: str, args: tuple[Any, ...]) -> str:
        self._read()
        if how := self._machine.fails.get(call, ""):
            return how
        if call != "nvmlInit" and not self._users:
            return "Uninitialized"
        numbers = [each.gpu for each in args if isinstance(each, Handle)]
        if call == "nvmlDeviceGetHandleByIndex":
            numbers = [args[0]]
        for number in numbers:
            if number >= len(self._gpus):
                return "InvalidArgument"
            if self._gpus[number].lost:
                return "GpuIsLost"
            if how := self._gpus[number].fails.get(call, ""):
                return how
        return ""

    def _gpu(self, handle: Handle) -> _Gpu:
        return self._gpus[handle.gpu]

    def _mig(self, handle: Handle) -> _Mig | None:
        slices = self._gpu(handle).mig or ()
        return None if handle.mig is None else slices[handle.mig]

    def _whole(self, handle: Handle) -> _Gpu:
        """Return the GPU, of which some things are told only as a whole."""
        if handle.mig is not None:
            raise _error("NotSupported")
        return self._gpu(handle)

    # The library --------------------------------------------------------------------------------------------------

    def nvmlInit(self) -> None:
        self._users += 1

    def nvmlShutdown(self) -> None:
        self._users -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._machine.driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        major, _, minor = self._machine.cuda.partition(".")
        return int(major) * 1000 + int(minor or 0) * 10

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    # What a device is ---------------------------------------------------------------------------------------------

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Handle:
        return Handle(index)

    def nvmlDeviceGetUUID(self, handle: Handle) -> str:
        gpu = self._gpu(handle)
        uuid = gpu.uuid if gpu.uuid and gpu.count == 1 else f"GPU-fake-{handle.gpu}"
        return uuid if handle.mig is None else f"MIG-fake-{handle.gpu}-{handle.mig}"

    def nvmlDeviceGetName(self, handle: Handle) -> str:
        mig = self._mig(handle)
        return self._gpu(handle).name + (f" MIG {mig.name}" if mig is not None else "")

    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle) -> tuple[int, int]:
        major, _, minor = self._gpu(handle).compute_capability.partition(".")
        return int(major), int(minor or 0)

    def nvmlDeviceGetArchitecture(self, device: Handle) -> int:
        return self._gpu(device).architecture

    def nvmlDeviceGetNumGpuCores(self, device: Handle) -> int:
        return self._whole(device).cores

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Handle) -> int:
        return round(self._whole(handle).power_limit * 1000)

    def nvmlDeviceGetMemoryAffinity(self, handle: Handle, nodeSetSize: int, scope: int) -> list[int]:
        node = self._whole(handle).numa
        words = [0] * nodeSetSize
        if node is not None:
            words[node // 64] = 1 << node % 64
        return words

    def nvmlDeviceGetTopologyCommonAncestor(self, device1: Handle, device2: Handle) -> int:
        shared = 0
        for one, other in zip(self._whole(device1).place, self._whole(device2).place, strict=False):
            if one != other:
                break
            shared += 1
        return _LEVELS[shared]

    def nvmlDeviceGetP2PStatus(self, device1: Handle, device2: Handle, p2pIndex: int) -> int:
        linked = any(device1.gpu in group and device2.gpu in group for group in self._machine.nvlink)
        return CONSTANTS["NVML_P2P_STATUS_OK" if linked else "NVML_P2P_STATUS_NOT_SUPPORTED"]

    # Slices -------------------------------------------------------------------------------------------------------

    def nvmlDeviceGetMigMode(self, device: Handle) -> list[int]:
        if self._whole(device).mig is None:
            raise _error("NotSupported")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Handle) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Handle, index: int) -> Handle:
        if index >= len(self._whole(device).mig or ()):
            raise _error("NotFound")
        return Handle(device.gpu, index)

    # How it is used -----------------------------------------------------------------------------------------------

    def nvmlDeviceGetMemoryInfo(self, handle: Handle, version: int | None = None) -> SimpleNamespace:
        if self._gpu(handle).unified:
            raise _error("NotSupported")
        what = self._mig(handle) or self._gpu(handle)
        return SimpleNamespace(total=what.memory, used=what.used, free=what.memory - what.used)

    def nvmlDeviceGetUtilizationRates(self, handle: Handle) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._whole(handle).utilization, memory=0)

    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int) -> int:
        return self._whole(handle).temperature

    def nvmlDeviceGetPowerUsage(self, handle: Handle) -> int:
        return round(self._whole(handle).power * 1000)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Handle) -> list[SimpleNamespace]:
        return self._processes(handle, draws=False)

    def nvmlDeviceGetMPSComputeRunningProcesses(self, handle: Handle) -> list[SimpleNamespace]:
        return []

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Handle) -> list[SimpleNamespace]:
        return self._processes(handle, draws=True)

    def _processes(self, handle: Handle, *, draws: bool) -> list[SimpleNamespace]:
        of = self._mig(handle) or self._gpu(handle)
        return [
            SimpleNamespace(pid=each.pid, usedGpuMemory=each.memory)
            for each in of.processes
            if each.draws is draws
        ]

    # Whether it is well -------------------------------------------------------------------------------------------

    def nvmlDeviceGetTotalEccErrors(self, handle: Handle, errorType: int, counterType: int) -> int:
        return self._whole(handle).ecc

    def nvmlDeviceGetRemappedRows(self, device: Handle) -> tuple[int, int, int, int]:
        return self._whole(device).remapped

    def nvmlDeviceGetRetiredPagesPendingStatus(self, device: Handle) -> int:
        raise _error("NotSupported")  # of chips from before 2020

    def nvmlEventSetCreate(self) -> object:
        self._registered.clear()
        return object()

    def nvmlEventSetFree(self, eventSet: object) -> None:
        self._registered.clear()

    def nvmlDeviceRegisterEvents(self, handle: Handle, eventTypes: int, eventSet: object) -> None:
        self._registered.add(handle.gpu)

    def nvmlEventSetWait_v2(self, eventSet: object, timeoutms: int) -> SimpleNamespace:
        for gpu in sorted(self._registered & set(range(len(self._gpus)))):
            for xid in self._gpus[gpu].xids:
                if (gpu, xid) not in self._happened:
                    self._happened.add((gpu, xid))
                    return SimpleNamespace(device=Handle(gpu), eventData=xid)
        raise _error("Timeout")


def module(path: Path) -> ModuleType:
    """Return the module for the machine that the file describes. Raises PluginError, with one line, for a wrong file."""
    described(path, _Machine)
    library = _Library(path)
    made = ModuleType("pynvml", __doc__)
    for name in dir(library):
        if name.startswith("nvml"):
            setattr(made, name, _guarded(library, name))
    for name, value in CONSTANTS.items():
        setattr(made, name, value)
    made.__dict__.update({each.__name__: each for each in ERRORS.values()}, NVMLError=NVMLError)
    return made


def _guarded(library: _Library, name: str) -> Any:
    call = getattr(library, name)

    @functools.wraps(call)
    def guarded(*args: Any, **more: Any) -> Any:
        library._before(name, args)
        return call(*args, **more)

    return guarded


@contextlib.contextmanager
def fake_nvml(path: Path) -> Iterator[ModuleType]:
    """Make ``import pynvml`` in this process give the module for the machine that the file describes."""
    before = sys.modules.get("pynvml")
    sys.modules["pynvml"] = made = module(path)
    try:
        yield made
    finally:
        if before is None:
            del sys.modules["pynvml"]
        else:
            sys.modules["pynvml"] = before


def shim(folder: Path, path: Path) -> Path:
    """Return ``folder``, which makes ``import pynvml`` do the same in processes that have it on ``PYTHONPATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pynvml.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom gpustack.testing.fakes.nvml import module\n"
        f"sys.modules[__name__] = module(Path({str(path.absolute())!r}))\n",
        encoding="utf-8",
    )
    return folder
