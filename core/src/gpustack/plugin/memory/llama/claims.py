"""How much memory an engine made of llama.cpp takes, and in which ways it can be spread over GPUs.

Weights and cache are counted by ``gpustack.plugin.memory``; what is here is llama.cpp's own: how it divides layers, and
what its server takes besides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpustack.plugin.errors import Refused
from gpustack.plugin.memory.engines import costs_of
from gpustack.plugin.memory.llama.buffers import compute_buffers, kv_cache, prompts
from gpustack.plugin.memory.llama.files import files_bytes, has_draft
from gpustack.plugin.memory.llama.parameters import Parameters
from gpustack.plugin.memory.llama.shape import LLAMA_CPP, Engine, Shape
from gpustack.plugin.memory.weights import weight_bytes
from gpustack.plugin.values import ModelFacts, ResourceClaim

_MIB = 1 << 20

#: Where not all layers fit on GPUs, so many equal steps are tried from all to none.
_STEPS = 8
#: The process without a GPU's runtime, and what each word of the vocabulary takes in its tables.
_PROCESS, _WORD = 34 * _MIB, 420
#: Types of weights that every processor computes with as they are in the file. Others may be copied into another
#: order, and the mapped pages are not used again.
_AS_THEY_ARE = frozenset({"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"})


@dataclass(frozen=True, slots=True)
class Case:
    """A model with the parameters that it runs with, on a version of one engine."""

    model: ModelFacts
    parameters: Parameters
    version: str = ""
    engine: Engine = LLAMA_CPP

    @property
    def shape(self) -> Shape:
        """The sizes it runs with. Raises Refused for parameters that are no numbers."""
        return Shape.of(self.model, self.parameters, self.engine)


def claim(case: Case, gpus: int) -> ResourceClaim:
    """Return the memory of one instance on ``gpus`` GPUs (0: on the CPU), which take the same number of layers each."""
    layers = layers_on_gpus(case.model, case.parameters) if gpus else 0
    if (divided := _divided(case, layers)) is None:
        return _on_cpu(case)
    return divided.evenly(_shares(case.parameters, gpus) or (1,) * gpus)


def ways(case: Case, gpus: int) -> list[ResourceClaim]:
    """Return the claims of all ways to use up to ``gpus`` GPUs, the best first.

    The fewest GPUs come first: 1, 2, 4 … of them evenly, and as many as they have room for unevenly; then fewer and
    fewer layers there. What the user said of layers and shares stays as it is.
    """
    parameters = case.parameters
    layers = layers_on_gpus(case.model, parameters)
    whole = _divided(case, layers)
    if whole is None:
        return [_on_cpu(case)]
    if shares := _shares(parameters, gpus):
        return [whole.evenly(shares)]
    if parameters.get("--split-mode") == "none":
        main = parameters.integer("--main-gpu", 0, least=0)
        if main >= gpus:
            raise Refused(f"--main-gpu {main} is not there: GPUs are counted from 0, and there are {gpus}")
        return [whole.evenly((0,) * main + (1,))]
    counts = [1 << power for power in range(gpus.bit_length()) if 1 << power < gpus]
    # Rows of tensors are not divided by layers.
    if not whole.pieces or parameters.get("--split-mode") not in (None, "layer"):
        return [whole.evenly((1,) * count) for count in (*counts, gpus)]
    found: list[ResourceClaim] = []
    for count in (*counts, gpus):
        if count > 2:
            found.append(whole.as_there_is_room(count - 1, partial=False))
        found.append(whole.evenly((1,) * count))
        if count > 1:
            found.append(whole.as_there_is_room(count, partial=False))
    found = list(dict.fromkeys(found))
    if parameters.get("--gpu-layers") in (None, "auto"):
        fewer = dict.fromkeys(layers * step // _STEPS for step in reversed(range(1, _STEPS)))
        parts = (_divided(case, each) for each in fewer if each)
        found += [each.as_there_is_room(gpus, partial=True) for each in parts if each is not None]
    return found


def spread(case: Case, shares: Sequence[float]) -> tuple[int, tuple[int, ...]]:
    """Return what the instance takes in RAM, and on each of as many GPUs as there are ``shares`` of its layers.

    For GPUs that are not all in one machine. Raises Refused when nothing is to be on GPUs.
    """
    if (divided := _divided(case, layers_on_gpus(case.model, case.parameters))) is None:
        raise Refused("--gpu-layers 0 leaves all of the model in RAM, which is done on one worker alone")
    return divided.ram, divided.on_each(shares)


@dataclass(frozen=True, slots=True)
class _Divided:
    """A model with some layers on GPUs."""

    #: Claim on RAM.
    ram: int
    mapped: int
    #: What all layers there take together, with their cache, and what each of them does; nothing when that is not known.
    #: The output head is the last one.
    there: int
    pieces: tuple[int, ...]
    #: Buffers and runtime of each GPU.
    each: int

    def on_each(self, shares: Sequence[float]) -> tuple[int, ...]:
        """Return what each of as many GPUs as ``shares`` takes."""
        if len(shares) == 1:
            return (self.there + self.each,)
        runs = _runs(self.pieces or (1,) * 64, shares)
        total = sum(self.pieces) or 64
        return tuple(-(-self.there * sum(run) // total) + self.each for run in runs)

    def evenly(self, shares: Sequence[float]) -> ResourceClaim:
        """Return the claim on as many GPUs as ``shares``, each with what the largest share of layers takes."""
        gpus = len(shares)
        return ResourceClaim(
            ram=self.ram, vram=max(self.on_each(shares)) * gpus, gpus=gpus, mapped=self.mapped
        )

    def as_there_is_room(self, gpus: int, *, partial: bool) -> ResourceClaim:
        """Return the claim on up to so many GPUs, each with as many layers as it has room for."""
        *layers, head = self.pieces
        piece = max(1, max(layers, default=head))
        return ResourceClaim.in_pieces(
            len(self.pieces),
            piece,
            gpus=gpus,
            ram=self.ram,
            each=self.each,
            last=max(0, head - piece),
            mapped=self.mapped,
            partial=partial,
        )


def _runs(pieces: Sequence[int], shares: Sequence[float]) -> list[list[int]]:
    """Divide the layers as llama.cpp does: each goes to the first GPU whose shares and those before it reach beyond."""
    total = sum(shares)
    ends = [sum(shares[: number + 1]) / total for number in range(len(shares))]
    runs: list[list[int]] = [[] for _ in shares]
    for number, size in enumerate(pieces):
        at = next((gpu for gpu, end in enumerate(ends) if end > number / len(pieces)), len(shares) - 1)
        runs[at].append(size)
    return runs


def _shares(parameters: Parameters, gpus: int) -> tuple[float, ...]:
    """Return what the user says of the shares of GPUs, to the last that has one; nothing when that is left to us."""
    text = parameters.get("--tensor-split")
    if text is None:
        return ()
    try:
        shares = [float(each) for each in re.split("[,/]", text)]
    except ValueError:
        shares = []
    if not any(shares) or not all(math.isfinite(each) and each >= 0 for each in shares):
        raise Refused(f"--tensor-split needs a share for each GPU, as in 3,1, not {text!r}")
    while not shares[-1]:
        shares.pop()
    if len(shares) > gpus:
        raise Refused(
            f"--tensor-split has shares for {len(shares)} GPUs, and there {'is' if gpus == 1 else 'are'} {gpus}"
        )
    return tuple(shares)


def _on_cpu(case: Case) -> ResourceClaim:
    model, parameters = case.model, case.parameters
    files = files_bytes(model, parameters)
    mapped = _mapped(case) + (files if _maps(case) else 0)
    kv, compute = _working(case)
    return ResourceClaim(ram=weight_bytes(model) + files + kv + compute + _host(case), mapped=mapped)


def _working(case: Case) -> tuple[int, int]:
    """Return the bytes of the caches and of the buffers, those of a draft model included.

    Of a draft only the file is known. It is smaller in all its measures, and sees the same context: drafts of the usual
    pairs have caches of a fifth to nearly a half of the model's.
    """
    kv = kv_cache(case.model, case.shape, case.parameters, case.engine)
    compute = compute_buffers(case.model, case.shape, case.parameters, case.engine)
    draft = has_draft(case.parameters)
    return (kv + kv // 2, compute + compute // 2) if draft else (kv, compute)


def _host(case: Case) -> int:
    kept = prompts(case.model, case.shape, case.parameters, case.engine)
    return _PROCESS + _WORD * case.model.vocabulary + kept


def _divided(case: Case, layers: int) -> _Divided | None:
    """Return what it takes to have ``layers`` on GPUs; None for none."""
    if layers == 0:
        return None
    model, parameters = case.model, case.parameters
    kv, compute = _working(case)
    costs = costs_of(case.engine.costs, case.version)
    there = _weights_on_gpus(model, layers)
    # A tied table is the output head there and is looked up here.
    here = weight_bytes(model) - there + (model.embedding_bytes if there == weight_bytes(model) else 0)
    # The output head, which is the first to go there, keeps no cache.
    part = min(1.0, (layers - 1) / model.layers) if model.layers else 1.0
    kv_there = 0 if parameters.has("--no-kv-offload") else int(kv * part)
    return _Divided(
        ram=here + kv - kv_there + costs.host + _host(case),
        mapped=here if _maps(case) else 0,
        there=there + kv_there,
        pieces=_pieces(model, layers, there, kv_there),
        # Files that are loaded besides go to one GPU; which, the shares do not say.
        each=compute + costs.runtime + files_bytes(model, parameters),
    )


def _pieces(model: ModelFacts, layers: int, weights: int, kv: int) -> tuple[int, ...]:
    """Return what each of the last ``layers`` takes: weights and its part of the cache; the output head is one of them."""
    if not model.layers:
        return ()
    own = list(model.layer_bytes[len(model.layer_bytes) - layers + 1 :] if layers > 1 else ())
    if len(own) != layers - 1:
        own = [weights // layers] * (layers - 1)
    each = -(-kv // max(1, layers - 1))
    return (*(size + each for size in own), max(0, weights - sum(own)))


# Weights ------------------------------------------------------------------------------------------------


def layers_on_gpus(model: ModelFacts, parameters: Parameters) -> int:
    """Return how many layers go to GPUs; the output head counts as one more."""
    whole = model.layers + 1
    if parameters.get("--gpu-layers") in (None, "all", "auto"):
        return whole
    layers = parameters.integer("--gpu-layers", -1, least=-1)
    if layers < 0:
        return whole
    return min(whole, layers) if model.layers else layers


def _weights_on_gpus(model: ModelFacts, layers: int) -> int:
    """Return the bytes of the last ``layers``: the output head leaves RAM first, the table of embeddings never."""
    total = weight_bytes(model)
    if not model.layer_bytes:
        return int(total * min(1.0, layers / (model.layers + 1))) if model.layers else total
    head = model.output_bytes or model.embedding_bytes
    if layers > len(model.layer_bytes):
        return total if not model.output_bytes else total - model.embedding_bytes
    return sum(model.layer_bytes[len(model.layer_bytes) - layers + 1 :]) + (head if layers else 0)


def _mapped(case: Case) -> int:
    """Return the bytes of weights that are used where the file is mapped."""
    if not _maps(case):
        return 0
    if case.parameters.has("--no-repack"):
        return weight_bytes(case.model)
    return sum(size for kind, size in case.model.bytes_by_type if kind in _AS_THEY_ARE)


def _maps(case: Case) -> bool:
    mode = (case.parameters.get("--load-mode") or "mmap").lower()
    mapped = case.engine.maps or case.parameters.has("--mmap")
    return mapped and mode == "mmap" and not case.parameters.has("--no-mmap")
