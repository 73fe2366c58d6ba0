"""The contract of a web app: files that the server shows under a path of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from gpustack.plugin.contracts import Extension, S


class WebApp(Extension[S], ABC):
    """Static files, served to everybody below :attr:`path`; what they ask of the API is the API's to allow."""

    #: Where it is, as in ``/ui``; ``/`` is what nothing else answers. The API's own paths cannot be taken.
    path: ClassVar[str]

    @abstractmethod
    def files(self) -> Path:
        """Return the absolute path of the folder with the files, ``index.html`` among them.

        Called once at start. A path without a file's suffix that is no file gives ``index.html``, for apps that
        route in the browser. Raises Refused when the installation lacks them.
        """
