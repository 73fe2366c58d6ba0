"""A typed client of GPUStack's own API, used by workers and by the command line.

    async with Client("http://127.0.0.1:9080", "gpustack_…") as client:
        for model in await client.models.list_all():
            print(model.name, model.ready_replicas)
        async for event in client.watch("/v2/model-instances"):
            print(event.type, event.id)

Every failure is one of :mod:`gpustack.kit.errors` and carries one line: what the server said, or why it could
not be reached. Credentials appear in no message, log line or ``repr``. Requests to this machine never go
through a proxy; others follow ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``.

The HTTP library is imported when :class:`Client` is first touched, so that commands which only read the run
state (:mod:`gpustack.client.local`) stay quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpustack.client.api import Client
    from gpustack.client.chat import ChatDelta
    from gpustack.client.watch import Watching

__all__ = ["ChatDelta", "Client", "Watching"]

_HOMES = {
    "ChatDelta": "gpustack.client.chat",
    "Client": "gpustack.client.api",
    "Watching": "gpustack.client.watch",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
