"""Holds the NVIDIA detector against the driver's own program and a program that computes.

    detector.py     needs `nvidia-smi`, and PyTorch for the load

Prints what differs and ends with status 1 when something does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from card import GIB, MIB, detector, look, taken_by, title

#: Takes 4 GiB, multiplies until its input ends, and says when it has begun.
LOAD = """
import sys, threading, torch
held = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
done = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
(a @ a).sum().item()
print("computing", flush=True)
while not done.is_set():
    for _ in range(50): b = a @ a
    torch.cuda.synchronize()
"""
COUNT = "import torch; print(torch.cuda.device_count())"


def smi(*fields: str) -> list[list[str]]:
    """Return what nvidia-smi says of each GPU, in MiB, percent and watts."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [[part.strip() for part in line.split(",")] for line in text.splitlines()]


def main() -> int:
    wrong: list[str] = []

    def held(what: str, ours: object, theirs: object, same: bool) -> None:
        print(f"{what:<44} {ours!s:<44} {theirs!s:<44} {'ok' if same else 'DIFFERS'}", flush=True)
        if not same:
            wrong.append(what)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        devices, usage = look(folder)
        print(title(devices[0]))
        fields = ("uuid", "index", "name", "memory.total", "driver_version", "compute_cap", "power.limit")
        rows = smi(*fields)
        held("GPUs", len(devices), len(rows), len(devices) == len(rows))
        for device, row in zip(devices, rows, strict=False):
            held("uuid", device.uuid, row[0], device.uuid == row[0])
            held("index", device.index, row[1], str(device.index) == row[1])
            held("name", device.name, row[2], device.name == row[2])
            held("memory, MiB", device.memory_total // MIB, row[3], device.memory_total // MIB == int(row[3]))
            held("driver", device.driver_version, row[4], device.driver_version == row[4])
            held("compute capability", device.compute_capability, row[5], device.compute_capability == row[5])
            held(
                "power limit, W",
                device.power_limit_watts,
                row[6],
                abs(device.power_limit_watts - float(row[6])) < 1,
            )
            mode = smi("mig.mode.current")[0][0]
            held(
                "slices (MIG)",
                bool(device.parent_uuid),
                mode,
                bool(device.parent_uuid) == (mode == "Enabled"),
            )
        idle = usage[devices[0].uuid]
        held("idle: processes", idle.processes, "none", idle.processes == ())
        held("idle: faults", idle.faults, "none", idle.faults == ())
        load = subprocess.Popen(
            [sys.executable, "-c", LOAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert load.stdin is not None
        assert load.stdout is not None
        load.stdout.readline()
        time.sleep(2)
        began = time.perf_counter()
        _, usage = look(folder)
        busy, took = usage[devices[0].uuid], time.perf_counter() - began
        used, reserved, utilization, power, heat = smi(
            "memory.used", "memory.reserved", "utilization.gpu", "power.draw", "temperature.gpu"
        )[0]
        # What the driver keeps for itself is nobody's to take.
        used = int(used) + int(reserved)
        ours = busy.memory_used // MIB
        held("busy: memory used and kept, MiB", ours, used, abs(ours - used) <= 64)
        held("busy: utilization, %", busy.utilization, utilization, busy.utilization > 50)
        held("busy: power, W", round(busy.power_watts), power, abs(busy.power_watts - float(power)) < 150)
        held("busy: temperature, C", busy.temperature, heat, abs(busy.temperature - float(heat)) <= 5)
        taken = taken_by(busy, load.pid) / GIB
        held("busy: of its process, GiB", f"{taken:.2f}", "4 to 6", 4 <= taken <= 6)
        print(f"{'one look at devices and use':<44} {took * 1000:.1f} ms")
        load.stdin.close()
        load.wait(timeout=20)
        found = detector(folder)
        for shown in (devices[:1], ()):
            env = {**os.environ, **found.expose(shown).env}
            said = subprocess.run(
                [sys.executable, "-c", COUNT], env=env, check=True, capture_output=True, text=True
            )
            held(
                f"a process shown {len(shown)} sees",
                said.stdout.strip(),
                len(shown),
                said.stdout.strip() == str(len(shown)),
            )
    print("all as the driver says" if not wrong else f"differs: {', '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
