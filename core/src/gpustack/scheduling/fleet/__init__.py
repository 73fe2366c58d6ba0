"""The scheduler that a server runs: as :func:`gpustack.scheduling.place`, but with all workers kept in columns.

    fleet = Fleet([worker_a, worker_b])
    fleet.hold(holding)
    match fleet.place(request):
        case Placed() as placed:
            for each in placed.holdings():
                fleet.hold(each)

A fleet changes in place, in microseconds. Its decisions are those of ``place(fleet.snapshot(), request)``.
"""

from gpustack.scheduling.fleet.engine import Fleet, Watch

__all__ = ["Fleet", "Watch"]
