"""The header by which a door speaks for itself."""

from __future__ import annotations

#: An answer with this header is a door's own and no engine's; it says how far the request came.
DOOR_SAYS = b"x-gpustack-door"
#: The engine has seen nothing of the request; the engine ended before it answered.
UNREACHED, DIED = b"unreached", b"died"
