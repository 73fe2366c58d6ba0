"""Queues, fair shares, priorities, limits and wake-ups: see :mod:`~gpustack.dataplane.admission.admission`."""

from gpustack.dataplane.admission.admission import Admission
from gpustack.dataplane.admission.buckets import Buckets
from gpustack.dataplane.admission.rooms import Room
from gpustack.dataplane.admission.turns import Ticket
from gpustack.dataplane.admission.values import Refusal, Rules

__all__ = ["Admission", "Buckets", "Refusal", "Room", "Rules", "Ticket"]
