"""Brings what runs to what is wanted: instances for models, places for instances, deadlines for everything.

    async with Reconciler(store, feed, {"llama-cpp": (backend, "llama_cpp")}) as reconciler:
        reconciler.heard({worker_id: heartbeat})

:func:`~gpustack.server.reconcile.decide.decide` is pure and does all the thinking; :class:`Reconciler` keeps its
state by the feed and carries out what it decides.
"""

from gpustack.server.reconcile.notes import Limits
from gpustack.server.reconcile.questions import Backends
from gpustack.server.reconcile.reconciler import Reconciler

__all__ = ["Backends", "Limits", "Reconciler"]
