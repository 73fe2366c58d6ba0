"""What a fleet would do: the real scheduler in made-up time, on a described or recorded fleet.

    report = simulate(fleet(document_a), workload(document_b), POLICIES["whole"], seed=1)
    print(report.placed, report.waits.median)

The same input and seed always give the same report; two policies see the same arrivals, durations and failures.
"""

from gpustack.scheduling.simulation.described import Workload, fleet, workload
from gpustack.scheduling.simulation.plain import Place, WrongValue, spelled
from gpustack.scheduling.simulation.report import Report
from gpustack.scheduling.simulation.run import POLICIES, Policy, simulate

__all__ = [
    "POLICIES",
    "Place",
    "Policy",
    "Report",
    "Workload",
    "WrongValue",
    "fleet",
    "simulate",
    "spelled",
    "workload",
]
