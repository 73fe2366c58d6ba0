"""Why an engine could not be installed."""

from __future__ import annotations

from gpustack.kit.errors import GPUStackError


class InstallError(GPUStackError):
    """An engine cannot be installed. ``again`` tells whether another attempt may succeed without a change."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again
