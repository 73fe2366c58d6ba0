"""Records of decisions: what is needed to make each of them again.

    fleet = RecordedFleet([worker_a, worker_b])
    fleet.decide(request)
    lines = [each.write() for each in entries(fleet.take(1000))]
    assert all(each.same for each in replay(map(Entry.read, lines)))

A record is a chain: some entries tell of the whole fleet, those between them of what had changed since the decision
before.
"""

from gpustack.scheduling.records.codec import BadRecord, decode, encode
from gpustack.scheduling.records.entry import Entry, outline, verdict
from gpustack.scheduling.records.recorder import RecordedFleet, Taken, entries
from gpustack.scheduling.records.replay import Replay, Replayed, replay

__all__ = [
    "BadRecord",
    "Entry",
    "RecordedFleet",
    "Replay",
    "Replayed",
    "Taken",
    "decode",
    "encode",
    "entries",
    "outline",
    "replay",
    "verdict",
]
