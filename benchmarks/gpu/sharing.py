"""Two models on one card under a whole GPUStack: placed by their estimates, told apart, measured, freed and placed again.

    sharing.py LLAMA_SERVER     one built with CUDA, as by build_llama.py

The server stands in the place of the engine that would be installed, which the index has without CUDA only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from card import GIB, MIB, look, taken_by, title
from common import gpustack, new_data_dir

from gpustack_backends.llama_cpp.launcher import COMMAND, VERSION
from support.random_gguf import Shape, random_gguf

EIGHT = Shape(
    layers=32, hidden=4096, heads=32, kv_heads=8, head=128, inner=14336, vocabulary=128256, type="Q4_K"
)
SMALL = Shape(layers=24, hidden=1024, heads=16, kv_heads=2, inner=2816, vocabulary=151936)
SHIM = """#!/bin/sh
if [ "$1" = --version ]; then echo "{command} {version}"; exit 0; fi
exec {server} "$@"
"""


def until(what: str, seconds: float, look: Callable[[], Any]) -> Any:
    """Return the first answer of ``look`` that is something. Exits after ``seconds`` without."""
    end, found = time.monotonic() + seconds, None
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise SystemExit(f"after {seconds:.0f} s: no {what}")


def main(server: str) -> None:
    with new_data_dir() as data_dir:
        bin_dir = data_dir.parent / "engines"
        bin_dir.mkdir()
        shim = bin_dir / f"{COMMAND}_{VERSION}"
        shim.write_text(SHIM.format(command=COMMAND, version=VERSION, server=server))
        shim.chmod(0o755)
        models = {
            "eight": random_gguf(data_dir.parent / "eight.gguf", EIGHT),
            "small": random_gguf(data_dir.parent / "small.gguf", SMALL),
        }
        with gpustack(data_dir, "--bin-dir", str(bin_dir)) as running, running.client() as client:
            serve(client, data_dir.parent, models)


def serve(client: httpx.Client, folder: Path, models: dict[str, Path]) -> None:
    devices, before = look(folder)
    device = devices[0]
    print(title(device))

    def gpus() -> list[Any]:
        return client.get("/v2/gpu-devices").raise_for_status().json()["items"]

    seen = until("GPU of a worker", 30, gpus)
    print("the API tells:", [(each["name"], each["uuid"], each["memory"]["total"] >> 20) for each in seen])

    def instances(model: str) -> list[Any]:
        answer = client.get("/v2/model-instances", params={"perPage": 100}).raise_for_status().json()["items"]
        return [each for each in answer if each["model_name"] == model]

    def deploy(name: str, model: str, *parameters: str) -> float:
        began = time.perf_counter()
        client.post(
            "/v2/models",
            json={
                "name": name,
                "source": "local_path",
                "local_path": str(models[model]),
                "backend_parameters": parameters,
            },
        ).raise_for_status()
        return began

    def serves(name: str) -> Any:
        found = instances(name)
        if found and found[0]["state"] == "error":
            raise SystemExit(f"{name}: {found[0]['state_message']}")
        return found and found[0]["state"] == "running" and found[0]

    def ask(name: str, text: str = "one two three") -> tuple[float, Any]:
        began = time.perf_counter()
        answer = client.post(
            "/v1/completions", json={"model": name, "prompt": text, "max_tokens": 64}, timeout=120
        )
        return time.perf_counter() - began, answer.raise_for_status().json()["usage"]

    # Waits for the engines of both, the second while the first serves.
    for name, parameters in (("eight", ()), ("small", ("--ctx-size=16384",))):
        began = deploy(name, name, *parameters)
        instance = until(f"running {name}", 90, lambda name=name: serves(name))
        ready = time.perf_counter() - began
        took, usage = ask(name)
        claim = sum(instance["computed_resource_claim"]["vram"].values())
        print(
            f"{name}: GPUs {instance['gpu_indexes']}, RUNNING after {ready:.1f} s, claim {claim / MIB:.0f} MiB, 64 tokens in {took:.2f} s, {usage}"
        )
    ask("eight", "word " * 1500)
    ask("small", "word " * 1500)
    both = {name: serves(name) for name in ("eight", "small")}
    _, usage = look(folder)
    for name, instance in both.items():
        taken = taken_by(usage[device.uuid], instance["pid"])
        claim = sum(instance["computed_resource_claim"]["vram"].values())
        print(
            f"{name}: taken {taken / MIB:.0f} of {claim / MIB:.0f} MiB claimed ({claim / taken - 1 if taken else 0:+.1%})"
        )
    print(
        f"the card: {(usage[device.uuid].memory_used - before[device.uuid].memory_used) / MIB:.0f} MiB more than before"
    )
    told = until(
        "measured memory",
        40,
        lambda: all((serves(each) or {}).get("memory", {}).get("peak_vram") for each in both),
    )
    print("measured by the worker:", {name: serves(name)["memory"]["peak_vram"] >> 20 for name in both}, told)

    # More than what is left: waits, is explained, and is placed when room comes.
    free = device.memory_total - usage[device.uuid].memory_used
    # A token of the cache of the large model takes 128 KiB.
    context = int((free + 2 * GIB) / (128 << 10)) // 256 * 256
    deploy("third", "eight", f"--ctx-size={context}", "--parallel=1", "--gpu-layers=33")
    waiting = until(
        "reason", 30, lambda: (found := instances("third")) and found[0]["state"] == "pending" and found[0]
    )
    print(f"third (context {context}): {waiting['state']}: {waiting['state_message']}")
    began = time.perf_counter()
    row = client.get("/v2/models", params={"search": "eight"}).json()["items"][0]
    client.delete(f"/v2/models/{row['id']}").raise_for_status()
    placed = until(
        "placed third", 60, lambda: (found := instances("third")) and found[0]["worker_id"] and found[0]
    )
    print(f"third: {placed['state']} {time.perf_counter() - began:.2f} s after the other was removed")
    until("running third", 90, lambda: serves("third"))
    print(
        f"third: RUNNING {time.perf_counter() - began:.1f} s after; {ask('third')}; small still answers: {ask('small')}"
    )


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
