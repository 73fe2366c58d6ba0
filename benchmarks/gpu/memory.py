"""The memory that llama.cpp is estimated to take on a GPU, beside what the driver says that it takes.

    memory.py LLAMA_SERVER     one built with CUDA, as by build_llama.py

Models have random weights of real shapes. Each is loaded as the backend would, reads 2,000 tokens and writes a few.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from card import MIB, as_launcher, look, taken_by, title
from common import free_port

from gpustack.kit.net import LOOPBACK
from gpustack.plugin import EstimateRequest, GpuDevice, LaunchRequest
from gpustack.worker.facts import read_facts
from support.engine import llama_cpp_backend, running
from support.engine_memory import BUFFER
from support.random_gguf import Shape, random_gguf

SMALL = {"layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 2, "inner": 2816, "vocabulary": 151936}
EIGHT = {
    "layers": 32,
    "hidden": 4096,
    "heads": 32,
    "kv_heads": 8,
    "head": 128,
    "inner": 14336,
    "vocabulary": 128256,
}
TOKENS = 2000
KINDS = ("model", "KV", "RS", "compute", "output")


@dataclass(frozen=True)
class Case:
    name: str
    shape: Shape
    parameters: tuple[str, ...] = ()


EIGHT_Q4 = Shape(**EIGHT, type="Q4_K")
CASES = (
    Case("0.6B F16, 4 x 8192", Shape(**SMALL)),
    Case("0.6B F16, 4 x 32768", Shape(**SMALL), ("--ctx-size=32768",)),
    Case("8B Q4_K, 4 x 8192", EIGHT_Q4),
    Case("8B Q4_K, 1 x 4096", EIGHT_Q4, ("--ctx-size=4096", "--parallel=1")),
    Case("8B Q4_K, 4 x 32768", EIGHT_Q4, ("--ctx-size=32768",)),
    Case(
        "8B Q4_K, 4 x 32768, 8-bit cache",
        EIGHT_Q4,
        ("--ctx-size=32768", "--cache-type-k=q8_0", "--cache-type-v=q8_0"),
    ),
    Case("8B Q4_K, 4 x 8192, no flash attention", EIGHT_Q4, ("--flash-attn=off",)),
    Case("8B Q4_K, half of the layers", EIGHT_Q4, ("--gpu-layers=16",)),
    Case(
        "8B Q8_0, 8 x 8192, 2048 at a time",
        Shape(**EIGHT, type="Q8_0"),
        ("--parallel=8", "--ubatch-size=2048"),
    ),
    Case("8B F16, 4 x 8192", Shape(**EIGHT)),
    Case(
        "experts, 8 of 64, Q8_0",
        Shape(
            layers=16,
            hidden=2048,
            heads=16,
            kv_heads=16,
            head=128,
            inner=1024,
            vocabulary=50304,
            type="Q8_0",
            experts=64,
            experts_used=8,
        ),
    ),
    Case("windows of 1024, F16", Shape(**SMALL, architecture="gemma3", window=1024), ("--ctx-size=32768",)),
)


def measure(command: str, device: GpuDevice, case: Case, folder: Path) -> None:
    backend, path, port = llama_cpp_backend(folder), folder / "model.gguf", free_port()
    random_gguf(path, case.shape)
    try:
        facts = read_facts(path)
        version = backend.default_version
        claim = backend.estimate(
            EstimateRequest(model=facts, version=version, parameters=case.parameters, devices=(device,))
        )
        request = LaunchRequest(
            instance_name="one",
            model_name="one",
            model=facts,
            command=command,
            version=version,
            host=LOOPBACK,
            port=port,
            model_path=str(path),
            # Its buffers are logged from there on.
            parameters=(*case.parameters, "--log-verbosity", "4"),
            claim=claim,
            devices=(device,),
        )
        began = time.perf_counter()
        with running(backend.launch(request).argv, port, folder / "log") as engine:
            engine.wait_ready(120)
            ready = time.perf_counter() - began
            prompt = [300 + place * 7 % (facts.vocabulary - 600) for place in range(TOKENS)]
            began = time.perf_counter()
            engine.post("/completion", {"prompt": prompt, "n_predict": 8}, seconds=120)
            read = time.perf_counter() - began
            pid = engine.process.pid
            taken = taken_by(look(folder)[1][device.uuid], pid)
            ram = psutil.Process(pid).memory_full_info().pss
            text = engine.log.read_text(errors="replace")
        buffers = {
            kind: sum(
                float(size) for where, of, size in BUFFER.findall(text) if "CUDA" in where and of == kind
            )
            for kind in KINDS
        }
        runtime = taken / MIB - sum(buffers.values())
        share = claim.vram / taken - 1 if taken else float("nan")
        print(
            f"{case.name:<40} estimated {claim.vram / MIB:>8.0f}  taken {taken / MIB:>8.0f} MiB  {share:>+7.1%}   "
            f"RAM {claim.ram / MIB:>6.0f} / {ram / MIB:>6.0f}   ready {ready:.1f} s, 2,008 tokens {read:.2f} s   "
            f"{', '.join(f'{kind} {size:.0f}' for kind, size in buffers.items())}, rest {runtime:.0f}",
            flush=True,
        )
    finally:
        path.unlink(missing_ok=True)


def main(server: str) -> bool:
    failed = False
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        device = look(folder)[0][0]
        print(title(device))
        command = str(as_launcher(server, folder))
        for case in CASES:
            try:
                measure(command, device, case, folder)
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # the other cases are worth having
                print(f"{case.name:<40} FAILED: {str(error)[-600:]}", flush=True)
                failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
