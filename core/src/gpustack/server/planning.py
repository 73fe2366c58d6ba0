"""What the part of the server that places instances can be asked, by those that answer requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gpustack.kit.errors import Unavailable
from gpustack.schemas import Defragmentation


class Planning:
    """Connects both; the composition sets ``propose`` where instances are placed."""

    def __init__(self) -> None:
        self.propose: Callable[[], Awaitable[Defragmentation]] = _nobody


async def _nobody() -> Defragmentation:
    raise Unavailable("this server places no instances now; try again in a moment", retry_after=5)
