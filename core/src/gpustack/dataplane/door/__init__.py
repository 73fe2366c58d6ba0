"""A worker's door: the one port by which other machines reach its engines, which listen on loopback only.

``/instances/<id>/<path>`` goes to the engine of that instance, for whoever shows the instance's credential. Anything
else goes to the worker's own API, which checks for itself. The records of running engines are the only source of truth,
so a door serves on while the worker, the server and the supervisor are gone.
"""

from gpustack.dataplane.door.records import Engine, Records, instance_credential
from gpustack.dataplane.door.server import LIMITS, DoorServer
from gpustack.dataplane.door.service import DoorService

__all__ = ["LIMITS", "DoorServer", "DoorService", "Engine", "Records", "instance_credential"]
