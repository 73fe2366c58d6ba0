"""Where an instance goes: pure functions from a snapshot of the workers and a request to a plan or a refusal.

    snapshot = Snapshot.of([worker_a, worker_b]).hold(claim_of_another_instance)
    match place(snapshot, request):
        case Placed() as placed: ...
        case Refused() as refused: print("\\n".join(explain(refused)))

The same snapshot and request always give the same answer. Nothing here does I/O or asks a plugin: what backends
say of a model on a worker is part of the request.
"""

from gpustack.scheduling.defragment import Proposal, Step, propose
from gpustack.scheduling.explain import explain
from gpustack.scheduling.plan import Packing, Placed, Refused, Share, place
from gpustack.scheduling.preempt import Preemption, preempt
from gpustack.scheduling.request import FilesThere, Offer, Request, Way, place_of
from gpustack.scheduling.snapshot import Gpu, Holding, Room, Snapshot, Worker, others_use

__all__ = [
    "FilesThere",
    "Gpu",
    "Holding",
    "Offer",
    "Packing",
    "Placed",
    "Preemption",
    "Proposal",
    "Refused",
    "Request",
    "Room",
    "Share",
    "Snapshot",
    "Step",
    "Way",
    "Worker",
    "explain",
    "others_use",
    "place",
    "place_of",
    "preempt",
    "propose",
]
