"""What a real llama.cpp takes for a model of some shape, beside what was estimated."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpustack.kit.net import LOOPBACK
from gpustack.plugin import EstimateRequest, LaunchRequest, ModelFacts, ResourceClaim
from gpustack.worker.facts import read_facts
from support.engine import InstalledEngine, RunningEngine, llama_cpp_backend, running
from support.random_gguf import Shape, random_gguf

MIB = 1 << 20
#: Reading a thousand tokens on a busy machine may take that long.
_READING = 400.0
#: A line of its log: where, what for, MiB.
BUFFER = re.compile(r"(\S+)\s+(model|KV|compute|output|RS) buffer size =\s+([\d.]+) MiB")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """In bytes. ``buffers`` is what the engine logs by kind, its mapped weights as it uses them."""

    facts: ModelFacts
    claim: ResourceClaim
    buffers: Counter[str]
    #: Memory of the process, but for mapped weights that it has copied and does not use again.
    process: int


def measured(
    engine: InstalledEngine,
    folder: Path,
    shape: Shape,
    *parameters: str,
    port: int,
    tokens: int = 0,
    prompts: int = 1,
) -> Measured:
    """Start the engine with ``parameters``, as the backend says, let it read ``prompts`` of ``tokens``, and look."""
    backend = llama_cpp_backend(folder)
    path = random_gguf(folder / "model.gguf", shape)
    try:
        facts = read_facts(path)
        claim = backend.estimate(EstimateRequest(model=facts, version=engine.version, parameters=parameters))
        plan = backend.launch(
            LaunchRequest(
                instance_name="one",
                model_name="one",
                model=facts,
                command=str(engine.command),
                version=engine.version,
                host=LOOPBACK,
                port=port,
                model_path=str(path),
                # Its buffers are logged from there on.
                parameters=(*parameters, "--log-verbosity", "4"),
            )
        )
        with running(plan.argv, port, folder / "log") as server:
            server.wait_ready()
            for number in range(prompts if tokens else 0):
                _read(server, facts, number, tokens)
            process = psutil.Process(server.process.pid).memory_full_info().pss
            text = server.log.read_text(errors="replace")
    finally:
        path.unlink()
    buffers: Counter[str] = Counter()
    copied = 0
    for where, kind, size in BUFFER.findall(text):
        length = int(float(size) * MIB)
        buffers[kind] += length
        copied += length if where == "CPU_REPACK" else 0
    # The map spans from the first tensor to the last, copied ones in between too.
    buffers["model"] = min(buffers["model"], facts.tensor_bytes)
    return Measured(facts=facts, claim=claim, buffers=buffers, process=process - copied)


def _read(server: RunningEngine, facts: ModelFacts, number: int, tokens: int) -> None:
    # Numbers of plain words; each prompt begins with another one, so that none is read from a cache.
    prompt = [300 + (number * 4001 + place * 7) % (facts.vocabulary - 600) for place in range(tokens)]
    if facts.categories[0] == "embedding":
        server.post("/v1/embeddings", {"input": prompt, "model": "one"}, seconds=_READING)
    else:
        server.post("/completion", {"prompt": prompt, "n_predict": 2}, seconds=_READING)
