"""Which instance takes a request: load, cached prefixes, shares, slow start, and who fails.

>>> from random import Random
>>> from gpustack.dataplane.choosing import Chooser, Hints, Outcome
>>> from gpustack.plugin.routing import Route, RoutingTable, Target
>>> targets = tuple(Target(instance_id=number, host="127.0.0.1", port=8000 + number) for number in (1, 2))
>>> route = Route(name="tiny", created=0, targets=targets)
>>> chooser = Chooser(rng=Random(1))
>>> chooser.apply(RoutingTable(routes={"tiny": route}))
>>> first, second = chooser.pick(route, Hints(tokens=100)), chooser.pick(route, Hints(tokens=100))
>>> sorted(lease.target.port for lease in (first, second))
[8001, 8002]
>>> first.first_byte()
>>> first.done(Outcome.OK, completion_tokens=20)

Everything is plain computation: clocks and random numbers are handed in, and nothing waits.
"""

from gpustack.dataplane.choosing.chooser import Chooser
from gpustack.dataplane.choosing.known import Known
from gpustack.dataplane.choosing.lease import Lease
from gpustack.dataplane.choosing.outstanding import Outstanding, SharedOutstanding
from gpustack.dataplane.choosing.retries import RetryBudget
from gpustack.dataplane.choosing.values import NO_HINTS, Hints, Outcome

__all__ = [
    "NO_HINTS",
    "Chooser",
    "Hints",
    "Known",
    "Lease",
    "Outcome",
    "Outstanding",
    "RetryBudget",
    "SharedOutstanding",
]
