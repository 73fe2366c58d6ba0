"""The user's parameters of SGLang, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpustack.plugin import ModelFacts, Refused
from gpustack.plugin.flags import Flags
from gpustack.plugin.memory import Division, element_bytes
from gpustack_backends.sglang.versions import check_flags, check_model

_ALIASES = {
    "--model": "--model-path",
    "--tp": "--tp-size",
    "--tensor-parallel-size": "--tp-size",
    "--pp": "--pp-size",
    "--pipeline-parallel-size": "--pp-size",
    "--dp": "--dp-size",
    "--data-parallel-size": "--dp-size",
    "--nccl-init-addr": "--dist-init-addr",
    "--speculative-draft-model": "--speculative-draft-model-path",
}
_TOGETHER = "how its processes find each other"
#: What GPUStack sets itself, since it must know it to reach the engine.
_OWNED = {
    "--host": "the address",
    "--port": "the port",
    "--grpc-mode": "the protocol",
    "--fastapi-root-path": "the paths",
    "--model-path": "the model's files",
    "--served-model-name": "the model's name (routes give it others: `gpustack routes`)",
    "--api-key": "access",
    "--admin-api-key": "access",
    "--ssl-keyfile": "access",
    "--ssl-certfile": "access",
    "--config": "the parameters; give them one by one, its settings",
    "--base-gpu-id": "the GPUs (`gpustack deploy --gpu` chooses them)",
    "--nnodes": _TOGETHER,
    "--node-rank": _TOGETHER,
    "--dist-init-addr": _TOGETHER,
    "--nccl-port": _TOGETHER,
}
PARALLEL = ("--tp-size", "--pp-size", "--dp-size")
_TYPES = {"auto": "float16", "fp4_e2m1": "nvfp4", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks for, with SGLang's own defaults for the rest."""

    flags: Flags
    #: None: GPUStack chooses.
    context: int | None
    #: Most tokens that are kept; None: as many as contexts take.
    tokens: int | None
    sequences: int
    division: Division | None
    graphs: bool
    cache_type: str
    #: The part of a GPU for weights and cache; None: what they need.
    static: float | None

    @classmethod
    def of(cls, parameters: Sequence[str], model: ModelFacts, version: str) -> Asked:
        """Read them. Raises Refused for what can never work, in this version or for this model."""
        flags = Flags.parse(parameters, aliases=_ALIASES, owned=_OWNED)
        check_flags(flags, version)
        check_model(model, version)
        _check_hierarchy(flags)
        kind = flags.text("--kv-cache-dtype") or "auto"
        kind = _TYPES.get(kind, kind)
        element_bytes(kind)  # raises Refused for an unknown one
        return cls(
            flags=flags,
            context=flags.integer("--context-length", 0, least=1) or None
            if flags.has("--context-length")
            else None,
            tokens=flags.integer("--max-total-tokens", 0, least=1)
            if flags.has("--max-total-tokens")
            else None,
            sequences=flags.integer("--max-running-requests", 256, least=1),
            division=_division(flags, model),
            graphs=not flags.has("--disable-cuda-graph"),
            cache_type=kind,
            static=flags.decimal("--mem-fraction-static", 0.9, least=0.01, most=1)
            if flags.has("--mem-fraction-static")
            else None,
        )

    def step(self, memory: int) -> int:
        """Return the tokens of one step on GPUs of ``memory`` bytes, as SGLang chooses them."""
        gib = memory >> 30
        usual = 2048 if gib < 35 else 4096 if gib < 60 else 8192 if gib < 160 else 16384
        return (
            max(1, self.flags.integer("--chunked-prefill-size", usual, least=-1))
            if not self._whole
            else 16384
        )

    @property
    def _whole(self) -> bool:
        # Prompts are not cut.
        return self.flags.values("--chunked-prefill-size") == ("-1",)

    def hierarchy(self, cache: int) -> int:
        """Return the bytes of RAM that the second level of a cache of ``cache`` bytes takes, beside one GPU."""
        if not self.flags.has("--enable-hierarchical-cache"):
            return 0
        size = self.flags.integer("--hicache-size", 0, least=0)
        return size * 10**9 or int(cache * self.flags.decimal("--hicache-ratio", 2.0, least=0, most=1000))


def _division(flags: Flags, model: ModelFacts) -> Division | None:
    if not flags.has(*PARALLEL, "--attn-dp-size"):
        return None
    tensor, pipeline, data = (flags.integer(each, 1, least=1) for each in PARALLEL)
    whole = flags.has("--enable-dp-attention") or flags.integer("--attn-dp-size", 1, least=1) > 1
    # With attention by data, the copies of it share the GPUs of the tensor-parallel group.
    division = Division(
        tensor=tensor,
        pipeline=pipeline,
        data=1 if whole else data,
        whole_attention=whole,
        experts=flags.has("--ep-size"),
    )
    if not (verdict := division.fits(model)).ok:
        raise Refused(verdict.reason)
    return division


def _check_hierarchy(flags: Flags) -> None:
    given = [each for each in ("--hicache-size", "--hicache-ratio") if flags.has(each)]
    if given and not flags.has("--enable-hierarchical-cache"):
        raise Refused(f"{given[0]} does nothing without --enable-hierarchical-cache; give both")
