"""The user's parameters of vLLM, and what follows from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gpustack.plugin import ModelFacts, Refused
from gpustack.plugin.flags import Flags
from gpustack.plugin.memory import Division, element_bytes
from gpustack_backends.vllm.versions import check_flags, check_model

_ALIASES = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-sc": "--speculative-config",
    "--device-memory-utilization": "--gpu-memory-utilization",
}
_TOGETHER = "how its processes find each other"
#: What GPUStack sets itself, since it must know it to reach the engine.
_OWNED = {
    "--host": "the address",
    "--port": "the port",
    "--uds": "the address",
    "--grpc": "the protocol",
    "--grpc-port": "the port",
    "--root-path": "the paths",
    "--model": "the model's files",
    "--served-model-name": "the model's name (routes give it others: `gpustack routes`)",
    "--api-key": "access",
    "--ssl-keyfile": "access",
    "--ssl-certfile": "access",
    "--ssl-ca-certs": "access",
    "--config": "the parameters; give them one by one, its settings",
    "--device-ids": "the GPUs (`gpustack deploy --gpu` chooses them)",
    "--headless": _TOGETHER,
    "--nnodes": _TOGETHER,
    "--node-rank": _TOGETHER,
    "--master-addr": _TOGETHER,
    "--master-port": _TOGETHER,
    "--data-parallel-address": _TOGETHER,
    "--data-parallel-rpc-port": _TOGETHER,
    "--data-parallel-rank": _TOGETHER,
    "--data-parallel-start-rank": _TOGETHER,
    "--data-parallel-external-lb": _TOGETHER,
    "--data-parallel-hybrid-lb": _TOGETHER,
}
PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks for, with vLLM's own defaults for the rest. Sizes are bytes."""

    flags: Flags
    #: None: GPUStack chooses.
    context: int | None
    sequences: int
    division: Division | None
    eager: bool
    #: Of an element of keys and values.
    cache_type: str
    #: Of the cache on each GPU; None: as much as contexts take.
    cache_bytes: int | None
    #: Of each GPU; None: what it needs.
    share: float | None
    #: Weights that stay in RAM, of each GPU; and what caches take there, of the instance.
    offloaded: int
    host_cache: int

    @classmethod
    def of(cls, parameters: Sequence[str], model: ModelFacts, version: str) -> Asked:
        """Read them. Raises Refused for what can never work, in this version or for this model."""
        flags = Flags.parse(parameters, aliases=_ALIASES, owned=_OWNED, units=True)
        check_flags(flags, version)
        check_model(model, version)
        _check_speculation(flags)
        kind = flags.text("--kv-cache-dtype") or "auto"
        wide = flags.text("--dtype") in ("float32", "float")
        if kind == "auto":
            kind = "float32" if wide else "float16"
        element_bytes(kind)  # raises Refused for an unknown one
        return cls(
            flags=flags,
            context=_context(flags),
            sequences=flags.integer("--max-num-seqs", 256, least=1),
            division=_division(flags, model),
            eager=flags.is_on("--enforce-eager"),
            cache_type=kind,
            cache_bytes=flags.integer("--kv-cache-memory-bytes", 0, least=1)
            if flags.has("--kv-cache-memory-bytes")
            else None,
            share=flags.decimal("--gpu-memory-utilization", 0.9, least=0.01, most=1)
            if flags.has("--gpu-memory-utilization")
            else None,
            offloaded=_gib(flags, "--cpu-offload-gb"),
            host_cache=_gib(flags, "--swap-space") + _gib(flags, "--kv-offloading-size"),
        )

    def step(self, memory: int) -> int:
        """Return the tokens of one step on GPUs of ``memory`` bytes, as vLLM chooses them: more on the largest cards."""
        usual = 8192 if memory >= 70 << 30 else 2048
        return self.flags.integer("--max-num-batched-tokens", usual, least=1)


def _context(flags: Flags) -> int | None:
    """Return what the user wants; ``auto`` and -1 leave it to vLLM, which takes what its cache has room for."""
    if flags.text("--max-model-len") in (None, "auto", "-1"):
        return None
    return flags.integer("--max-model-len", 0, least=1)


def _division(flags: Flags, model: ModelFacts) -> Division | None:
    if not flags.has(*PARALLEL):
        return None
    tensor, pipeline, data = (flags.integer(each, 1, least=1) for each in PARALLEL)
    division = Division(
        tensor=tensor, pipeline=pipeline, data=data, experts=flags.is_on("--enable-expert-parallel")
    )
    if not (verdict := division.fits(model)).ok:
        raise Refused(verdict.reason)
    return division


def _check_speculation(flags: Flags) -> None:
    document = flags.document("--speculative-config")
    if document and not {"method", "model"} & document.keys():
        raise Refused(
            '--speculative-config says neither "method" (ngram, eagle3, mtp, …) nor the "model" of a draft'
        )


def _gib(flags: Flags, name: str) -> int:
    return int(flags.decimal(name, 0, least=0, most=1 << 20) * (1 << 30))


def adapter_paths(parameters: Sequence[str]) -> list[str]:
    """Return the paths of the adapters that ``--lora-modules`` names, as ``name=path`` or in JSON; not those on a hub."""
    flags = Flags.parse(parameters, aliases=_ALIASES, owned=_OWNED)
    paths = [_adapter_path(each) for each in flags.values("--lora-modules")]
    return [each for each in paths if each.startswith("/")]


def _adapter_path(written: str) -> str:
    if not written.startswith("{"):
        name, equals, path = written.partition("=")
        if not (name and equals and path):
            raise Refused(f"--lora-modules needs name=path for each adapter, not {written!r}")
        return path
    try:
        return str(json.loads(written)["path"])
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"--lora-modules has {written!r}, which is no JSON object with a path") from error
