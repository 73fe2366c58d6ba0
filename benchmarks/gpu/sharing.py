"""Two models on one card under a whole GPUStack: placed by their estimates, told apart, measured, freed and placed again.

    sharing.py LLAMA_SERVER     one built with CUDA, as by build_llama.py

The server stands in the place of the engine that would be installed, which the index has without CUDA only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from card import GIB, MIB, as_launcher, look, taken_by, title
from common import gpustack, new_data_dir

from support.random_gguf import Shape, random_gguf

EIGHT = Shape(
    layers=32, hidden=4096, heads=32, kv_heads=8, head=128, inner=14336, vocabulary=128256, type="Q4_K"
)
SMALL = Shape(layers=24, hidden=1024, heads=16, kv_heads=2, inner=2816, vocabulary=151936)
#: Holds memory of the card until its input ends: another user's program.
STRANGER = """
import sys, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("holds it", flush=True)
sys.stdin.read()
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
        as_launcher(server, bin_dir)
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

    def deploy(name: str, model: str, *parameters: str, **more: Any) -> float:
        began = time.perf_counter()
        client.post(
            "/v2/models",
            json={
                "name": name,
                "source": "local_path",
                "local_path": str(models[model]),
                "backend_parameters": parameters,
                **more,
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

    # Another user's program takes nearly all: a third model waits for it, and is told why.
    free = device.memory_total - usage[device.uuid].memory_used
    stranger = subprocess.Popen(
        [sys.executable, "-c", STRANGER, str(free - 5 * GIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert stranger.stdin is not None
    assert stranger.stdout is not None
    stranger.stdout.readline()
    began = time.perf_counter()
    until("sight of the stranger", 60, lambda: gpus()[0]["memory"]["used"] > device.memory_total - 6 * GIB)
    print(f"the stranger's {(free >> 30) - 5} GiB are seen after {time.perf_counter() - began:.1f} s")
    deploy("third", "eight", gpu_selector={"gpu_ids": [seen[0]["id"]]})
    waiting = until(
        "reason", 30, lambda: (found := instances("third")) and found[0]["state"] == "pending" and found[0]
    )
    print(f"third: {waiting['state']}: {waiting['state_message']}")
    stranger.stdin.close()
    stranger.wait(timeout=20)
    began = time.perf_counter()
    placed = until(
        "placed third", 90, lambda: (found := instances("third")) and found[0]["worker_id"] and found[0]
    )
    print(f"third: {placed['state']} {time.perf_counter() - began:.1f} s after the stranger ended")
    until("running third", 90, lambda: serves("third"))
    print(
        f"third: RUNNING {time.perf_counter() - began:.1f} s after; {ask('third')}; small still answers: {ask('small')}"
    )
    client.delete(f"/v2/models/{serves('third')['model_id']}").raise_for_status()
    ours = {serves(name)["pid"] for name in both}
    until("room", 60, lambda: {each.pid for each in look(folder)[1][device.uuid].processes or ()} == ours)
    print("the third's memory is free again")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
