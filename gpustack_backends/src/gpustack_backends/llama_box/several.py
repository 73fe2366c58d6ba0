"""A model divided over the GPUs of several workers, which llama-box reaches over RPC."""

from __future__ import annotations

from collections.abc import Sequence

from gpustack.plugin import GpuDevice, Refused, ResourceClaim
from gpustack.plugin.memory.llama import Case, layers_on_gpus, spread

_MIB = 1 << 20
#: The process that lends a GPU, and the tensors that pass through it.
_LENDER = 512 * _MIB


def shares_of(devices: Sequence[GpuDevice], layers: int) -> tuple[int, ...]:
    """Return how many of the ``layers`` each device gets: as many as its part of all the memory, and one at least."""
    total = sum(each.memory_total for each in devices)
    if not total or layers < len(devices):
        return (1,) * len(devices)
    shares = [max(1, layers * each.memory_total // total) for each in devices]
    # What rounding has left goes to the largest.
    order = sorted(range(len(devices)), key=lambda each: -devices[each].memory_total)
    for number in range(abs(left := layers - sum(shares))):
        shares[order[number % len(order)]] += 1 if left > 0 else -1
    return tuple(shares)


def claims_of_members(case: Case, workers: Sequence[Sequence[GpuDevice]]) -> tuple[ResourceClaim, ...]:
    """Return the claim of the leader, on all its devices, and of each other worker, on one.

    Raises Refused for a worker without a GPU, and for a model that is not to be on GPUs as a whole.
    """
    if missing := [number for number, devices in enumerate(workers) if not devices]:
        raise Refused(f"llama-box spreads a model over GPUs, and worker {missing[0] + 1} of them has none")
    if layers_on_gpus(case.model, case.parameters) <= case.model.layers:
        raise Refused("--gpu-layers leaves a part in RAM, which is done on one worker alone")
    leader, *others = workers
    devices = [*(each[0] for each in others), *leader]
    each, run = spread(case, shares_of(devices, case.model.layers + 1))
    lent = [ResourceClaim(ram=_LENDER, vram=size, gpus=1) for size in run[: len(others)]]
    # Evenly counted: the scheduler reserves the largest share on each GPU of the leader.
    own = max(run[len(others) :]) * len(leader)
    return (ResourceClaim(ram=each, vram=own, gpus=len(leader)), *lent)
